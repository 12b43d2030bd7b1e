"""One request on its way: the engine's chunks, encoded and kept until the client takes them.

The engine never waits for a client: what is made is kept here, so a slow reader costs memory (see
`Settings.max_buffered_mb`) and not a slot.
"""

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.engine_thread import EngineFull
from ...runtime.stream import AudioStream
from ..audio.encoders import Output, with_sizes
from ..audio.formats import AudioFormat
from ..errors import ApiError, bad_request
from .places import Places
from .request import Speech

if TYPE_CHECKING:
    from .service import SpeechService

logger = logging.getLogger(__name__)

TRIES = 3  # of a request without a seed of its own, for which the model ends at once


class Session:
    """The audio of one request, for one reader.

    Attributes:
        speech, format: what is made.
        key: number of the API key that asked for it.
        request_id: of log lines.
        places: one of which it has, of a caller who holds several.
        generating: whether the engine is still at work on it, or will be.
        buffered: bytes that wait for the reader.
        sent_seconds: of audio that the reader has taken.
        frames: generated, once it has ended.
    """

    def __init__(
        self,
        service: "SpeechService",
        speech: Speech,
        audio_format: AudioFormat,
        *,
        key: int = 0,
        request_id: str = "",
        received: float = 0.0,
        places: Places | None = None,
    ):
        """`received` is when the request came in, in seconds of `time.perf_counter`. Use `SpeechService.begin`."""
        self.speech, self.format, self.key, self.request_id = speech, audio_format, key, request_id
        self.places = places
        self.generating, self.buffered, self.sent_seconds, self.frames = True, 0, 0.0, 0
        self._service, self._received = service, received or time.perf_counter()
        self._stream: AudioStream[np.ndarray] | None = None
        self._pieces: deque[tuple[bytes, float]] = deque()
        self._arrived = asyncio.Event()
        self._error: ApiError | None = None
        self._whole = self._closed = False
        self._first = self._slot = self._underrun = self._made = self._read_at = 0.0
        self._samples = 0  # of the whole file
        self._held = 0.0  # seconds of audio since the last bytes: those that come next have them
        self._task = asyncio.create_task(self._run())
        self._patience = asyncio.get_running_loop().call_later(service.settings.max_wait, self._lose_patience)

    @property
    def started(self) -> float:
        """When it got a slot, in seconds of `time.perf_counter`; 0.0 while it waits."""
        if not self._slot and self._stream is not None:
            self._slot = self._stream.started
        return self._slot

    @property
    def read_to_end(self) -> bool:
        """Whether the reader has all of it."""
        return self._read_at > 0

    async def read(self) -> bytes | None:
        """The next bytes, never empty; None at the end.

        Raises:
            ApiError: it failed.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._whole:
                self._note_end()
                return None
            await self._arrival()
        data, seconds = self._pieces.popleft()
        self._release(len(data))
        self.sent_seconds += seconds
        return data

    async def read_all(self) -> bytes:
        """The whole file, once it is made. Until `close` it counts as waiting for the reader.

        Raises:
            ApiError: it failed.
        """
        while self._error is None and not self._whole:
            await self._arrival()
        if self._error is not None:
            raise self._error
        self._note_end()
        self.sent_seconds += sum(seconds for _, seconds in self._pieces)
        return with_sizes(self.format, b"".join(data for data, _ in self._pieces), self._samples)

    async def failure(self) -> None:
        """Return when it fails; for who has read all of it."""
        while self._error is None:
            await self._arrival()

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _note_end(self) -> None:
        self._read_at = self._read_at or time.perf_counter()
        self.sent_seconds += self._held
        self._held = 0.0

    def fail(self, error: ApiError) -> None:
        """End it with an error for the reader; what waits for him is dropped."""
        self._error = self._error or error
        self._drop()
        self._task.cancel()
        self._give_up_slot()
        self._arrived.set()

    def close(self) -> None:
        """Nobody reads any more: free the slot and write down how it ended. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._drop()
        self._task.cancel()
        self._give_up_slot()
        self._service.end(self)
        self._note("failed" if self._error else "finished" if self.read_to_end else "aborted")

    async def _run(self) -> None:
        service = self._service
        try:
            for _ in range(TRIES):
                output = await self._generate()
                if output.seconds or not self.speech.can_try_again:
                    break
                self.speech = self.speech.with_another_seed()
            if not output.seconds:
                message = f"the model says nothing for this input, seed {self.speech.seed}"
                raise ApiError(400, message, param="input", code="no_audio")
            self._put(await service.in_thread(output.finish), 0.0)
            self._samples, self._whole = output.samples, True
        except ApiError as error:
            self._error = self._error or error
        except EngineFull:
            self._error = self._error or service.full()
        except (TypeError, ValueError) as error:
            self._error = self._error or bad_request(error)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request": self.request_id}})
            self._error = self._error or ApiError(500, "generation failed; the server's log says why", code="failed")
        finally:
            self._give_up_slot()
            self._arrived.set()

    async def _generate(self) -> Output:
        """Generate and encode; what there is has no seconds if the model ended at once."""
        service = self._service
        if self.speech.arrives:
            self._stream = self.speech.open(service.engine)
        else:
            self._stream = await service.in_thread(self.speech.open, service.engine)
        output = Output(service.engine.sample_rate, self.format)
        async for chunk in self._stream:
            seconds = output.seconds
            data = await service.in_thread(output.encode, chunk)
            self._put(data, output.seconds - seconds)
        result: Any = self._stream.result
        self.frames = result.frames
        return output

    def _put(self, data: bytes, seconds: float) -> None:
        """Keep bytes for the reader, and how long a player would have waited for them."""
        now = time.perf_counter()
        self._service.metrics.audio_seconds.inc(seconds)
        if self._first:
            self._underrun = max(self._underrun, now - self._first - self._made)
        elif data:  # before, the encoder holds the first samples back
            self._first = now
            self._patience.cancel()
            self._service.metrics.first_audio.observe(now - self._received)
        self._made += seconds
        self._held += seconds
        if data:
            self._pieces.append((data, self._held))
            self._held = 0.0
            self.buffered += len(data)
            self._arrived.set()
            self._service.kept(len(data))

    def _lose_patience(self) -> None:
        if self.generating and not self.started:
            waited = self._service.settings.max_wait
            self.fail(
                ApiError(
                    503, f"no slot became free within {waited:g} seconds", code="waited_too_long",
                    retry_after=self._service.retry_after(),
                )
            )  # fmt: skip

    def _give_up_slot(self) -> None:
        """Whatever happened, the engine need not go on with it."""
        _ = self.started  # the time is lost with the stream
        if self._stream is not None:
            self._stream.close()
        if self.generating:
            self.generating = False
            self._patience.cancel()
            self._service.slot_free(self)

    def _drop(self) -> None:
        self._pieces.clear()
        self._release(self.buffered)

    def _release(self, size: int) -> None:
        self.buffered -= size
        self._service.kept(-size)

    def _note(self, outcome: str) -> None:
        """Metrics and a line of the log."""
        now, metrics = self._read_at or time.perf_counter(), self._service.metrics
        metrics.requests.labels(outcome).inc()
        metrics.sent_seconds.labels(outcome).inc(self.sent_seconds)
        if self.started:
            metrics.queue.observe(self.started - self._received)
        if outcome == "finished":
            metrics.request.observe(now - self._received)
            if not self.speech.arrives:  # else a pause may be the text's
                metrics.underrun.observe(self._underrun)
        fields = {
            "request": self.request_id, "outcome": outcome, "sent_seconds": round(self.sent_seconds, 3),
            "first_audio": round(self._first - self._received, 4) if self._first else None,
            "waited": round(self.started - self._received, 4) if self.started else None,
            "seconds": round(now - self._received, 3), "format": self.format.name, "seed": self.speech.seed,
            "bytes_of_text": len(self.speech.script.encode("utf-8", "replace")),
            "error": (self._error.code or self._error.status) if self._error else None,
            "param": self._error.param if self._error else None,
        }  # fmt: skip
        if self._service.settings.log_text:  # of which an error may quote a part
            fields["reason"] = self._error.message if self._error else None
            fields["text"] = self.speech.script
        logger.info("speech", extra={"fields": fields})

    @property
    def generated_seconds(self) -> float:
        """Seconds of audio that were made."""
        return self._made
