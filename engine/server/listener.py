"""uvicorn with what it lacks: time limits of a request's headers, and an end in two steps."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from .settings import Settings
from .speech.service import SpeechService

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
PARSED_AT_ONCE = 16 * 1024  # bytes between two looks at that limit
MAX_PIPELINED = 8  # requests of a connection that are read while another one is answered
MAX_MESSAGE_BYTES = 2**20  # of a WebSocket
MAX_UNREAD_BYTES = 4 * 2**20  # that were written to one: audio waits for its reader before
BACKLOG = 2048
CLOSING_SECONDS = 2  # for what is left once the drain is over
EXIT_SIGNAL = 128  # and a signal's number: the status of a process that it has ended


class TimedHttpProtocol(HttpToolsProtocol):
    """Drops connections whose headers are too slow or too long, as each would hold a file descriptor.

    It also notifies the request that is being answered when its client disconnects: uvicorn notifies the last request
    of a connection, which may be pipelined behind it.

    Attributes:
        header_timeout: seconds within which the headers of a request must be complete.
    """

    header_timeout: float

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._header_bytes = 0
        self._answered: Any = None  # the request, as uvicorn's cycle
        self._await_headers()

    def _await_headers(self) -> None:
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(self.header_timeout, self.transport.close)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PARSED_AT_ONCE):
            if not self.transport.is_closing():
                self._take(data[start : start + PARSED_AT_ONCE])

    def _take(self, data: bytes) -> None:
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()  # the next request of this connection
        if self._deadline is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        # A body may follow in the same packets, and ends the count.
        if self._deadline is not None and self._header_bytes > MAX_HEADER_BYTES:
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        self._field_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_bytes += len(name) + len(value)
        super().on_header(name, value)
        if self._field_bytes > MAX_HEADER_BYTES and self._deadline is None:  # those behind a body
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._headers_done()
        super().on_headers_complete()
        if not self.pipeline:
            self._answered = self.cycle
        elif len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()  # uvicorn stops, and would not see that the client leaves

    def on_response_complete(self) -> None:
        self._answered = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_done()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _headers_done(self) -> None:
        self._header_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def http_protocol(header_timeout: float) -> type[TimedHttpProtocol]:
    """`TimedHttpProtocol` with a header timeout in seconds. uvicorn creates the instances itself."""
    return type("TimedHttpProtocol", (TimedHttpProtocol,), {"header_timeout": header_timeout})


def websocket_protocol() -> Any:
    """A protocol that drops clients who make the server write more than they read: a ping is answered at once."""
    base: Any = AutoWebSocketsProtocol

    class BoundedWebSocketProtocol(base):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                self.transport.abort()

    return BoundedWebSocketProtocol


class Listener(uvicorn.Server):
    """Serves an application. The first SIGTERM or SIGINT lets running requests finish, the second ends the process."""

    def __init__(self, app: FastAPI, settings: Settings):
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=http_protocol(settings.header_timeout),
            timeout_keep_alive=max(1, round(settings.idle_timeout)),
            timeout_graceful_shutdown=CLOSING_SECONDS,
            ws=websocket_protocol(),
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # audio does not shrink
            log_config=None,
            access_log=False,
            server_header=False,
        )
        super().__init__(config)
        self._service: SpeechService = app.state.service
        self._drain_seconds = settings.drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0
        app.state.startup.on_failure = self.stop

    def stop(self) -> None:
        """End without waiting."""
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal. Signals come here until the event loop has ended, which waits for its threads."""
        with super().capture_signals():
            super().run(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would take them in `serve` and leave them to others when that has ended: `run` has them."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called at a signal, between two instructions of the event loop."""
        self._signals += 1
        if self._signals > 1:
            # Anything in order could wait: for a thread that makes a voice, or for a lock that this one holds. The log
            # has each of its lines already.
            os._exit(EXIT_SIGNAL + sig)
        self._service.drain()
        if self._loop is None or self._loop.is_closed():
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)

    def _begin_drain(self) -> None:
        logger.info(
            "shutting down: %d requests may finish within %g s", len(self._service.sessions), self._drain_seconds
        )
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """New requests are refused, with a status, until the running ones have ended."""
        try:
            await asyncio.wait_for(self._service.idle(), self._drain_seconds)
        except asyncio.TimeoutError:
            cut = sum(1 for session in self._service.sessions if not session.read_to_end)
            if cut:
                logger.warning("%d requests were cut off", cut)
        self.should_exit = True


def bound_socket(settings: Settings) -> socket.socket:
    """The socket to listen on.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)  # from now on a client waits instead of being refused
    except OSError as error:
        listening.close()
        raise OSError(
            error.errno, f"cannot listen there: {error.strerror}", f"{settings.host}:{settings.port}"
        ) from None
    return listening
