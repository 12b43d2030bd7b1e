"""One request for speech: runs it in the engine, encodes the chunks and buffers them until the client has read them.

The engine never waits for a client: a slow reader costs memory (see `Settings.max_buffered_mb`), not a slot.
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
from .admission import Reservation
from .request import Speech

if TYPE_CHECKING:
    from .service import SpeechService

logger = logging.getLogger(__name__)

TRIES = 3  # attempts, with new seeds, if the model generates no audio and the request names no seed


class Session:
    """The encoded audio of one request, for one reader.

    Attributes:
        speech: what to generate.
        format: how to encode it.
        key: number of the client's API key; 0 if the server has none.
        request_id: identifies the request in log lines.
        reservation: whose place the request uses; None if it has a place of its own.
        generating: whether the request still waits for a slot or occupies one.
        buffered: encoded bytes that the reader has not read.
        sent_seconds: seconds of audio that the reader has read.
        frames: codec frames generated; 0 until generation has ended.
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
        reservation: Reservation | None = None,
    ):
        """Use `SpeechService.begin`. `received` is the arrival time of the request, by `time.perf_counter`."""
        self.speech, self.format, self.key, self.request_id = speech, audio_format, key, request_id
        self.reservation = reservation
        self.generating, self.buffered, self.sent_seconds, self.frames = True, 0, 0.0, 0
        self._service, self._received = service, received or time.perf_counter()
        self._stream: AudioStream[np.ndarray] | None = None
        self._pieces: deque[tuple[bytes, float]] = deque()
        self._changed = asyncio.Event()
        self._error: ApiError | None = None
        self._complete = self._closed = False
        self._first_audio_at = self._slot_at = self._read_at = 0.0  # by `time.perf_counter`; 0.0 before
        self._underrun_seconds = self._generated_seconds = 0.0
        self._unencoded_seconds = 0.0  # audio that the encoder holds back; counted with the bytes that come next
        self._samples = 0  # of the whole file, once it is complete
        self._task = asyncio.create_task(self._run())
        self._wait_timer = asyncio.get_running_loop().call_later(service.settings.max_wait, self._on_wait_timeout)

    @property
    def started(self) -> float:
        """When the request got a slot, by `time.perf_counter`; 0.0 while it waits."""
        if not self._slot_at and self._stream is not None:
            self._slot_at = self._stream.started
        return self._slot_at

    @property
    def read_to_end(self) -> bool:
        """Whether the reader has read all audio."""
        return self._read_at > 0

    async def read(self) -> bytes | None:
        """The next encoded bytes, never empty; None at the end.

        Raises:
            ApiError: the request failed.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._complete:
                self._mark_read()
                return None
            await self._wait_for_change()
        data, seconds = self._pieces.popleft()
        self._unbuffer(len(data))
        self.sent_seconds += seconds
        return data

    async def read_all(self) -> bytes:
        """Wait until generation has ended; returns the whole file. It stays in `buffered` until `close`.

        Raises:
            ApiError: the request failed.
        """
        while self._error is None and not self._complete:
            await self._wait_for_change()
        if self._error is not None:
            raise self._error
        self._mark_read()
        self.sent_seconds += sum(seconds for _, seconds in self._pieces)
        return with_sizes(self.format, b"".join(data for data, _ in self._pieces), self._samples)

    async def failure(self) -> None:
        """Return when the request fails, which it can after `read_all`: the server may drop its buffer."""
        while self._error is None:
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _mark_read(self) -> None:
        self._read_at = self._read_at or time.perf_counter()
        self.sent_seconds += self._unencoded_seconds
        self._unencoded_seconds = 0.0

    def fail(self, error: ApiError) -> None:
        """End the request with an error for the reader, and drop its buffered audio."""
        self._error = self._error or error
        self._drop_buffered()
        self._task.cancel()
        self._release_slot()
        self._changed.set()

    def close(self) -> None:
        """Free the slot, drop buffered audio and log the outcome. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._drop_buffered()
        self._task.cancel()
        self._release_slot()
        self._service.end(self)
        self._report("failed" if self._error else "finished" if self.read_to_end else "aborted")

    async def _run(self) -> None:
        service = self._service
        try:
            for _ in range(TRIES):
                output = await self._generate()
                if output.seconds or not self.speech.can_try_again:
                    break
                self.speech = self.speech.with_another_seed()
            if not output.seconds:
                message = f"the model generated no audio for this input (seed {self.speech.seed})"
                raise ApiError(400, message, param="input", code="no_audio")
            self._put(await service.in_thread(output.finish), 0.0)
            self._samples, self._complete = output.samples, True
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
            self._release_slot()
            self._changed.set()

    async def _generate(self) -> Output:
        """Generate and encode; returns the output, whose `seconds` are 0 if the model generated nothing."""
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
        """Buffer bytes for the reader, and record the longest stall of a player that started with the first chunk."""
        now = time.perf_counter()
        self._service.metrics.audio_seconds.inc(seconds)
        if self._first_audio_at:
            self._underrun_seconds = max(self._underrun_seconds, now - self._first_audio_at - self._generated_seconds)
        elif data:  # until now the encoder held the first samples back
            self._first_audio_at = now
            self._wait_timer.cancel()
            self._service.metrics.first_audio.observe(now - self._received)
        self._generated_seconds += seconds
        self._unencoded_seconds += seconds
        if data:
            self._pieces.append((data, self._unencoded_seconds))
            self._unencoded_seconds = 0.0
            self.buffered += len(data)
            self._changed.set()
            self._service.adjust_buffered(len(data))

    def _on_wait_timeout(self) -> None:
        if self.generating and not self.started:
            waited = self._service.settings.max_wait
            self.fail(
                ApiError(
                    503, f"no slot became free within {waited:g} seconds", code="waited_too_long",
                    retry_after=self._service.retry_after(),
                )
            )  # fmt: skip

    def _release_slot(self) -> None:
        """Stop generating. Called at the end, however the request ended."""
        _ = self.started  # remember it: it cannot be read from a closed stream
        if self._stream is not None:
            self._stream.close()
        if self.generating:
            self.generating = False
            self._wait_timer.cancel()
            self._service.slot_free(self)

    def _drop_buffered(self) -> None:
        self._pieces.clear()
        self._unbuffer(self.buffered)

    def _unbuffer(self, size: int) -> None:
        self.buffered -= size
        self._service.adjust_buffered(-size)

    def _report(self, outcome: str) -> None:
        """Count the outcome in the metrics and log it. `outcome` is finished, failed or aborted."""
        ended = self._read_at or time.perf_counter()
        self._count(outcome, ended)
        logger.info("speech", extra={"fields": self._log_fields(outcome, ended)})

    def _count(self, outcome: str, ended: float) -> None:
        metrics = self._service.metrics
        metrics.requests.labels(outcome).inc()
        metrics.sent_seconds.labels(outcome).inc(self.sent_seconds)
        if self.started:
            metrics.queue.observe(self.started - self._received)
        if outcome == "finished":
            metrics.request.observe(ended - self._received)
            if not self.speech.arrives:  # otherwise the text may have caused the pause
                metrics.underrun.observe(self._underrun_seconds)

    def _log_fields(self, outcome: str, ended: float) -> dict[str, Any]:
        error = self._error
        fields = {
            "request": self.request_id, "outcome": outcome, "sent_seconds": round(self.sent_seconds, 3),
            "first_audio": round(self._first_audio_at - self._received, 4) if self._first_audio_at else None,
            "waited": round(self.started - self._received, 4) if self.started else None,
            "seconds": round(ended - self._received, 3), "format": self.format.name, "seed": self.speech.seed,
            "bytes_of_text": len(self.speech.script.encode("utf-8", "replace")),
            "error": (error.code or error.status) if error else None,
            "param": error.param if error else None,
        }  # fmt: skip
        if self._service.settings.log_text:  # an error message may quote the script
            fields["reason"] = error.message if error else None
            fields["text"] = self.speech.script
        return fields

    @property
    def generated_seconds(self) -> float:
        """Seconds of audio generated so far."""
        return self._generated_seconds
