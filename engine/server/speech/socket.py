"""WebSockets: JSON messages with timeouts, close codes, and a timer for idle connections."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from ..errors import ApiError

IDLE_SECONDS = 20.0  # without new text, after which the text is taken to be complete
RECEIVE_TIMEOUT = 180.0  # seconds without a message, after which the connection is closed
CLOSE_TIMEOUT = 5.0  # seconds a client has to read the last messages
GOING_AWAY, POLICY_VIOLATION = 1001, 1008


class JsonSocket:
    """Sends and receives JSON objects over a WebSocket, with timeouts. Sends one message at a time."""

    def __init__(self, socket: WebSocket):
        self._socket, self._sending, self._send_timeout = socket, asyncio.Lock(), RECEIVE_TIMEOUT

    async def receive(self) -> dict[str, Any]:
        """Receive a message.

        Raises:
            ApiError: 400, the message is not a JSON object; 408, no message within RECEIVE_TIMEOUT.
            WebSocketDisconnect: the client has disconnected.
        """
        try:
            message = await asyncio.wait_for(self._socket.receive(), RECEIVE_TIMEOUT)
        except asyncio.TimeoutError:
            raise ApiError(408, f"no message for {RECEIVE_TIMEOUT:g} seconds", code="timeout") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if message.get("text") is None:
            raise ApiError(400, "a message must be a JSON object, sent as text", code="invalid_json")
        try:
            content = json.loads(message["text"])
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise ApiError(400, "a message must be a JSON object", code="invalid_json")
        return content

    async def send(self, content: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            WebSocketDisconnect: the client has disconnected or does not read; so do `send_bytes` and `close`.
        """
        await self._send(self._socket.send_text, json.dumps(content))

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        await self._send(self._socket.send_bytes, data)

    def shorten_send_timeout(self) -> None:
        """Give the client CLOSE_TIMEOUT seconds for each further message, as the connection is about to end."""
        self._send_timeout = CLOSE_TIMEOUT

    async def close(self, error: ApiError | None = None) -> None:
        """Close the connection, with a status code and reason if there was an error."""
        if error is None:
            await self._send(self._socket.close)
        else:
            code = GOING_AWAY if error.status >= 500 or error.status == 408 else POLICY_VIOLATION
            await self._send(self._socket.close, code, error.message[:100].encode("ascii", "replace").decode())

    async def _send(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        async with self._sending:
            try:
                await asyncio.wait_for(function(*arguments), self._send_timeout)
            except (RuntimeError, OSError, asyncio.TimeoutError):  # closed, disconnected, or not read
                raise WebSocketDisconnect from None


class IdleTimer:
    """Calls a function after `seconds` without a `restart`."""

    def __init__(self, action: Callable[[], None], seconds: float = IDLE_SECONDS):
        self._action, self._seconds = action, seconds
        self._handle: asyncio.TimerHandle | None = None
        self.restart()

    def restart(self) -> None:
        """Start the time anew."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._action)

    def stop(self) -> None:
        """Cancel the call."""
        if self._handle is not None:
            self._handle.cancel()
