"""HTTP responses with audio: headers, plain bytes or server-sent events. They end when the client disconnects."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from ..audio.formats import CONTENT_TYPES
from ..errors import ApiError
from .session import Session

Result = TypeVar("Result")
Schema = dict[int | str, dict[str, Any]]


def _schema(*kinds: str) -> Schema:
    """OpenAPI schema of a route that returns audio of these content types."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {200: {"description": "Audio as it is made", "content": content}}


AUDIO = _schema(*CONTENT_TYPES.values(), "audio/pcm")
AUDIO_OR_EVENTS = _schema(*CONTENT_TYPES.values(), "audio/pcm", "text/event-stream")
PART = 1 << 18  # bytes of a body that are sent at once
CLIENT_LEFT = 499  # nginx's "client closed request"; for the access log only


async def streamed(request: Request, session: Session, *, events: bool = False) -> Response:
    """A streamed response, returned once the first audio is there: a request that fails earlier gets an error status.

    Args:
        events: send OpenAI's server-sent events instead of plain bytes.

    Raises:
        ApiError: the request failed before its first audio.
    """
    try:
        first = await while_connected(request.receive, session.read)
    except BaseException:
        session.close()
        raise
    if first is None:
        session.close()
        return Response(status_code=CLIENT_LEFT)
    return SpeechResponse(session, first, events)


async def whole(request: Request, session: Session) -> Response:
    """A response with Content-Length, returned once all audio is generated.

    Raises:
        ApiError: the request failed.
    """
    try:
        data = await while_connected(request.receive, session.read_all)
    except BaseException:
        session.close()
        raise
    if data is None:
        session.close()
        return Response(status_code=CLIENT_LEFT)
    return WholeResponse([session], data, media_type=session.format.content_type, headers=headers(session))


def headers(session: Session) -> Mapping[str, str]:
    """Headers that describe the audio, and keep proxies from buffering it."""
    return {
        "X-Sample-Rate": str(session.format.sample_rate),
        "X-Channels": "1",
        "X-Bit-Depth": "8" if session.format.name == "ulaw" else "16",
        "X-Seed": str(session.speech.seed),
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }


async def while_connected(receive: Receive, work: Callable[[], Awaitable[Result]]) -> Result | None:
    """The result of `work`, or None as soon as the client has disconnected; `work` is then cancelled."""
    working, gone = asyncio.ensure_future(work()), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while not (await receive())["type"].endswith(".disconnect"):
        pass


class WholeResponse(Response):
    """Sends the finished audio of some sessions in parts, and closes the sessions at the end.

    Until then the audio counts towards `Settings.max_buffered_mb` (the server may drop a session, which ends the
    response), and a draining server waits for it.
    """

    def __init__(self, sessions: Sequence[Session], content: bytes, **options: Any):
        """`options` are those of `Response`."""
        super().__init__(content, **options)
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failures = [asyncio.ensure_future(session.failure()) for session in self._sessions]
        sending = asyncio.ensure_future(while_connected(receive, lambda: self._send_parts(send)))
        try:
            await asyncio.wait({sending, *failures}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *failures):
                task.cancel()
            await asyncio.gather(sending, *failures, return_exceptions=True)  # the client may have left
            for session in self._sessions:
                session.close()

    async def _send_parts(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PART):
            await send({"type": "http.response.body", "body": self.body[start : start + PART], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class SpeechResponse(Response):
    """Sends a session's audio while it is generated, and closes the session in any case."""

    def __init__(self, session: Session, first: bytes, events: bool):
        kind = "text/event-stream" if events else session.format.content_type
        super().__init__(headers=headers(session), media_type=kind)
        del self.headers["content-length"]
        if events:
            self.headers["content-type"] = kind  # without a charset
        self._session, self._first, self._events = session, first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(receive, lambda: self._send_audio(send))
        except OSError:
            pass  # the client has left
        finally:
            self._session.close()

    async def _send_audio(self, send: Send) -> None:
        async def body(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        data: bytes | None = self._first
        try:
            while data is not None:
                await body(_delta(data) if self._events else data)
                data = await self._session.read()
        except ApiError as error:
            if not self._events:
                return  # no final chunk: the client sees an incomplete response
            await body(_event("speech.audio.error", error.body), more=False)
            return
        await body(_done(self._session) if self._events else b"", more=False)


def _event(kind: str, content: Mapping[str, object]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n".encode()


def _delta(data: bytes) -> bytes:
    return _event("speech.audio.delta", {"audio": base64.b64encode(data).decode()})


def _done(session: Session) -> bytes:
    """The last event. Input tokens are bytes of text, output tokens are codec frames."""
    given, made = len(session.speech.script.encode("utf-8", "replace")), session.frames
    usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    return _event("speech.audio.done", {"usage": usage})
