"""Text in pieces over a WebSocket, in the shape of vLLM-Omni's and SGLang-Omni's stream route.

`session.config` comes first, then `input.text` as often as there is text. Speaking begins once a sentence is whole and
long enough, or at `input.commit`, and reads on while it speaks; `input.done` ends the text. Audio goes back as binary
messages between `audio.start` and `audio.done`, then `session.done`, and another text may follow.
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from ..audio.formats import AudioFormat
from ..errors import ApiError, bad_request, invalid_fields
from ..speech.dialogue import ArrivingDialogue, TextQueue
from ..speech.response import while_connected
from ..speech.session import Session
from ..speech.socket import IdleTimer, JsonSocket
from .context import Caller, caller_of
from .speech import SpeechFields, checked_format, speech_of

router = APIRouter()


class SessionConfig(SpeechFields):
    """How the texts of a connection are spoken."""

    response_format: str = "pcm"
    stream_audio: bool = True


@router.websocket("/v1/audio/speech/stream")
async def speech_socket(socket: WebSocket) -> None:
    await _Connection(socket).run()


class _Text(ArrivingDialogue):
    """A text, and how it is spoken."""

    def __init__(self, config: SessionConfig, audio_format: AudioFormat):
        super().__init__(sounds=False)
        self.config, self.format = config, audio_format


class _Connection:
    """One WebSocket, on which one text is spoken after another."""

    def __init__(self, socket: WebSocket):
        self._socket, self._messages = socket, JsonSocket(socket)
        self._configured: tuple[SessionConfig, AudioFormat] | None = None
        self._texts: TextQueue[_Text] = TextQueue()
        self._open: _Text | None = None  # which more may come of
        self._spoken = 0

    async def run(self) -> None:
        """Serve it to its end."""
        await self._socket.accept()
        self._idle = IdleTimer(self._end_text)
        speaking = asyncio.create_task(self._speak())
        try:
            self._caller: Caller = caller_of(self._socket)
            while not self._texts.closing:
                await self._take(await self._messages.receive())
            await while_connected(self._socket.receive, lambda: speaking)
            await self._messages.close()
        except ApiError as error:
            speaking.cancel()  # it may be sending to a client that does not read
            self._messages.shorten_send_timeout()
            await self._end(error)
        except WebSocketDisconnect:
            pass
        finally:
            self._idle.stop()
            speaking.cancel()

    async def _take(self, message: dict[str, Any]) -> None:
        """Take a message. What is wrong in it is told and changes nothing.

        Raises:
            ApiError: the connection cannot go on: it is not configured, or sends too much.
        """
        self._idle.restart()
        kind = message.get("type")
        if self._configured is None and kind != "session.config":
            raise ApiError(400, "the first message must be session.config", param="type", code="no_config")
        try:
            if kind == "session.config":
                await self._configure(message)
            elif kind == "input.text":
                self._add(message.get("text"))
            elif kind == "input.commit" and self._open is not None:
                self._open.flush()
            elif kind == "input.done":
                self._end_text(is_asked=True)
            elif kind == "session.close":
                self._end_text()
                self._texts.close()
            elif kind == "input.commit":
                pass  # nothing was said
            else:
                known = "session.config, input.text, input.commit, input.done or session.close"
                raise ApiError(400, f"type must be {known}", param="type", code="unknown_type")
            self._texts.check()
        except ApiError as error:
            if self._configured is None or error.code == "text_too_long":
                raise
            await self._tell(error)

    async def _configure(self, message: dict[str, Any]) -> None:
        """Take how the following texts are spoken; SGLang-Omni's clients send it as an object of its own."""
        try:
            config = SessionConfig.model_validate(message.get("session", message))
        except ValidationError as error:
            raise invalid_fields(error.errors()) from None
        audio_format = checked_format(self._socket, config)
        speech = await speech_of(self._caller, "[S1]", config)  # a voice or a seed that cannot be is told now
        try:
            speech.check_params(self._caller.service.engine)
        except (TypeError, ValueError) as error:
            raise bad_request(error) from None
        self._end_text()
        self._configured = config, audio_format
        shown = {"response_format": audio_format.name, "sample_rate": audio_format.sample_rate}
        await self._messages.send({"type": "session.configured", "session": shown})

    def _add(self, text: Any) -> None:
        if not isinstance(text, str):
            raise ApiError(400, "text must be a string", param="text")
        self._texts.check(len(text))  # before anything looks at it
        self._opened().add(text)

    def _opened(self) -> _Text:
        """The text that is open."""
        if self._open is None:
            assert self._configured is not None
            self._open = _Text(*self._configured)
            self._texts.add(self._open)
        return self._open

    def _end_text(self, is_asked: bool = False) -> None:
        """No more of the open text comes. One that is asked to end ends, though nothing was said in it."""
        if self._open is not None or is_asked:
            self._opened().end()
        self._open = None

    async def _speak(self) -> None:
        """Speak the texts, one after another."""
        try:
            while (text := await self._texts.first()) is not None:
                spoken = await self._speak_text(text)
                self._texts.pop()
                self._open = None if self._open is text else self._open  # it has failed
                await self._messages.send({"type": "session.done", "total_sentences": spoken})
        except WebSocketDisconnect:
            pass
        except Exception:
            await self._end(self._caller.bug())

    async def _speak_text(self, text: _Text) -> int:
        """Speak a text; the number of those that were spoken, 0 or 1."""
        if not await text.begin():
            return 0
        received = time.perf_counter()
        try:
            speech = await speech_of(self._caller, text.script, text.config)
            session = self._caller.begin(speech.settled(), text.format, received)
        except ApiError as error:
            await self._tell(error)
            return 0
        try:
            await self._send_audio(session, text)
        finally:
            session.close()
        return 1

    async def _send_audio(self, session: Session, text: _Text) -> None:
        is_streamed, audio_format, named = text.config.stream_audio, text.format, {"sentence_index": self._spoken}
        begun, sent, failed = False, 0, False
        self._spoken += 1
        try:
            while data := await (session.read() if is_streamed else session.read_all()):
                if not begun:
                    shown = {"format": audio_format.name, "sample_rate": audio_format.sample_rate}
                    await self._messages.send({"type": "audio.start", **named, **shown, "seed": session.speech.seed})
                begun = True
                self._idle.restart()
                await self._messages.send_bytes(data)
                sent += len(data)
                if not is_streamed:
                    break
        except ApiError as error:
            failed = True
            await self._tell(error)
        if begun:
            await self._messages.send({"type": "audio.done", **named, "total_bytes": sent, "error": failed})

    async def _tell(self, error: ApiError) -> None:
        """Tell an error after which the connection goes on."""
        more = {} if error.retry_after is None else {"retry_after": error.retry_after}
        await self._messages.send({"type": "error", "message": error.message, **error.body, **more})

    async def _end(self, error: ApiError) -> None:
        """Tell an error that ends the connection."""
        try:
            await self._tell(error)
            await self._messages.close(error)
        except WebSocketDisconnect:
            pass
