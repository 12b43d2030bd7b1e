"""The engine behind the routes: who is admitted, what is in progress, and how full it is."""

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
from .places import Places, room
from .request import Speech
from .session import Session

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ENCODER_THREADS = 4
DECODER_THREADS = 2  # of audio that requests bring: their own, so that running streams never wait for it
STARTING, READY, DRAINING, FAILED = "starting", "ok", "draining", "failed"
LONGEST_RETRY = 30  # seconds: some clients give up where they are told to wait longer


class SpeechService:
    """One engine and its requests. All of it belongs to one event loop.

    Attributes:
        settings: of the server.
        metrics: what it counts.
        sessions: requests that are generated or sent.
        voices: that can be named.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None):
        self.settings, self.metrics = settings, metrics or Metrics()
        self.sessions: set[Session] = set()
        self.voices = VoiceStore(settings.voices_folder, settings.model)
        self._places: set[Places] = set()
        self._engine: Engine | None = None
        self._state = STARTING
        self._pool = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="dia-encode")
        self._decoders = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="dia-decode")
        self._decoding = 0
        self._buffered = 0
        self._generation_seconds = 2.0  # of a request, a running mean
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
            ApiError: 503, it is not loaded yet.
        """
        if self._engine is None:
            raise self._unavailable()
        return self._engine

    @property
    def state(self) -> str:
        """starting, ok, draining or failed."""
        return FAILED if self._engine is not None and not self._engine.usable else self._state

    def ready(self, engine: Engine) -> None:
        """Requests may come."""
        self.attach(engine)
        self._state = READY

    def attach(self, engine: Engine) -> None:
        """Work with an engine; requests of clients are still refused."""
        if self._engine is not engine:
            self._engine = engine
            engine.observe_launches(self.metrics.launched)
            dtype = str(engine.dtype).removeprefix("torch.")
            self.metrics.model.labels(self.settings.model, dtype, str(engine.device)).set(1)
            self.voices.attach(engine)

    def drain(self) -> None:
        """Refuse whatever comes from now on."""
        self._state = DRAINING

    @property
    def slots(self) -> int:
        """Requests that can run at the same time."""
        return self._engine.max_slots if self._engine is not None else 0

    @property
    def slots_used(self) -> int:
        """Slots that are busy. A script in pieces takes several, or for a moment none."""
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
        places: Places | None = None,
    ) -> Session:
        """Admit a request. Its place is taken in the same step as the check, or a flood would pass it.

        Args:
            places: of `reserve`, one of which it has.

        Raises:
            ApiError: 429, as many run and wait as may; 503, the server is starting, draining or has failed.
        """
        if places is None:
            self.check_state()
            self._find_room(key)
        session = Session(self, speech, audio_format, key=key, request_id=request_id, received=received, places=places)
        self.sessions.add(session)
        return session

    @contextmanager
    def reserve(self, count: int, key: int) -> Iterator[Places]:
        """Places for up to so many requests, as many as there is room for; also while the server drains.

        Raises:
            ApiError: as `begin`, if there is room for none.
        """
        self.check_state()
        places = Places(min(count, self._find_room(key)), key)
        self._places.add(places)
        try:
            yield places
        finally:
            self._places.discard(places)

    def _find_room(self, key: int) -> int:
        """Places that are free for a key.

        Raises:
            ApiError: 429, there is none.
        """
        most = self.settings.max_per_key
        found = room(self.sessions, self._places, most=self.slots + self.max_waiting, key=key, most_per_key=most)
        if found.left_of_key is not None and found.left_of_key <= 0:
            self._refuse()
            raise ApiError(
                429, f"this API key has {most} requests in progress, the most that it may have",
                code="key_limit", retry_after=self.retry_after(),
            )  # fmt: skip
        if found.left <= 0:
            raise self.full()
        return found.free

    def check_state(self) -> None:
        """Check that requests are taken.

        Raises:
            ApiError: 503.
        """
        if self.state != READY:
            self._refuse()
            raise self._unavailable()

    def full(self) -> ApiError:
        """The error of a request for which there is no room."""
        self._refuse()
        message = f"{self.running} requests are running and {self.waiting} waiting, no more may wait"
        return ApiError(429, message, code="queue_full", retry_after=self.retry_after())

    def retry_after(self) -> int:
        """Whole seconds after which a slot may be free."""
        turns = 1 + self.waiting / max(1, self.slots)
        return min(LONGEST_RETRY, max(1, math.ceil(turns * self._generation_seconds)))

    def slot_free(self, session: Session) -> None:
        """Called by a session when the engine's work on it is over."""
        if session.started and not session.speech.arrives:
            seconds = time.perf_counter() - session.started
            self._generation_seconds += 0.2 * (seconds - self._generation_seconds)
            if session.generated_seconds and seconds > 0:
                self.metrics.real_time.observe(session.generated_seconds / seconds)

    def end(self, session: Session) -> None:
        """Called by a session at its end."""
        self.sessions.discard(session)

    def kept(self, size: int) -> None:
        """Called by sessions: so many bytes more wait for readers. Beyond the limit the slowest is dropped."""
        self._buffered += size
        if size > 0 and self._buffered > self.settings.max_buffered_mb * 1e6:
            slowest = max(self.sessions, key=lambda session: session.buffered)
            logger.warning(
                "dropped a reader", extra={"fields": {"request": slowest.request_id, "bytes": slowest.buffered}}
            )
            slowest.fail(ApiError(503, "too much audio waited to be read", code="too_slow"))

    async def in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def decode(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function on what a request brings, before it has a place. No more wait for that than for a slot.

        Raises:
            ApiError: 429, as many wait as may; and what the function raises.
        """
        if self._decoding >= DECODER_THREADS + self.max_waiting:
            self._refuse()
            message = f"audio of {self._decoding} requests is waiting to be decoded, no more may wait"
            raise ApiError(429, message, code="queue_full", retry_after=self.retry_after())
        self._decoding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)
        finally:
            self._decoding -= 1

    async def idle(self) -> None:
        """Return when no request is left."""
        while self.sessions or self._places:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """End what is left."""
        for session in list(self.sessions):
            session.close()
        for pool in (self._pool, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        self.voices.close()

    def _refuse(self) -> None:
        self.metrics.requests.labels("refused").inc()

    def _unavailable(self) -> ApiError:
        state = self.state
        words = {STARTING: "the model is being loaded", DRAINING: "the server is shutting down"}
        return ApiError(503, words.get(state, "the engine has failed"), code=state, retry_after=5)
