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
LARGE = ("/v1/audio/voices", "/v1/audio/speech", "/v1/audio/speech/batch")
QUIET = ("/health", "/metrics")


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
            await self._connect(scope, receive, send, request_id)
            return
        exchange = _Exchange(receive, send, request_id, *self._limits(scope))
        try:
            await self._respond(scope, exchange, given)
        finally:
            if scope["path"] not in QUIET:
                fields: dict[str, Any] = {
                    "request": request_id,
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": exchange.status,
                    "seconds": round(time.perf_counter() - started, 4),
                    "traceparent": _safe(given.get(b"traceparent")),
                }
                logger.info("request", extra={"fields": fields})

    async def _connect(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """A WebSocket: its id in the answer to its handshake, and a line of the log at its end."""
        started = time.perf_counter()

        async def accept(message: Message) -> None:
            if message["type"] == "websocket.accept":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, accept)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            fields = {"request": request_id, "path": scope["path"][:200], "seconds": seconds}
            logger.info("socket", extra={"fields": fields})

    async def _respond(self, scope: Scope, exchange: "_Exchange", given: dict[bytes, str]) -> None:
        length = given.get(b"content-length", "0")
        encoding = given.get(b"content-encoding", "identity")
        if scope["method"] == "HEAD":  # the answer to GET, whose body uvicorn does not send
            scope = {**scope, "method": "GET"}
        try:
            if encoding.lower() != "identity":
                exchange.refusal = ApiError(415, f"a body with Content-Encoding {encoding[:40]} is not read")
            elif length.isdigit() and int(length[:20]) > exchange.most:
                exchange.refuse_size()
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if exchange.refusal is None:
                logger.exception("a bug", extra={"fields": {"request": exchange.request_id}})
            if exchange.status:
                return  # without a proper end: a part has been sent
            exchange.refusal = exchange.refusal or ApiError(500, "an internal error; the server's log has it")
        if exchange.refusal is not None and not exchange.status:
            response = error_response(exchange.refusal)
            response.headers["Connection"] = "close"  # what is left of the body is not read
            await response(scope, exchange.receive, exchange.send_anyway)

    def _limits(self, scope: Scope) -> tuple[float, float]:
        """Megabytes of a body, and seconds in which it must arrive. A script with its own voice in it may be as large
        as an upload."""
        is_large = scope["path"].removeprefix(self._settings.root_path) in LARGE
        settings = self._settings
        return settings.max_upload_mb if is_large else settings.max_body_mb, settings.body_timeout


class _Exchange:
    """A request and its response.

    Attributes:
        status: of the response, once it has begun; else 0.
        most: bytes of the body.
        refusal: why the body was not taken. Whatever the application answers then is not sent.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str, megabytes: float, seconds: float):
        self._receive, self._send, self.request_id = receive, send, request_id
        self._megabytes, self._seconds = megabytes, seconds
        self._deadline = time.monotonic() + seconds
        self.most, self.status = int(megabytes * 1e6), 0
        self.refusal: ApiError | None = None
        self._read, self._whole = 0, False

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            ConnectionError: it is too much or too slow.
        """
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, self._deadline - time.monotonic()))
        except asyncio.TimeoutError:
            self.refusal = ApiError(408, f"the body must arrive within {self._seconds:g} seconds", code="timeout")
            raise ConnectionError from None
        self._read += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._read > self.most:
            self.refuse_size()
            raise ConnectionError
        return message

    def refuse_size(self) -> None:
        """The body is over its limit."""
        self.refusal = ApiError(413, f"the body must have at most {self._megabytes:g} MB", code="body_too_large")

    async def send(self, message: Message) -> None:
        """A part of the application's response."""
        if self.refusal is None:
            await self.send_anyway(message)

    async def send_anyway(self, message: Message) -> None:
        """A part of the response, with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
        await self._send(message)


def _safe(value: str | None) -> str | None:
    return value if value is not None and SAFE_ID.fullmatch(value) else None
