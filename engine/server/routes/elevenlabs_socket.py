"""ElevenLabs' WebSockets: text arrives in pieces, for several contexts over one connection, and audio goes back.

What comes between two flushes is one text, spoken by one request, which begins once a sentence is whole and long
enough and reads on while it speaks. The voice is held by its prompt. Of one context, one text is spoken after another;
contexts run side by side.
"""

import asyncio
import base64
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from ..audio.formats import AudioFormat, elevenlabs_format
from ..errors import ApiError
from ..speech.dialogue import ArrivingDialogue, TextQueue
from ..speech.response import while_connected
from ..speech.session import Session
from ..speech.socket import IdleTimer, JsonSocket
from ..voices.mint import DEFAULT
from .context import Caller, caller_of
from .elevenlabs import DEFAULT_FORMAT, speech_of_voices

router = APIRouter()

MAX_CONTEXTS = 16


@router.websocket("/v1/text-to-dialogue/multi-stream-input")
async def dialogue_socket(socket: WebSocket) -> None:
    await _Connection(socket, None).run()


@router.websocket("/v1/text-to-speech/{voice_id}/multi-stream-input")
async def speech_socket(socket: WebSocket, voice_id: str) -> None:
    await _Connection(socket, voice_id).run()


class _Context:
    """One stream of texts and their audio.

    Attributes:
        identity: its name.
        voices: that its first message named.
        texts: that are spoken or wait for it.
        session: that speaks.
        format: of what it speaks next.
    """

    def __init__(self, identity: str, voices: list[str], audio_format: AudioFormat, speak: Callable[["_Context"], Any]):
        self.identity, self.voices, self.format = identity, voices, audio_format
        self.texts: TextQueue[ArrivingDialogue] = TextQueue()
        self.session: Session | None = None
        self.idle = IdleTimer(self.close)
        self._open: ArrivingDialogue | None = None
        self.task = asyncio.create_task(speak(self))

    def add(self, text: str, voice: str) -> None:
        """Take text.

        Raises:
            ApiError: 400, too much waits to be spoken.
        """
        self.texts.check(len(text))  # before anything looks at it
        if self._open is None or not self._open.takes(voice):
            self.flush()
            self._open = ArrivingDialogue()
            self.texts.add(self._open)
        self._open.add(text, voice)
        self.texts.check()

    def flush(self) -> None:
        """Have what has come spoken."""
        if self._open is not None:
            self._open.end()
        self._open = None

    def close(self) -> None:
        """No more text will come."""
        self.idle.stop()
        self.flush()
        self.texts.close()

    def give_up(self) -> None:
        """Nobody hears it any more."""
        self.idle.stop()
        self.task.cancel()
        if self.session is not None:
            self.session.close()


class _Connection:
    """One WebSocket. `voice` is that of the address, or None for dialogues, whose messages name theirs."""

    def __init__(self, socket: WebSocket, voice: str | None):
        self._socket, self._voice, self._messages = socket, voice, JsonSocket(socket)
        self._contexts: dict[str, _Context] = {}

    async def run(self) -> None:
        """Serve it to its end."""
        await self._socket.accept()
        try:
            self._caller: Caller = caller_of(self._socket)
            query = self._socket.query_params
            self._format: AudioFormat = elevenlabs_format(query.get("output_format", DEFAULT_FORMAT))
            self._seed = _seed(query.get("seed"))
            while not (message := await self._messages.receive()).get("close_socket"):
                self._take(message)
            await self._finish()
        except ApiError as error:
            self._give_up()  # some may be sending to a client that does not read
            self._messages.shorten_send_timeout()
            await self._tell(error, None)
        except WebSocketDisconnect:
            pass
        finally:
            self._give_up()

    def _give_up(self) -> None:
        for context in self._contexts.values():
            context.give_up()

    async def _finish(self) -> None:
        """Speak what is left, then close."""
        for context in self._contexts.values():
            context.close()
        tasks = [context.task for context in self._contexts.values()]
        await while_connected(self._socket.receive, lambda: asyncio.gather(*tasks, return_exceptions=True))
        await self._messages.close()

    def _take(self, message: dict[str, Any]) -> None:
        identity = next((message[name] for name in ("context_id", "contextId") if message.get(name) is not None), "")
        identity = "default" if identity == "" else identity
        if not isinstance(identity, str) or len(identity) > 200:
            raise ApiError(400, "context_id must be a string of at most 200 characters", param="context_id")
        context = self._contexts.get(identity)
        if context is None:
            if message.get("close_context"):
                return  # it has ended meanwhile
            context = self._open(identity, message)
        context.idle.restart()
        for text, voice in self._texts(context, message):
            context.add(text, voice)
        if message.get("close_context"):
            context.close()
        elif message.get("flush"):
            context.flush()

    def _open(self, identity: str, message: dict[str, Any]) -> _Context:
        if len(self._contexts) >= MAX_CONTEXTS:
            raise ApiError(400, f"at most {MAX_CONTEXTS} contexts may be open", code="too_many_contexts")
        voices = message.get("voices", [])
        if not isinstance(voices, list) or not all(isinstance(voice, str) for voice in voices):
            raise ApiError(400, "voices must be a list of voice ids", param="voices")
        context = self._contexts[identity] = _Context(identity, voices, self._format, self._speak)
        return context

    def _texts(self, context: _Context, message: dict[str, Any]) -> list[tuple[str, str]]:
        """The text of a message with its voices."""
        if self._voice is not None:
            text = message.get("text")
            if not isinstance(text, str | None):
                raise ApiError(400, "text must be a string", param="text")
            return [(text, self._voice)] if text else []
        inputs = message.get("inputs")
        inputs = [] if inputs is None else inputs
        if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
            raise ApiError(400, "inputs must be a list of objects", param="inputs")
        found = []
        for each in inputs:
            text, voice = each.get("text", ""), each.get("voice_id")
            if voice in (None, ""):
                voice = next(iter(context.voices), DEFAULT)
            if not isinstance(text, str) or not isinstance(voice, str):
                raise ApiError(400, "text and voice_id must be strings", param="inputs")
            found.append((text, voice))
        return found

    async def _speak(self, context: _Context) -> None:
        """Speak a context's texts, one after another, to its end."""
        try:
            while (text := await context.texts.first()) is not None:
                await self._speak_text(context, text)
                context.texts.pop()
            await self._send(context, {"is_final" if self._voice is None else "isFinal": True})
        except ApiError as error:
            await self._tell(error, context)
        except WebSocketDisconnect:
            pass
        except Exception:
            await self._tell(self._caller.bug(), context)
        finally:
            context.idle.stop()
            if self._contexts.get(context.identity) is context:
                del self._contexts[context.identity]

    async def _speak_text(self, context: _Context, text: ArrivingDialogue) -> None:
        voices = await text.begin()
        if not voices:
            return
        received = time.perf_counter()
        speech = await speech_of_voices(self._caller, text.script, voices, self._seed)
        context.session = session = self._caller.begin(speech.settled(), context.format, received)
        try:
            while (data := await session.read()) is not None:
                context.format = context.format.continued
                await self._send(context, {"audio": base64.b64encode(data).decode()})
                if not context.texts.closing:
                    context.idle.restart()
        finally:
            session.close()
        if self._voice is None:
            await self._send(context, {"is_final_audio_for_turn": True})

    async def _send(self, context: _Context, content: dict[str, Any]) -> None:
        name = "context_id" if self._voice is None else "contextId"
        await self._messages.send({**content, name: context.identity})

    async def _tell(self, error: ApiError, context: _Context | None) -> None:
        """Tell an error of a context, or one that ends the connection."""
        content: dict[str, Any] = {
            "error": error.code or "invalid_request",
            "message": error.message,
            "code": error.status,
            "param": error.param,
        }
        if context is not None:
            content |= {"context_id": context.identity, "contextId": context.identity}
        try:
            await self._messages.send(content)
            if context is None:
                await self._messages.close(error)
        except WebSocketDisconnect:
            pass


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise ApiError(400, f"seed must be an integer in [0, 2^63), got {text[:40]!r}", param="seed")
    return int(text)
