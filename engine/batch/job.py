"""A batch job: keeps all slots of an engine busy, writes each file atomically and records every result.

There are two threads more than slots. Each takes the next line, waits for its audio and writes the file: a free slot
always finds a waiting request, and only that many lines are in memory.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..devices.device import computing
from ..files.audio import encode_audio
from ..files.output import check_replaceable
from ..longform.options import SpeechOptions
from ..longform.parsing import parse_scripts
from ..longform.script import Script
from ..messages import described, is_out_of_memory
from ..runtime.request import Request
from .manifest import Manifest, Record
from .script_file import Line, script_arguments

if TYPE_CHECKING:
    from ..engine import Engine

AHEAD = 2  # requests that wait for a slot, beyond those that run
LINE_ERRORS = (ValueError, TypeError, OSError, RuntimeError)


@dataclass
class Outcome:
    """Totals of a job.

    Attributes:
        made: files written.
        cut: files among them whose audio `max_tokens` cut.
        failed: lines that failed.
        seconds: seconds of audio written.
    """

    made: int = 0
    cut: int = 0
    failed: int = 0
    seconds: float = 0.0

    def count(self, record: Record) -> None:
        if record.error is not None:
            self.failed += 1
            return
        self.made += 1
        self.cut += record.finish_reason == "length"
        self.seconds += record.seconds or 0.0


@dataclass
class LineRenderer:
    """Turns lines of a script file into audio. On Ray there are several, each in its own process.

    Attributes:
        engine: closed by `run_job` only.
        folder: output folder.
        suffix: file extension, such as ".wav".
        prompts: folder that relative audio prompt paths refer to.
        defaults: sampling parameters for lines that do not set them.
        draw_seed: returns a new seed, for lines without one.
        speech: speech options for lines that do not set them.
        options: options that affect the audio; files made with other values are made again.
    """

    engine: "Engine"
    folder: Path
    suffix: str
    prompts: Path
    defaults: Mapping[str, Any]
    draw_seed: Callable[[], int]
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    options: Mapping[str, Any] = field(default_factory=dict)

    def render(self, line: Line) -> tuple[Record, bytes]:
        """Generate a line; returns its record and the content of its file. A line's own errors go into the record.

        Raises:
            ValueError: the format cannot hold the audio.
            MemoryError, RuntimeError: there is no memory left, or the engine cannot work any more.
        """
        seed: int | None = None
        name = f"{line.id}{self.suffix}"
        try:
            if (self.folder / name).exists():  # else it may be on another machine
                check_replaceable(self.folder / name)
            request = self._request(line)
            seed = request.seed
            (generation,) = self.engine.run_requests([request])
            if generation.audio is None or not len(generation.audio):
                raise ValueError(f"the model generated no audio (seed {seed}); try another seed")
        except LINE_ERRORS as error:
            if not self.engine.usable or isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
                raise
            return Record(line.id, seed=seed, error=described(error), request=line.digest(self.options)), b""
        content = encode_audio(self.folder / name, generation.audio, self.engine.sample_rate)
        return Record(
            line.id, name, round(generation.duration, 3), seed, generation.finish_reason,
            request=line.digest(self.options),
        ), content  # fmt: skip

    def _request(self, line: Line) -> Request | Script:
        arguments = script_arguments(line, self.prompts, self.defaults, self.speech)
        if arguments["seed"] is None:
            arguments["seed"] = self.draw_seed()
        engine = self.engine
        with computing(engine.device):
            (request,) = parse_scripts(
                **arguments, settings=engine.long_form, config=engine.config, max_rows=engine.max_rows,
                defaults=engine.defaults, codec=lambda: engine.codec,
            )  # fmt: skip
        return request


def run_job(
    renderer: LineRenderer,
    manifest: Manifest,
    lines: Iterator[Line],
    on_record: Callable[[Record], Any],
    left: int | None = None,
) -> None:
    """Make the files of some lines, and close the engine.

    Args:
        renderer: of this process.
        manifest: of the folder that the files go to.
        lines: that the manifest does not have; taken one by one, as slots become free.
        on_record: told of each end, in this thread.
        left: how many lines there are, if that is known.

    Raises:
        MemoryError, OSError, RuntimeError, ValueError: what ended the job, see `LineRenderer.render`. Then, and after
            KeyboardInterrupt or SystemExit, the manifest lists every complete file.
    """
    workers = renderer.engine.max_slots + AHEAD
    with _workers(renderer, manifest, lines, workers if left is None else min(workers, left)) as ends:
        for end in ends:
            if isinstance(end, BaseException):
                raise end
            on_record(end)


@contextmanager
def _workers(
    renderer: LineRenderer, manifest: Manifest, lines: Iterator[Line], count: int
) -> Iterator[Iterator[Record | BaseException]]:
    """Threads that make the lines and record them, where Ctrl-C does not reach them -> the ends, as they happen."""
    ends: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
    taking, stopped = threading.Lock(), threading.Event()

    def take() -> Line | None:
        with taking:
            return None if stopped.is_set() else next(lines, None)

    def work() -> None:
        try:
            while (line := take()) is not None:
                record, content = renderer.render(line)
                ends.put(manifest.keep(record, content))
        except BaseException as error:
            stopped.set()
            ends.put(error)
        finally:
            ends.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]

    def until_all_have_ended() -> Iterator[Record | BaseException]:
        running = len(threads)
        while running:
            end = ends.get()
            if end is None:
                running -= 1
            else:
                yield end

    try:
        for thread in threads:
            thread.start()
        yield until_all_have_ended()
    finally:
        stopped.set()
        renderer.engine.close()  # those that wait for audio end with an error
        for thread in threads:
            if thread.ident is not None:
                thread.join()
