"""Windows of several requests in one call of the codec, against one call each.

    python -m benchmarks.codec_batch

Windows of equal length are what a batch could hold: the first window of a stream and the steady one. Both ways are
timed in turn; a ratio over 1 says how many times as fast one call is. Threads are those an engine of the model uses.
"""

import argparse
import statistics
import time

import torch

from dia_engine import Engine
from dia_engine.codec import Codec
from dia_engine.codec.receptive_field import receptive_field
from dia_engine.devices.device import resolve_device
from dia_engine.devices.threads import is_small, one_thread
from dia_engine.runtime.chunking import ChunkSizes
from dia_engine.weights.source import resolve_model

from .command import add_json_argument, at_least, positive, run, write_report
from .roofline import synchronize
from .setting import cpu_setting, machine

REQUESTS = (2, 4, 8)
WORTH_IT = 1.10


def main() -> None:
    options = _arguments()
    device = resolve_device(options.device)
    report: dict = {"results": []}
    for model in options.models:
        engine = None if model == "synthetic:full" else Engine.load(model, device=device)
        codec = engine.codec if engine else resolve_model(model).load_codec(device=device, dtype=torch.float32)
        small = engine is not None and is_small((weight.nbytes for weight in engine.weights.values()), device)
        report = {**(machine(engine) if engine and device.type == "cuda" else cpu_setting()), **report}
        with one_thread(small):
            for name, frames in window_frames(codec).items():
                print(f"{model}, {name} window of {frames} frames", flush=True)
                for requests in options.requests:
                    result = measure(codec, frames, requests, options.seconds)
                    report["results"].append({"model": model, "threads": torch.get_num_threads(), **result})
                    print(line(report["results"][-1]), flush=True)
                    write_report(options.json, report)
    print(verdict(report["results"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec_batch", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["talker", "synthetic:full"], help="whose codecs (%(default)s)")
    parser.add_argument(
        "--requests", nargs="+", type=at_least(1), default=REQUESTS, help="windows per call (%(default)s)"
    )
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--seconds", type=positive, default=8.0, help="for each comparison (%(default)s)")
    add_json_argument(parser)
    return parser.parse_args()


def window_frames(codec: Codec) -> dict[str, int]:
    """Frames of the first window of a stream, and of one in its middle."""
    context = receptive_field(codec.decoder)
    steady, first = ChunkSizes().frames(context)
    return {"first": first + context.after, "steady": context.before + steady + context.after}


def together(codec: Codec, windows: list[torch.Tensor]) -> list[torch.Tensor]:
    """The sound of each window [W, C], by one call of the codec's convolutions."""
    latent = torch.cat([codec.quantizer.decode(codes) for codes in windows])
    return list(codec.decoder(latent.to(codec.dtype))[:, 0].float())


@torch.no_grad()
def measure(codec: Codec, frames: int, requests: int, seconds: float) -> dict:
    """Milliseconds of both ways, medians, at least three times each, and by how much the sounds differ."""
    size = (frames, codec.num_codebooks)
    windows = [torch.randint(codec.codebook_size, size, device=codec.device) for _ in range(requests)]
    alone = [codec.synthesize(codes) for codes in windows]
    error = max(float((a - b).abs().max()) for a, b in zip(alone, together(codec, windows), strict=True))
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        for codes in windows:
            codec.synthesize(codes)
        synchronize(codec.device)
        between = time.perf_counter()
        together(codec, windows)
        synchronize(codec.device)
        times.append((between - started, time.perf_counter() - between))
    separate, one_call = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "frames": frames,
        "requests": requests,
        "separate_milliseconds": 1e3 * separate,
        "together_milliseconds": 1e3 * one_call,
        "times_as_fast": statistics.median(a / b for a, b in times),
        "largest_difference": error,
        "pairs": len(times),
    }


def line(result: dict) -> str:
    return (
        f"{result['requests']:4} windows: {result['separate_milliseconds']:9.1f} ms apart, "
        f"{result['together_milliseconds']:9.1f} ms in one call, {result['times_as_fast']:.2f}x as fast, "
        f"sound within {result['largest_difference']:.1e}"
    )


def verdict(results: list[dict]) -> str:
    """Whether one call is worth its code anywhere."""
    worth = [each for each in results if each["times_as_fast"] >= WORTH_IT]
    if not worth:
        return f"one call is nowhere {WORTH_IT:.2f} times as fast as one call each"
    places = ", ".join(f"{each['model']} {each['requests']} x {each['frames']} frames" for each in worth)
    return f"one call is at least {WORTH_IT:.2f} times as fast for {places}"


if __name__ == "__main__":
    run(main)
