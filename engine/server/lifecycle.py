"""From loading to the first sound: a server is ready when a request has been spoken."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from ..engine import Engine
from .audio.encoders import Output
from .audio.formats import AudioFormat
from .speech.service import SpeechService
from .voices.mint import DEFAULT, SEEDS, check_room
from .voices.voice import Prompt

logger = logging.getLogger(__name__)

WARM_UP_FRAMES = 60


class Startup:
    """Loads and warms up an engine beside the event loop, which says meanwhile that it is starting.

    Attributes:
        error: why it could not be loaded.
        on_failure: called then.
    """

    def __init__(self, service: SpeechService, engine: Engine | None):
        self._service, self._engine = service, engine
        self._owns = engine is None
        self._task: asyncio.Task[None] | None = None
        self._loader: threading.Thread | None = None
        self.error: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None

    @property
    def is_loading(self) -> bool:
        """Whether a thread is at work on the engine, which it goes on with after `end`."""
        return self._loader is not None and self._loader.is_alive()

    def begin(self) -> None:
        """Start; needs a running event loop."""
        self._task = asyncio.create_task(self._run())

    async def finished(self) -> None:
        """Wait until requests are taken.

        Raises:
            BaseException: `error`.
        """
        if self._task is not None:
            await asyncio.shield(self._task)
        if self.error is not None:
            raise self.error

    async def end(self) -> None:
        """Release all of it."""
        if self._task is not None:
            self._task.cancel()
        self._service.close()
        if self._owns and self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    async def _run(self) -> None:
        try:
            started = time.perf_counter()
            if self._engine is None:
                self._engine = await self._load_aside()
            engine = self._engine
            check_room(engine)
            self._service.attach(engine)
            await self._warm_up(engine)
            # What is there now stays: the garbage collector need not look at it again while requests wait.
            gc.collect()
            gc.freeze()
            self._service.ready(engine)
            logger.info("ready after %.1f s: %r", time.perf_counter() - started, engine)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.error = error
            self.on_failure()

    async def _load_aside(self) -> Engine:
        """`_load` in a thread of its own: those of the event loop are waited for at its end, and a load takes long."""
        loading: Future[Engine] = Future()

        def load() -> None:
            try:
                engine = self._load()
            except BaseException as error:
                with suppress(InvalidStateError):  # nobody waits any more
                    loading.set_exception(error)
                return
            try:
                loading.set_result(engine)
            except InvalidStateError:
                engine.close()

        self._loader = threading.Thread(target=load, name="dia-load", daemon=True)
        self._loader.start()
        return await asyncio.wrap_future(loading)

    def _load(self) -> Engine:
        settings = self._service.settings
        engine = Engine.load(
            settings.model, quant=settings.quant, dtype=settings.dtype, device=settings.device, codec=settings.codec,
            codec_dtype=settings.codec_dtype, revision=settings.revision, max_slots=settings.slots,
            max_rows=settings.max_rows,
        )  # fmt: skip
        engine.prepare(engine.max_slots)
        return engine

    async def _warm_up(self, engine: Engine) -> None:
        """Speak a request as a client's is spoken, through an encoder; with it the default voice is made."""
        voices = self._service.voices
        for name in SEEDS if self._service.settings.mint else (DEFAULT,):
            await voices.prompt(name)
        prompt = await voices.prompt(DEFAULT)
        if prompt is None or not await asyncio.to_thread(_speak, engine, prompt):
            raise RuntimeError("the request that warms the server up made no audio")


def _speak(engine: Engine, prompt: Prompt) -> bytes:
    """Some mp3 of a few chunks."""
    forced = len(prompt.codes) + 1 + engine.config.max_delay
    rows = min(engine.max_rows, forced + WARM_UP_FRAMES)
    output = Output(engine.sample_rate, AudioFormat("mp3", 24_000))
    # A model that would end at once works none the less.
    stream: Any = engine.stream(
        "Hello, hello, hello.", audio_prompt=prompt.codes, audio_prompt_text=prompt.transcript, seed=0,
        max_tokens=rows, min_tokens=rows - forced,
    )  # fmt: skip
    return b"".join(output.encode(chunk) for chunk in stream) + output.finish()
