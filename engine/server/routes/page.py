"""The page on which to try the model."""

from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

PAGE = Path(__file__).parents[1] / "page"
# Nothing but what this server sends runs on it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def _file(name: str, kind: str) -> Response:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return Response((PAGE / name).read_bytes(), headers=headers, media_type=kind)


@router.get("/")
def index() -> Response:
    return _file("index.html", "text/html")


@router.get("/player.js")
def player() -> Response:
    return _file("player.js", "text/javascript")
