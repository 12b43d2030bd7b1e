"""ElevenLabs' WebSockets: text arrives in pieces, for several contexts over one connection, and audio goes back.

Dia reads the whole of a text before its first frame, so what has arrived is spoken at a flush, at the close of a
context, or once a sentence is whole and long enough. The voice is held by its prompt. Of one context, one text is
spoken after another; contexts run side by side.
"""

import asyncio
import base64
import json
import logging
import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from ..audio.formats import AudioFormat, elevenlabs_format
from ..errors import ApiError
from ..speech.session import Session
from .context import Caller, caller_of
from .elevenlabs import DEFAULT_FORMAT, dialogue_speech

logger = logging.getLogger(__name__)
router = APIRouter()

MAX_CONTEXTS = 16
MAX_TEXT = 20_000  # characters of a context that wait to be spoken
IDLE_SECONDS = 20.0  # after which a context that says nothing is closed, as theirs is
POLICY_VIOLATION = 1008
SENTENCE_END = re.compile(r"[.!?…][\"')\]]*\s*$")
LONG_ENOUGH = 40  # characters of a sentence that is spoken without a flush


@router.websocket("/v1/text-to-dialogue/multi-stream-input")
async def dialogue_socket(socket: WebSocket) -> None:
    await _Connection(socket, None).run()


@router.websocket("/v1/text-to-speech/{voice_id}/multi-stream-input")
async def speech_socket(socket: WebSocket, voice_id: str) -> None:
    await _Connection(socket, voice_id).run()


class _Context:
    """One stream of text and its audio.

    Attributes:
        identity: its name.
        turns: (text, voice) that wait to be spoken.
        closing: no more text will come.
    """

    def __init__(self, identity: str, voices: list[str], task: Callable[["_Context"], Any]):
        self.identity, self.voices = identity, voices
        self.turns: list[tuple[str, str]] = []
        self.ready: list[list[tuple[str, str]]] = []
        self.closing = False
        self.changed = asyncio.Event()
        self.session: Session | None = None
        self.task = asyncio.create_task(task(self))

    def add(self, text: str, voice: str) -> None:
        """Take text; what continues the last turn is appended as it comes."""
        if self.turns and self.turns[-1][1] == voice:
            self.turns[-1] = (self.turns[-1][0] + text, voice)
        else:
            self.turns.append((text, voice))
        if sum(len(said) for turns in (self.turns, *self.ready) for said, _ in turns) > MAX_TEXT:
            raise ApiError(400, f"at most {MAX_TEXT} characters may wait to be spoken", code="text_too_long")
        said = self.turns[-1][0]
        if len(said) >= LONG_ENOUGH and SENTENCE_END.search(said):
            self.flush()

    def flush(self) -> None:
        """Have what has come spoken."""
        if any(text.strip() for text, _ in self.turns):
            self.ready.append(self.turns)
        self.turns = []
        self.changed.set()

    def close(self) -> None:
        """No more text will come."""
        self.closing = True
        self.flush()


class _Connection:
    """One WebSocket. `voice` is that of the address, or None for dialogues, whose messages name theirs."""

    def __init__(self, socket: WebSocket, voice: str | None):
        self._socket, self._voice = socket, voice
        self._contexts: dict[str, _Context] = {}
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Serve it to its end."""
        await self._socket.accept()
        try:
            self._caller: Caller = caller_of(self._socket)
            query = self._socket.query_params
            self._format: AudioFormat = elevenlabs_format(query.get("output_format", DEFAULT_FORMAT))
            self._seed = _seed(query.get("seed"))
            while True:
                message = _parsed(await self._socket.receive_text())
                if message.get("close_socket"):
                    break
                self._take(message)
            await self._finish()
        except ApiError as error:
            await self._send_error(error, None)
        except (WebSocketDisconnect, RuntimeError, KeyError):
            pass  # the client has left, or sent bytes
        finally:
            for context in self._contexts.values():
                context.task.cancel()
                if context.session is not None:
                    context.session.close()

    async def _finish(self) -> None:
        """Speak what is left, then close."""
        for context in list(self._contexts.values()):
            context.close()
        await asyncio.gather(*(context.task for context in list(self._contexts.values())), return_exceptions=True)
        await self._socket.close()

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
        for text, voice in self._texts(context, message):
            context.add(text, voice)
        if message.get("close_context"):
            context.close()
        elif message.get("flush"):
            context.flush()
        context.changed.set()

    def _open(self, identity: str, message: dict[str, Any]) -> _Context:
        if len(self._contexts) >= MAX_CONTEXTS:
            raise ApiError(400, f"at most {MAX_CONTEXTS} contexts may be open", code="too_many_contexts")
        voices = message.get("voices", [])
        if not isinstance(voices, list) or not all(isinstance(voice, str) for voice in voices):
            raise ApiError(400, "voices must be a list of voice ids", param="voices")
        context = self._contexts[identity] = _Context(identity, voices, self._speak)
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
                voice = next(iter(context.voices), "alloy")
            if not isinstance(text, str) or not isinstance(voice, str):
                raise ApiError(400, "text and voice_id must be strings", param="inputs")
            found.append((text, voice))
        return found

    async def _speak(self, context: _Context) -> None:
        """Speak a context's texts, one after another, to its end."""
        try:
            while True:
                if context.ready:
                    await self._speak_turns(context, context.ready.pop(0))
                    continue
                if context.closing:
                    break
                context.changed.clear()
                try:
                    await asyncio.wait_for(context.changed.wait(), IDLE_SECONDS)
                except asyncio.TimeoutError:
                    context.close()
            await self._send(context, {_final(self._voice): True})
        except ApiError as error:
            await self._send_error(error, context)
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass
        finally:
            if self._contexts.get(context.identity) is context:
                del self._contexts[context.identity]

    async def _speak_turns(self, context: _Context, turns: list[tuple[str, str]]) -> None:
        speech = await dialogue_speech(self._caller, turns, self._seed)
        self._caller.service.check_state()
        context.session = session = self._caller.begin(speech, self._format)
        try:
            while (data := await session.read()) is not None:
                await self._send(context, {"audio": base64.b64encode(data).decode()})
        finally:
            session.close()
        if self._voice is None:
            await self._send(context, {"is_final_audio_for_turn": True})

    async def _send(self, context: _Context, content: dict[str, Any]) -> None:
        name = "context_id" if self._voice is None else "contextId"
        async with self._sending:
            await self._socket.send_text(json.dumps({**content, name: context.identity}))

    async def _send_error(self, error: ApiError, context: _Context | None) -> None:
        content: dict[str, Any] = {
            "error": error.code or "invalid_request",
            "message": error.message,
            "code": error.status,
            "param": error.param,
        }
        if context is not None:
            content |= {"context_id": context.identity, "contextId": context.identity}
        try:
            async with self._sending:
                await self._socket.send_text(json.dumps(content))
                if context is None:
                    await self._socket.close(POLICY_VIOLATION, error.message[:100].encode("ascii", "replace").decode())
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass


def _final(voice: str | None) -> str:
    return "is_final" if voice is None else "isFinal"


def _parsed(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, "a message must be a JSON object", code="invalid_json") from None
    if not isinstance(message, dict):
        raise ApiError(400, "a message must be a JSON object", code="invalid_json")
    return message


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise ApiError(400, f"seed must be an integer in [0, 2^63), got {text[:40]!r}", param="seed")
    return int(text)
