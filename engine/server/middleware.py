"""Around every request: its id, a line of the log, limits of its body."""

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, error_response
from .settings import Settings

logger = logging.getLogger(__name__)

SAFE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
UPLOAD = "/v1/audio/voices"
QUIET = ("/health", "/metrics")


class BodyTooLarge(Exception):
    """A request's body is over its limit."""


class BodyTooSlow(Exception):
    """A request's body has not arrived in time."""


class RequestContext:
    """Gives each request an id, which the client may choose, holds its body to size and time, and logs its end."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        request_id = given.get(b"x-request-id", "")
        if not SAFE_ID.fullmatch(request_id):
            request_id = f"req_{secrets.token_hex(12)}"
        started = time.perf_counter()
        scope.setdefault("state", {}).update(request_id=request_id, received=started)
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._limited(scope, receive, send_with_id, given)
        finally:
            if scope["path"] not in QUIET:
                fields: dict[str, Any] = {
                    "request": request_id, "method": scope["method"], "path": scope["path"][:200], "status": status,
                    "seconds": round(time.perf_counter() - started, 4), "traceparent": _safe(given.get(b"traceparent")),
                }  # fmt: skip
                logger.info("request", extra={"fields": fields})

    async def _limited(self, scope: Scope, receive: Receive, send: Send, given: dict[bytes, str]) -> None:
        settings = self._settings
        is_upload = scope["path"].removeprefix(settings.root_path) == UPLOAD
        megabytes = settings.max_upload_mb if is_upload else self._body_mb(scope)
        most, read, deadline = int(megabytes * 1e6), 0, time.monotonic() + settings.body_timeout
        whole = responded = False

        async def receive_limited() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise BodyTooSlow from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > most:
                raise BodyTooLarge
            return message

        async def send_noted(message: Message) -> None:
            nonlocal responded
            responded = True
            await send(message)

        too_large = ApiError(413, f"the body must have at most {megabytes:g} MB", code="body_too_large")
        length = given.get(b"content-length", "0")
        try:
            if length.isdigit() and int(length[:20]) > most:
                raise BodyTooLarge
            await self._app(scope, receive_limited, send_noted)
        except (BodyTooLarge, BodyTooSlow) as error:
            if responded:
                raise
            slow = ApiError(408, f"the body must arrive within {settings.body_timeout:g} seconds", code="timeout")
            response = error_response(too_large if isinstance(error, BodyTooLarge) else slow)
            response.headers["Connection"] = "close"  # the rest of the body is not read
            await response(scope, receive, send)

    def _body_mb(self, scope: Scope) -> float:
        """A script is small; one with its own voice in it may be as large as an upload, in base64."""
        is_speech = scope["path"].endswith("/v1/audio/speech")
        return self._settings.max_upload_mb if is_speech else self._settings.max_body_mb


def _safe(value: str | None) -> str | None:
    return value if value is not None and SAFE_ID.fullmatch(value) else None
