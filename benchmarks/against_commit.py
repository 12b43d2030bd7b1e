"""Whether one request alone is as fast as in another version: pairs of both, in turn, and the interval of their ratio.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.against_commit /tmp/before --model talker
    python -m benchmarks.against_commit /tmp/before --model synthetic:full --quant int8 --what first_audio

`first_audio` is from the call of `Engine.stream` to the first chunk. `step` is `Engine.generate` without a codec, its
prefill included, per decode step, of a script that no version plans into pieces. Each version runs in a process of its
own; which of the two goes first alternates.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial

from dia_engine.weights.source import resolve_model

from .clients import Script
from .command import add_json_argument, at_least, run, write_report
from .setting import SCRIPT, cpu_setting
from .versions import ROOT, Version, check_checkout

WHAT = ("first_audio", "step")
WARM_UP_PAIRS = 2
ONE_PIECE = "[S1] Dia is an open weights text to dialogue model. [S2] You get full control over scripts and voices."
# Of Student's t distribution, both sides, by degrees of freedom; between them the smaller number's.
T95 = {
    1: 12.71,
    2: 4.30,
    3: 3.18,
    4: 2.78,
    5: 2.57,
    7: 2.36,
    9: 2.26,
    14: 2.14,
    19: 2.09,
    29: 2.05,
    59: 2.00,
    119: 1.98,
}


def main() -> None:
    options = _arguments()
    report = {
        **cpu_setting(), "benchmark": "against_commit", "model": options.model, "dtype": options.dtype,
        "quant": options.quant, "pairs": options.pairs, "steps": options.steps, "comparisons": [],
    }  # fmt: skip
    loading = {"model": options.model, "dtype": options.dtype, "quant": options.quant, "device": "cpu"}
    for what in options.what:
        loading["load_dac"] = what == "first_audio"
        with Version(options.checkout, **loading) as before, Version(ROOT, **loading) as now:
            report["comparisons"].append(
                {"what": what, **compare(*_measures(what, before, now, options), options.pairs)}
            )
        print(line(report["comparisons"][-1]), flush=True)
        write_report(options.json, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_commit", description=__doc__.split("\n")[0])
    parser.add_argument("checkout", help="folder of the other version")
    parser.add_argument("--model", default="talker", help="hub id, folder, talker or synthetic:... (%(default)s)")
    parser.add_argument("--dtype", help="default: what suits the device")
    parser.add_argument("--quant", help="int8 or nf4")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="(%(default)s)")
    parser.add_argument("--pairs", type=at_least(2), default=20, help="(%(default)s)")
    parser.add_argument(
        "--steps", type=at_least(1), default=60, help="of each generation without a codec (%(default)s)"
    )
    add_json_argument(parser)
    options = parser.parse_args()
    check_checkout(options.checkout)
    return options


def _measures(what: str, before: Version, now: Version, options: argparse.Namespace) -> list[Callable[[], float]]:
    """What times each version, before and now."""
    if what == "first_audio":
        return [lambda version=version: version.first_audio(Script(SCRIPT, seed=1)) for version in (before, now)]
    frames = options.steps - resolve_model(options.model).config.max_delay
    return [partial(_seconds_per_step, version, options.steps, frames) for version in (before, now)]


def _seconds_per_step(version: Version, steps: int, frames: int) -> float:
    """Of a generation that must come to so many frames.

    Raises:
        ValueError: it made other steps: the script ended before them, or was planned into pieces.
    """
    seconds, made = version.generate(Script(ONE_PIECE, seed=1, max_tokens=steps + 1))  # the first row is given
    if made != frames:
        raise ValueError(f"--steps {steps}: {version.folder} makes {made} frames of the script instead of {frames}")
    return seconds / steps


def compare(before: Callable[[], float], now: Callable[[], float], pairs: int) -> dict:
    """Milliseconds of both, medians, and how many times as long `now` takes, with its interval."""
    times: list[tuple[float, float]] = []
    for pair in range(WARM_UP_PAIRS + pairs):
        if pair % 2:
            later = now()
            times.append((before(), later))
        else:
            times.append((before(), now()))
    times = times[WARM_UP_PAIRS:]
    medians = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    low, high = interval([math.log(b / a) for a, b in times])
    return {
        "before_milliseconds": medians[0],
        "now_milliseconds": medians[1],
        "ratio": math.exp((low + high) / 2),
        "ratio_interval": [math.exp(low), math.exp(high)],
        "milliseconds_of_pairs": [[1e3 * a, 1e3 * b] for a, b in times],
    }


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of at least two values, by Student's t."""
    freedom = len(values) - 1
    t = T95[max(known for known in T95 if known <= freedom)]
    mean, half = statistics.mean(values), t * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def line(row: dict) -> str:
    low, high = row["ratio_interval"]
    return (
        f"{row['what']:12} before {row['before_milliseconds']:8.2f} ms, now {row['now_milliseconds']:8.2f} ms, "
        f"now/before {row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    )


if __name__ == "__main__":
    run(main)
