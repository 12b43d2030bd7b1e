"""The model, as OpenAI's clients list it."""

from fastapi import APIRouter, Request

from ..errors import ApiError
from .context import service_of

router = APIRouter(tags=["OpenAI"])
# What stock clients call their model; all are this server's one.
ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "dia")
OWNER = "dia-engine"


def names(request: Request) -> list[str]:
    """The model's name and the aliases."""
    return list(dict.fromkeys([service_of(request).settings.model, *ALIASES]))


def check_model(request: Request, model: str | None) -> None:
    """Check that a request's model is the one that is served.

    Raises:
        ApiError: 404.
    """
    if model is not None and model not in names(request):
        raise ApiError(404, f"there is no model {model[:80]!r} here", param="model", code="model_not_found")


def _described(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


@router.get("/v1/models", summary="The model and its aliases")
@router.get("/v1/audio/models", summary="The same, where Open WebUI asks for it")
async def models(request: Request) -> dict[str, object]:
    found = [_described(name) for name in names(request)]
    return {"object": "list", "data": found, "models": [{"id": name} for name in names(request)]}


@router.get("/v1/models/{model:path}", summary="One of them")
async def model(request: Request, model: str) -> dict[str, object]:
    check_model(request, model)
    return _described(model)
