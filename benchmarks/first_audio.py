"""Time from text in to the first sound out: streamed here, after the whole generation elsewhere; same weights, one run.

    python -m benchmarks.first_audio --model synthetic:full --dtype bfloat16 --quant int8 --against transformers

Ours is `Engine.stream` from the call to the first chunk. Other runtimes give sound when the last row is made and
decoded: their time is that of `--seconds` of sound, of which `--peer-steps` rows are made; if that is fewer, each other
one is taken to cost the median of those (later rows cost more, so this flatters). Their codec is timed with ours. Then
a long stream is played in simulation: the player starts with the first chunk and takes 44,100 samples per second.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice, pairwise

import torch

from dia_engine import Engine
from dia_engine.codec.windowed import HostCopy, SoundWindows
from dia_engine.runtime.call import Call
from dia_engine.runtime.chunking import ChunkSizes, full_windows
from dia_engine.runtime.request import parse_requests
from dia_engine.runtime.runner import ModelRunner
from dia_engine.runtime.scheduler import Scheduler
from dia_engine.text.tokenizer import encode_text
from dia_engine.weights.source import resolve_model

from .clients import wait_until_idle
from .command import add_json_argument, at_least, output_file, positive, run, write_report
from .memory import WorkingMemory
from .nari import Nari
from .peers import Ours, Transformers
from .player import percentiles
from .plot import draw_timeline, require_matplotlib
from .roofline import synchronize
from .setting import SCRIPT, add_peer_arguments, check_peer_arguments, check_steps, machine, peers

WARM_UP_RUNS = 2


def main() -> None:
    options = _arguments()
    engine = Engine.load(
        options.model, quant=options.quant, dtype=options.dtype, device=options.device, codec_dtype=options.codec_dtype
    )
    cuda = engine.device.type == "cuda"
    frames = round(options.seconds * engine.sample_rate / engine.codec.hop_length)
    options.peer_steps = min(options.peer_steps or (_steps(engine, frames) if cuda else 30), _steps(engine, frames))
    check_steps("--peer-steps", options.peer_steps, engine, untimed=1)
    options.stream_frames = options.stream_frames or (frames if cuda else 80)
    trace = Trace(engine)
    sizes = ChunkSizes().with_defaults(trace.windows.receptive_field)
    print("measuring dia-engine ...", file=sys.stderr)
    report = {**machine(engine), **_setting(options, engine, sizes, frames), **_first_audio(engine, options.runs)}
    write_report(options.json, report)
    report["split"] = _split(trace, sizes, max(3, options.runs // 4))
    report["stream"], report["timeline"] = _long_stream(trace, sizes, options.stream_frames)
    write_report(options.json, report)
    report["codec_work"] = _codec_work(engine, sizes, frames)
    report["codec_errors"] = _codec_errors(options.model, engine)
    ours = Ours(engine.model, f"{options.quant or ''} whole".lstrip())
    codec_seconds = frames * report["codec_work"]["whole_seconds_a_frame"]
    report["whole"] = []
    for runtime in (ours, *_peers(options, engine)):
        report["whole"].append(_whole(runtime, options, engine, frames, codec_seconds))
        write_report(options.json, report)
    print(_table(report))
    if options.png:
        draw_timeline(report, options.png)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_audio", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="synthetic:full", help="hub id, folder or synthetic:... (%(default)s)")
    parser.add_argument("--dtype", help="default: what suits the device")
    parser.add_argument("--quant", help="int8 or nf4; the other runtimes read the weights without")
    parser.add_argument("--codec-dtype", help="default: float32")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--runs", type=at_least(1), default=20, help="streams up to their first chunk (%(default)s)")
    parser.add_argument("--seconds", type=positive, default=10.0, help="sound of a whole generation (%(default)s)")
    parser.add_argument("--stream-frames", type=at_least(1), help="of the long stream (cpu 80, cuda as --seconds)")
    parser.add_argument("--peer-steps", type=at_least(2), help="rows that whole generations make (cpu 30, cuda all)")
    add_peer_arguments(parser)
    add_json_argument(parser)
    parser.add_argument(
        "--png", metavar="FILE", type=output_file, help="draw the long stream there: steps, codec calls, sound played"
    )
    options = parser.parse_args()
    check_peer_arguments(parser, options)
    if options.png:
        require_matplotlib(parser)
    return options


def _setting(options: argparse.Namespace, engine: Engine, sizes: ChunkSizes, frames: int) -> dict:
    return {
        "benchmark": "first_audio",
        "model": options.model,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "quant": options.quant,
        "codec_dtype": str(engine.codec.dtype).removeprefix("torch."),
        "text_bytes": len(_text(engine)),
        "first_chunk_frames": sizes.first_chunk_frames,
        "chunk_frames": sizes.chunk_frames,
        "sample_rate": engine.sample_rate,
        "hop_length": engine.codec.hop_length,
        "whole_frames": frames,
        "peer_steps": options.peer_steps,
    }


def _text(engine: Engine) -> torch.Tensor:
    return encode_text(SCRIPT, engine.config.encoder.max_position_embeddings)


def _steps(engine: Engine, frames: int) -> int:
    """Rows to make for so many frames."""
    return frames + engine.config.max_delay


def _first_audio(engine: Engine, runs: int) -> dict:
    """Seconds from the call to the first chunk, as a caller of `Engine.stream` sees them."""
    seconds = []
    for seed in range(WARM_UP_RUNS + runs):
        started = time.perf_counter()
        with engine.stream(SCRIPT, seed=seed) as stream:
            next(stream)
            seconds.append(time.perf_counter() - started)
        wait_until_idle(engine)  # `Trace` runs the same model in another thread, which one model cannot do at once
    return {"runs": runs, "first_audio_seconds": percentiles(seconds[WARM_UP_RUNS:])}


class Trace:
    """Spans [start, end] in seconds since the start of what the scheduler behind `Engine.stream` does."""

    def __init__(self, engine: Engine):
        self.windows, self.runner = _TracedWindows(engine.codec, self), _TracedRunner(engine.model, self)
        self.scheduler = Scheduler(
            self.runner,
            self.windows,
            max_delay=engine.config.max_delay,
            frames_per_second=engine.sample_rate / engine.codec.hop_length,
        )
        self.engine = engine
        self.text, self.steps, self.codec, self.chunks = [], [], [], []  # chunks: [arrival, samples]

    def now(self) -> float:
        return time.perf_counter() - self.started

    @torch.no_grad()
    def run(self, sizes: ChunkSizes, frames: int, seed: int = 0) -> Iterator[None]:
        """Go on to the next chunk with each `next`."""
        sampling = {"max_tokens": _steps(self.engine, frames) + 1}
        self.text, self.steps, self.codec, self.chunks = [], [], [], []
        self.started = time.perf_counter()
        (request,) = parse_requests(
            SCRIPT, sampling, seed=seed, config=self.engine.config, defaults={}, codec=lambda: self.engine.codec
        )
        call = _TracedCall(self)
        self.scheduler.add(request, 0, call, sizes)
        try:
            given = 0
            while self.scheduler.unfinished:
                self.scheduler.step()
                while given < len(self.chunks):
                    given += 1
                    yield
        finally:
            call.abort()
            self.scheduler.step()


class _TracedCall(Call):
    def __init__(self, trace: Trace):
        super().__init__(1, streaming=True)
        self.trace = trace

    def emit(self, index, audio):
        self.trace.chunks.append([self.trace.now(), len(audio)])


class _TracedRunner(ModelRunner):
    def __init__(self, model, trace: Trace):
        super().__init__(model, max_slots=1)
        self.trace, self.started = trace, []

    def activate(self, slot, request):
        super().activate(slot, request)
        synchronize(self.model.device)
        self.trace.text.append([0.0, self.trace.now()])

    def decode(self, slots, most):
        self.started.append(self.trace.now())
        return super().decode(slots, most)

    def read_status(self):
        status = super().read_status()
        before = self.trace.steps[-1][1] if self.trace.steps else 0.0
        self.trace.steps.append([max(self.started.pop(0), before), self.trace.now()])
        return status

    def forget_launches(self):
        super().forget_launches()
        self.started.clear()


class _TracedWindows(SoundWindows):
    def __init__(self, codec, trace: Trace):
        super().__init__(codec)
        self.trace = trace

    def decode(self, *window):
        span = [self.trace.now(), None]
        self.trace.codec.append(span)
        return _TracedCopy(super().decode(*window), span, self.trace)


class _TracedCopy:
    """A HostCopy that notes when it was first seen to be ready."""

    def __init__(self, copy: HostCopy, span: list, trace: Trace):
        self.copy, self.span, self.trace = copy, span, trace
        self.ready()

    def ready(self) -> bool:
        if self.span[1] is None and self.copy.ready():
            self.span[1] = self.trace.now()
        return self.span[1] is not None

    def wait(self) -> torch.Tensor:
        tensor = self.copy.wait()
        self.span[1] = self.span[1] or self.trace.now()
        return tensor


def _split(trace: Trace, sizes: ChunkSizes, runs: int) -> dict:
    """Where the time to the first chunk goes; the loop alone, without the thread around it."""
    parts = []
    for seed in range(1 + runs):
        chunks = trace.run(sizes, 200, seed)
        next(chunks)
        decoding, arrival = trace.codec[0], trace.chunks[0][0]
        text = trace.text[0][1]
        made = sum(1 for _, end in trace.steps if end <= decoding[0])
        parts.append([text, decoding[0] - text, arrival - decoding[0], made])
        chunks.close()
    text, steps, codec, launches = (statistics.median(column) for column in zip(*parts[1:], strict=True))
    return {"text_seconds": text, "steps_seconds": steps, "codec_seconds": codec, "launches": int(launches)}


def _long_stream(trace: Trace, sizes: ChunkSizes, frames: int) -> tuple[dict, dict]:
    """A stream of so many frames: how a player in real time fares, and what was done when."""
    for _ in islice(trace.run(sizes, frames), 2):  # captures graphs
        pass
    memory, hop = WorkingMemory(trace.engine.device), trace.engine.codec.hop_length
    early, made = None, 0
    for _ in trace.run(sizes, frames):
        made = round(sum(samples for _, samples in trace.chunks) / hop)
        early = memory.peak() if made <= frames / 4 else early
    played = _played(trace.chunks, trace.engine.sample_rate)
    figures = {
        "frames": made, **_underruns(played), "working_bytes_first_quarter": early, "working_bytes": memory.peak(),
    }  # fmt: skip
    timeline = {"text": trace.text, "steps": trace.steps, "codec": trace.codec, "played": played}
    return figures, timeline


def _played(chunks: list[list[float]], sample_rate: int) -> list[list[float]]:
    """When each chunk sounds: at once, or when those before it have been played."""
    spans, free = [], 0.0
    for arrival, samples in chunks:
        start = max(arrival, free)
        free = start + samples / sample_rate
        spans.append([start, free])
    return spans


def _underruns(played: list[list[float]]) -> dict:
    gaps = [after[0] - before[1] for before, after in pairwise(played)]
    return {"chunks": len(played), "underruns": sum(gap > 0 for gap in gaps), "silence_seconds": sum(gaps)}


def _codec_work(engine: Engine, sizes: ChunkSizes, frames: int) -> dict:
    """Decoding in windows of the steady size against decoding the whole, in frames and in time."""
    codec, windows = engine.codec, SoundWindows(engine.codec)
    steady = next(
        window for window in full_windows(sizes, windows.receptive_field) if window.first >= 2 * sizes.chunk_frames
    )
    length, given = steady.stop - steady.start, steady.last - steady.first
    size = (max(frames, length), codec.num_codebooks)
    codes = torch.randint(codec.codebook_size, size, device=codec.device)
    windows.prepare([length])

    def seconds(part: torch.Tensor, first: int, last: int | None, warm_ups: int, times: int) -> float:
        for index in range(warm_ups + times):
            if index == warm_ups:
                synchronize(codec.device)
                started = time.perf_counter()
            with windows.on_stream():
                windows.decode(part, first, last).wait()
        return (time.perf_counter() - started) / times

    window = seconds(codes[:length], steady.first - steady.start, steady.last - steady.start, 1, 5) / given
    # On a GPU the first decode of a length allocates and chooses algorithms; on a CPU it has nothing to prepare.
    whole = seconds(codes[:frames], 0, None, int(codec.device.type == "cuda"), 1) / frames
    return {
        "frames_ratio": length / given,
        "time_ratio": window / whole,
        "window_seconds_a_frame": window,
        "whole_seconds_a_frame": whole,
    }


@torch.no_grad()
def _codec_errors(model: str, engine: Engine) -> dict[str, float]:
    """Of the sound in half precision against that in float32, as a share of the sound's size (deviations)."""
    source, sounds = resolve_model(model), {}
    codes = torch.randint(engine.codec.codebook_size, (30, engine.codec.num_codebooks), device=engine.device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        codec = source.load_codec(device=engine.device, dtype=dtype)
        sounds[str(dtype).removeprefix("torch.")] = codec.synthesize(codes)
    exact = sounds.pop("float32")
    return {name: float((sound - exact).std() / exact.std()) for name, sound in sounds.items()}


def _peers(options: argparse.Namespace, engine: Engine) -> list[Transformers | Nari]:
    if options.against and options.quant:  # they read the weights as they are
        engine = Engine.load(options.model, dtype=engine.dtype, device=engine.device, load_dac=False)
    return peers(options, engine)


def _whole(runtime, options: argparse.Namespace, engine: Engine, frames: int, codec_seconds: float) -> dict:
    """A generation whose sound comes at its end."""
    print(f"measuring {runtime.name} ...", file=sys.stderr)
    text = _text(engine)
    needed, made = _steps(engine, frames), options.peer_steps
    runtime.run(text, 1, 2)  # first calls allocate, compile and fill caches
    timing = runtime.run(text, 1, made - 1)
    # A time of `steps` is a mean over a launch where steps are captured, so that their sum would count launches.
    steps = (made - 1) * statistics.mean(timing.steps) + (needed - made) * statistics.median(timing.steps)
    return {
        "name": runtime.name,
        "steps_made": made,
        "steps_needed": needed,
        "steps_seconds": timing.first + steps,
        "codec_seconds": codec_seconds,
        "first_audio_seconds": timing.first + steps + codec_seconds,
    }


def _table(report: dict) -> str:
    first, split, stream, work = (report[name] for name in ("first_audio_seconds", "split", "stream", "codec_work"))
    name, errors = f"dia-engine {report['quant'] or ''}".rstrip(), report["codec_errors"]
    lines = [
        f"{report['model']} in {report['dtype']} on {report['device']}, {report['threads']} threads, torch "
        f"{report['torch']}, {report['date']}; {report['text_bytes']} bytes of text, codec in {report['codec_dtype']}",
        "",
        f"{name}, streamed: first {report['first_chunk_frames']} frames of sound after {first['p50']:.3f} s (p95 "
        f"{first['p95']:.3f} s, {report['runs']} runs)",
        f"    text {split['text_seconds']:.3f} s, steps {split['steps_seconds']:.3f} s ({split['launches']} launches), "
        f"codec {split['codec_seconds']:.3f} s",
        f"    played in real time: {stream['underruns']} underruns in {stream['chunks']} chunks of up to "
        f"{report['chunk_frames']} frames, {stream['silence_seconds']:.2f} s of silence in {stream['frames']} frames",
        f"    memory beside the model: {_megabytes(stream['working_bytes_first_quarter'])} in the first quarter of it, "
        f"{_megabytes(stream['working_bytes'])} in all",
        f"    codec, windows against the whole: {work['frames_ratio']:.2f}x the frames, {work['time_ratio']:.2f}x the "
        "time; against float32 " + ", ".join(f"{name} is off by {100 * off:.2f} %" for name, off in errors.items()),
        "",
        f"first sound of {report['whole_frames']} frames made whole:",
    ]
    for row in report["whole"]:
        made = "measured" if row["steps_made"] == row["steps_needed"] else f"{row['steps_made']} made, rest by median"
        lines.append(
            f"{row['name']:42}{row['first_audio_seconds']:>9.2f} s = text and {row['steps_needed']} steps "
            f"{row['steps_seconds']:.2f} s ({made}) + codec {row['codec_seconds']:.2f} s;"
            f"{row['first_audio_seconds'] / first['p50']:>7.1f}x later"
        )
    return "\n".join(lines)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)
