"""What company costs: callers at once against one after the other, and the first audio of one more stream.

    python -m benchmarks.together --model talker

Threads that each call `Engine.generate` at the same moment, against the same calls one after the other, whose sounds
must be equal; then the time to the first chunk of a stream that joins others, against that of one alone.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from dia_engine import Engine
from dia_engine.runtime.stream import AudioStream

from .clients import quiet_logs, wait_until_idle
from .command import add_json_argument, at_least, run, write_report
from .load import with_slots
from .player import percentiles
from .setting import add_model_arguments, cores, machine

JOINS = 5  # streams that join others, for each run; those beside which another ended do not count
TEXT = "[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."


def main() -> None:
    options = _arguments()
    quiet_logs()
    engine = Engine.load(options.model, dtype=options.dtype, quant=options.quant, device=options.device)
    engine = engine if options.callers <= engine.max_slots else with_slots(engine, options.callers)
    report = {
        **machine(engine), "benchmark": "together", "cores": cores(), "model": options.model, "quant": options.quant,
        "dtype": str(engine.dtype).removeprefix("torch."), "slots": engine.max_slots, "callers": options.callers,
    }  # fmt: skip
    report["generate"] = callers_at_once(engine, options)
    write_report(options.json, report)
    print(generate_line(report), flush=True)
    report["first_audio"] = one_more(engine, options)
    write_report(options.json, report)
    print(first_audio_line(report), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.together", description=__doc__.split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--callers", type=at_least(1), default=8, help="threads, and streams in all (%(default)s)")
    parser.add_argument(
        "--max-tokens", type=at_least(1), help="of each generation; synthetic models do not end (200 for them)"
    )
    parser.add_argument("--runs", type=at_least(1), default=5, help="of each comparison (%(default)s)")
    add_json_argument(parser)
    options = parser.parse_args()
    if options.max_tokens is None and options.model.startswith("synthetic:"):
        options.max_tokens = 200
    return options


def callers_at_once(engine: Engine, options: argparse.Namespace) -> dict:
    """Seconds of the calls one after the other and at once, medians, and whether the sounds are equal."""
    calls = [
        lambda seed=seed: engine.generate(TEXT, seed=seed, max_tokens=options.max_tokens)
        for seed in range(options.callers)
    ]
    times, equal = [], True
    for number in range(1 + options.runs):
        apart, apart_seconds = _timed(lambda: [call() for call in calls])
        at_once, at_once_seconds = _timed(lambda: in_threads(calls))
        equal = equal and all(np.array_equal(a, b) for a, b in zip(apart, at_once, strict=True))
        if number:  # the first calls allocate and compile
            times.append((apart_seconds, at_once_seconds))
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return {
        "apart_seconds": medians[0],
        "at_once_seconds": medians[1],
        "ratio": statistics.median(b / a for a, b in times),
        "equal": equal,
    }


def one_more(engine: Engine, options: argparse.Namespace) -> dict:
    """Seconds to the first chunk alone, and while `callers` - 1 others stream, which it joins at random moments from
    their first chunks on to two thirds of the time that they take; percentiles, the ratio is that of the medians."""

    def stream(seed: int) -> AudioStream:
        return engine.stream(TEXT, seed=seed, max_tokens=options.max_tokens)

    def first_chunk() -> float:
        """Of a stream that begins now."""
        started = time.perf_counter()
        with stream(seed=0) as new:
            next(new)
            return time.perf_counter() - started

    def in_company(delay: float) -> float | None:
        with ExitStack() as stack:
            others = [stack.enter_context(stream(seed)) for seed in range(1, options.callers)]
            in_threads([lambda other=other: next(other) for other in others])  # all of them are running
            time.sleep(delay)
            seconds = first_chunk()
            return seconds if engine.active_requests >= len(others) else None  # one of the others has ended

    def others_alone() -> list[np.ndarray]:
        return in_threads([lambda seed=seed: list(stream(seed)) for seed in range(1, options.callers)])

    others_alone()  # first calls allocate and compile
    _, seconds = _timed(others_alone)
    moments = np.random.default_rng(0)
    alone, company = [], []
    for _ in range(JOINS * options.runs):
        joined = in_company(moments.uniform(0, seconds * 2 / 3))
        wait_until_idle(engine)
        if joined is not None:
            alone.append(first_chunk())
            company.append(joined)
    if not company:
        raise ValueError("the streams end too early for another to join them; raise --max-tokens")
    ratio = statistics.median(company) / statistics.median(alone)
    return {"alone_seconds": percentiles(alone), "in_company_seconds": percentiles(company), "ratio": ratio}


def in_threads(calls: Sequence[Callable[[], np.ndarray]]) -> list[np.ndarray]:
    """What each call returns, all called at once."""
    results: list[np.ndarray] = [np.zeros(0)] * len(calls)
    barrier = threading.Barrier(len(calls))

    def work(index: int) -> None:
        barrier.wait()
        results[index] = calls[index]()

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _timed(function: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], float]:
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def generate_line(report: dict) -> str:
    row = report["generate"]
    return (
        f"{report['callers']} callers: {row['apart_seconds']:.2f} s in turn, {row['at_once_seconds']:.2f} s "
        f"at once, ratio {row['ratio']:.2f}; sounds {'equal' if row['equal'] else 'DIFFER'}"
    )


def first_audio_line(report: dict) -> str:
    alone, company = report["first_audio"]["alone_seconds"], report["first_audio"]["in_company_seconds"]
    return (
        f"first audio p50: {alone['p50']:.3f} s alone, {company['p50']:.3f} s beside {report['callers'] - 1} streams, "
        f"ratio {report['first_audio']['ratio']:.2f}; p95: {alone['p95']:.3f} s, {company['p95']:.3f} s"
    )


if __name__ == "__main__":
    run(main)
