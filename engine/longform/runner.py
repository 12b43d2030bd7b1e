"""Starts requests: single ones in the engine's thread, scripts in pieces as `ScriptTask`s."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch

from ..codec import Codec
from ..codec.windowed import CodeWindows, Decoded
from ..devices.precision import full_float32
from ..longform_settings import LongFormSettings
from ..model.config import DiaConfig
from ..runtime.call import Call
from ..runtime.chunking import ChunkSizes
from ..runtime.engine_thread import EngineThread
from ..runtime.request import Request
from ..text.tokenizer import encode_text
from .assembly import Assembler
from .calls import ScriptCall
from .options import SpeechOptions
from .planning.source import Arriving, Feeder, running_loop
from .script import Script
from .script_task import ScriptContext, ScriptTask


class RequestRunner:
    """Starts the requests and scripts of calls."""

    def __init__(
        self,
        thread: EngineThread,
        windows: CodeWindows,
        codec: Codec | None,
        config: DiaConfig,
        settings: LongFormSettings,
        *,
        frames_per_second: float,
        max_rows: int,
    ):
        self._thread, self._windows, self._codec = thread, windows, codec
        self._config, self._settings = config, settings
        self._frames_per_second, self._max_rows = frames_per_second, max_rows

    def start(
        self,
        items: Collection[Request | Script],
        call: Call,
        sizes: ChunkSizes,
    ) -> None:
        """Start requests and scripts, whose prompts must be codes. The results go to the call.

        Args:
            call: from `call_for` with the same items.

        Raises:
            RuntimeError: as `EngineThread.submit`; or a text comes from the event loop that this call would block.
        """
        if not isinstance(call, ScriptCall):
            self._thread.submit([item for item in items if isinstance(item, Request)], call, sizes)
            return
        if any(isinstance(item, Script) and item.loop is not None and item.loop is running_loop() for item in items):
            raise RuntimeError(
                "this text comes from the event loop that this call would block: use `async for` over `astream` instead"
            )
        context = self._script_context()
        for index, item in enumerate(items):
            if isinstance(item, Request):
                self._thread.submit([item], call, sizes, first_index=index)
            else:
                self._start_script(item, index, call, sizes, context)

    def _start_script(
        self, script: Script, index: int, call: ScriptCall, sizes: ChunkSizes, context: ScriptContext
    ) -> None:
        source = script.source()
        task = ScriptTask(
            script.request, index, call, source, script.options, sizes, context, is_split=script.is_split
        )  # fmt: skip
        task.start()
        if script.parts is not None and isinstance(source, Arriving):
            Feeder(script.parts, source, call, task.wake, task.fail, script.loop).start()

    def _script_context(self) -> ScriptContext:
        encoder = self._config.encoder
        return ScriptContext(
            submit=self._thread.submit,
            make_assembler=self._assembler,
            encode=lambda text: encode_text(text, encoder.max_position_embeddings, encoder.vocab_size),
            settings=self._settings,
            frames_per_second=self._frames_per_second,
            max_rows=self._max_rows,
            max_delay=self._config.max_delay,
            slots=self._thread.scheduler.runner.max_slots,
        )

    def _assembler(self, sizes: ChunkSizes, options: SpeechOptions) -> Assembler:
        codec, workers = self._codec, self._thread.scheduler.workers
        return Assembler(
            self._decode, self._windows.samples, self._windows.receptive_field, sizes, options,
            hop=codec.hop_length if codec else 1,
            frames_per_second=self._frames_per_second,
            sample_rate=codec.sample_rate if codec else None,
            windows_at_once=1 if workers is None else 1 + workers.count,  # the engine's thread helps
        )  # fmt: skip

    def _decode(self, codes: np.ndarray, first: int, last: int | None) -> Decoded:
        """Decode a window: in the engine's thread between two steps, or by its workers."""

        def work() -> Decoded:
            with full_float32():
                return self._thread.scheduler.decode_now(torch.from_numpy(codes), first, last)

        return self._thread.run(work)


def call_for(items: Iterable[Request | Script], **options: Any) -> Call:
    """The `Call`, or `ScriptCall` if there are scripts, for these items. `options` are those of `Call`."""
    items = list(items)
    planned = any(isinstance(item, Script) for item in items)
    return (ScriptCall if planned else Call)(len(items), **options)
