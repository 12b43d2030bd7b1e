"""The engine behind the routes: admits requests, tracks those in progress, and reports the load."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ...engine import Engine
from ..audio.formats import AudioFormat
from ..errors import ApiError
from ..metrics import Metrics
from ..settings import Settings
from ..voices.store import VoiceStore
from .admission import Reservation, availability
from .request import Speech
from .session import Session

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ENCODER_THREADS = 4
DECODER_THREADS = 2  # decode uploaded audio; separate from the encoders, so that streams never wait for uploads
STARTING, READY, DRAINING, FAILED = "starting", "ok", "draining", "failed"
LONGEST_RETRY = 30  # seconds; some clients give up at once if Retry-After is longer


class SpeechService:
    """One engine and its requests. Every method must be called in the same event loop.

    Attributes:
        settings: settings of the server.
        metrics: its Prometheus metrics.
        sessions: requests that are being generated or sent.
        voices: voices that a request can name.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None):
        self.settings, self.metrics = settings, metrics or Metrics()
        self.sessions: set[Session] = set()
        self.voices = VoiceStore(settings.voices_folder, settings.model)
        self._reservations: set[Reservation] = set()
        self._engine: Engine | None = None
        self._state = STARTING
        self._pool = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="dia-encode")
        self._decoders = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="dia-decode")
        self._decoding = 0
        self._buffered = 0
        self._generation_seconds = 2.0  # moving average of the time a request occupies a slot
        gauge = self.metrics.gauge
        gauge("dia_requests_running", "Requests that have had a slot and have not ended", lambda: self.running)
        gauge("dia_requests_waiting", "Requests that wait for their first slot", lambda: self.waiting)
        gauge("dia_slots", "Requests, and pieces of scripts, that can run at the same time", lambda: self.slots)
        gauge("dia_slots_used", "Slots of the last launch of decode steps", lambda: self.slots_used)
        gauge("dia_queue_size", "Requests that may wait", lambda: self.max_waiting)
        gauge("dia_buffered_bytes", "Audio that waits for slow readers", lambda: self._buffered)

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ApiError: 503, the model is still being loaded.
        """
        if self._engine is None:
            raise self._unavailable()
        return self._engine

    @property
    def state(self) -> str:
        """One of STARTING, READY, DRAINING and FAILED."""
        return FAILED if self._engine is not None and not self._engine.usable else self._state

    def ready(self, engine: Engine) -> None:
        """Accept requests from now on."""
        self.attach(engine)
        self._state = READY

    def attach(self, engine: Engine) -> None:
        """Use an engine. Requests are refused until `ready`."""
        if self._engine is not engine:
            self._engine = engine
            engine.observe_launches(self.metrics.launched)
            dtype = str(engine.dtype).removeprefix("torch.")
            self.metrics.model.labels(self.settings.model, dtype, str(engine.device)).set(1)
            self.voices.attach(engine)

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._state = DRAINING

    @property
    def slots(self) -> int:
        """Requests that can run at the same time."""
        return self._engine.max_slots if self._engine is not None else 0

    @property
    def slots_used(self) -> int:
        """Slots in use. A planned script uses several, and between pieces possibly none."""
        return self.metrics.in_launch if self._engine is not None and self._engine.active_requests else 0

    @property
    def max_waiting(self) -> int:
        """Requests that may wait for a slot."""
        return self.settings.waiting_room(self.slots)

    @property
    def running(self) -> int:
        """Requests that have had a slot and have not ended."""
        return sum(1 for session in self.sessions if session.generating and session.started)

    @property
    def waiting(self) -> int:
        """Requests that wait for their first slot."""
        return sum(1 for session in self.sessions if session.generating and not session.started)

    def begin(
        self,
        speech: Speech,
        audio_format: AudioFormat,
        *,
        key: int = 0,
        request_id: str = "",
        received: float = 0.0,
        reservation: Reservation | None = None,
    ) -> Session:
        """Admit a request. There is no `await` between check and admission, so the limit holds for concurrent requests.

        Args:
            reservation: from `reserve`; the request then uses one of its places.

        Raises:
            ApiError: 429, the server or the key has no room; 503, the server is starting, draining or has failed.
        """
        if reservation is None:
            self.check_state()
            self._find_room(key)
        session = Session(
            self, speech, audio_format, key=key, request_id=request_id, received=received, reservation=reservation
        )
        self.sessions.add(session)
        return session

    @contextmanager
    def reserve(self, count: int, key: int) -> Iterator[Reservation]:
        """Reserve places for `count` requests, or as many as are free. They stay valid while the server drains.

        Raises:
            ApiError: as `begin`, if there is no room at all.
        """
        self.check_state()
        reservation = Reservation(min(count, self._find_room(key)), key)
        self._reservations.add(reservation)
        try:
            yield reservation
        finally:
            self._reservations.discard(reservation)

    def _find_room(self, key: int) -> int:
        """How many more requests of a key can be admitted, at least 1.

        Raises:
            ApiError: 429, none.
        """
        per_key, most = self.settings.max_per_key, self.slots + self.max_waiting
        found = availability(self.sessions, self._reservations, most=most, key=key, most_per_key=per_key)
        if found.of_key is not None and found.of_key <= 0:
            self._refuse()
            raise ApiError(
                429, f"this API key already has {per_key} requests in progress, its limit",
                code="key_limit", retry_after=self.retry_after(),
            )  # fmt: skip
        if found.total <= 0:
            raise self.full()
        return found.free

    def check_state(self) -> None:
        """Check that the server accepts requests.

        Raises:
            ApiError: 503, it does not.
        """
        if self.state != READY:
            self._refuse()
            raise self._unavailable()

    def full(self) -> ApiError:
        """Count a refused request; returns the error to send, 429."""
        self._refuse()
        message = f"the server is full: {self.running} requests are running and {self.waiting} are waiting"
        return ApiError(429, message, code="queue_full", retry_after=self.retry_after())

    def retry_after(self) -> int:
        """Estimated seconds until a slot is free, for the Retry-After header."""
        turns = 1 + self.waiting / max(1, self.slots)
        return min(LONGEST_RETRY, max(1, math.ceil(turns * self._generation_seconds)))

    def slot_free(self, session: Session) -> None:
        """Called by a session when it no longer needs its slot."""
        if session.started and not session.speech.arrives:
            seconds = time.perf_counter() - session.started
            self._generation_seconds += 0.2 * (seconds - self._generation_seconds)
            if session.generated_seconds and seconds > 0:
                self.metrics.real_time.observe(session.generated_seconds / seconds)

    def end(self, session: Session) -> None:
        """Called by a session at its end."""
        self.sessions.discard(session)

    def adjust_buffered(self, size: int) -> None:
        """Called by sessions: buffered audio has changed by `size` bytes. Over the limit, drops the largest buffer."""
        self._buffered += size
        if size > 0 and self._buffered > self.settings.max_buffered_mb * 1e6:
            slowest = max(self.sessions, key=lambda session: session.buffered)
            logger.warning(
                "dropped a reader", extra={"fields": {"request": slowest.request_id, "bytes": slowest.buffered}}
            )
            slowest.fail(ApiError(503, "too much audio waited to be read", code="too_slow"))

    async def in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def decode(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Decode audio that a request brings, in a worker thread, before the request is admitted.

        Raises:
            ApiError: 429, as many requests wait to be decoded as may wait for a slot.
            Exception: what the function raises.
        """
        if self._decoding >= DECODER_THREADS + self.max_waiting:
            self._refuse()
            message = f"the server is full: audio of {self._decoding} requests is waiting to be decoded"
            raise ApiError(429, message, code="queue_full", retry_after=self.retry_after())
        self._decoding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)
        finally:
            self._decoding -= 1

    async def idle(self) -> None:
        """Wait until no request is in progress."""
        while self.sessions or self._reservations:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Abort all requests and stop the worker threads."""
        for session in list(self.sessions):
            session.close()
        for pool in (self._pool, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        self.voices.close()

    def _refuse(self) -> None:
        self.metrics.requests.labels("refused").inc()

    def _unavailable(self) -> ApiError:
        state = self.state
        reasons = {STARTING: "the model is being loaded", DRAINING: "the server is shutting down"}
        return ApiError(503, reasons.get(state, "the engine has failed"), code=state, retry_after=5)
