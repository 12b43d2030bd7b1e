"""First audio over HTTP: clients of `dia-engine serve` that come at the same moment, against one alone.

    python -m benchmarks.http_clients --model talker
    python -m benchmarks.http_clients --model talker --over 1      # at random moments of a second

Starts a server of this checkout in a process of its own. Each client asks OpenAI's speech route for pcm and plays what
arrives as `player.py` says; its times count from before it connects.
"""

import argparse
import statistics
import time

import numpy as np

from .clients import Script, listen, open_loop
from .command import MeasurementError, add_json_argument, at_least, run, write_report
from .player import Heard, percentiles
from .served import Served, started_server
from .setting import cpu_setting

TEXT = "[S1] Can you count? [S2] Five six seven eight nine."


def main() -> None:
    options = _arguments()
    report = {**cpu_setting(), "benchmark": "http_clients", "model": options.model, "clients": options.clients}
    report["over_seconds"] = options.over
    with started_server({"model": options.model}, options.options) as url:
        target = Served(url, voice=options.voice)
        rounds = [
            [Script(options.text, number * options.clients + client) for client in range(options.clients)]
            for number in range(options.rounds)
        ]
        moments = np.random.default_rng(0)
        open_loop(target, rounds[0], [0.0] * options.clients)  # first calls allocate
        alone, together = [], []
        for crowd in rounds:
            alone += [listen(target, script, time.perf_counter()) for script in crowd]
            together += open_loop(target, crowd, sorted(moments.uniform(0, options.over, options.clients).tolist()))
            report |= figures(alone, together)
            write_report(options.json, report)
    print(line(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_clients", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="talker", help="hub id, folder, talker or synthetic:... (%(default)s)")
    parser.add_argument("--clients", type=at_least(1), default=8, help="at the same moment (%(default)s)")
    parser.add_argument("--over", type=float, default=0.0, help="seconds within which they come (%(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="of each kind (%(default)s)")
    parser.add_argument("--text", default=TEXT, help="what each client asks for (%(default)s)")
    parser.add_argument("--voice", default="alloy", help="whose prompt is read before it (%(default)s)")
    add_json_argument(parser)
    parser.add_argument("options", nargs="*", help="further options of dia-engine serve, behind --")
    options = parser.parse_args()
    if not 0 <= options.over <= 60:
        parser.error(f"--over must be in [0, 60] seconds, got {options.over}")
    return options


def figures(alone: list[Heard], together: list[Heard]) -> dict:
    """Percentiles of the first audio in seconds; the ratio is p95 together to the median alone."""
    first = [[each.first_audio for each in streams if each.first_audio is not None] for streams in (alone, together)]
    if not all(first):
        raise MeasurementError(f"no sound: {next(each.error for each in [*alone, *together] if each.error)}")
    return {
        "alone_seconds": percentiles(first[0]),
        "together_seconds": percentiles(first[1]),
        "ratio": percentiles(first[1])["p95"] / statistics.median(first[0]),
        "ratio_p95": percentiles(first[1])["p95"] / percentiles(first[0])["p95"],
        "failed": sum(bool(each.error) for each in [*alone, *together]),
        "underruns": sum(each.underruns > 0 for each in together),
    }


def line(report: dict) -> str:
    alone, together = report["alone_seconds"], report["together_seconds"]
    moments = f"within {report['over_seconds']:g} s" if report["over_seconds"] else "at once"
    return (
        f"first audio over HTTP: alone p50 {alone['p50']:.3f} s, p95 {alone['p95']:.3f} s; "
        f"{report['clients']} clients {moments} p50 {together['p50']:.3f} s, p95 {together['p95']:.3f} s; "
        f"p95 is {report['ratio']:.2f} times p50 alone, {report['ratio_p95']:.2f} times p95 alone; "
        f"{report['underruns']} streams ran dry, {report['failed']} failed"
    )


if __name__ == "__main__":
    run(main)
