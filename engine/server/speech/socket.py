"""A WebSocket on which text comes in and audio goes out: messages, errors, and when nobody speaks any more."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from ..errors import ApiError

IDLE_SECONDS = 20.0  # after which a text of which no more comes is taken to be whole
SILENT_SECONDS = 180.0  # after which a connection that says nothing is closed
GOODBYE_SECONDS = 5.0  # in which a client takes the last messages
GOING_AWAY, POLICY_VIOLATION = 1001, 1008


class Messages:
    """The JSON objects that a client sends, and those that it gets, one at a time."""

    def __init__(self, socket: WebSocket):
        self._socket, self._sending, self._patience = socket, asyncio.Lock(), SILENT_SECONDS

    async def receive(self) -> dict[str, Any]:
        """The next one.

        Raises:
            ApiError: 400, something else; 408, none for long.
            WebSocketDisconnect: the client has left.
        """
        try:
            message = await asyncio.wait_for(self._socket.receive(), SILENT_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(408, f"nothing was said for {SILENT_SECONDS:g} seconds", code="timeout") from None
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
        """Send one.

        Raises:
            WebSocketDisconnect: the client has left; also of the others.
        """
        await self._send(self._socket.send_text, json.dumps(content))

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        await self._send(self._socket.send_bytes, data)

    def hurry(self) -> None:
        """The connection ends: who does not take the last messages soon does not get them."""
        self._patience = GOODBYE_SECONDS

    async def close(self, error: ApiError | None = None) -> None:
        """Close the connection, because of an error or at its end."""
        if error is None:
            await self._send(self._socket.close)
        else:
            code = GOING_AWAY if error.status >= 500 or error.status == 408 else POLICY_VIOLATION
            await self._send(self._socket.close, code, error.message[:100].encode("ascii", "replace").decode())

    async def _send(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        async with self._sending:
            try:
                await asyncio.wait_for(function(*arguments), self._patience)
            except (RuntimeError, OSError, asyncio.TimeoutError):  # it is closed, its connection is, or nobody reads
                raise WebSocketDisconnect from None


class IdleTimer:
    """Calls something once nothing has happened for a time."""

    def __init__(self, action: Callable[[], None], seconds: float = IDLE_SECONDS):
        self._action, self._seconds = action, seconds
        self._handle: asyncio.TimerHandle | None = None
        self.restart()

    def restart(self) -> None:
        """Something has happened."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._action)

    def stop(self) -> None:
        """It is over."""
        if self._handle is not None:
            self._handle.cancel()
