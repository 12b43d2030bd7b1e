"""How much longer `say --model talker` takes beside processes that keep the CPU busy.

    python -m benchmarks.busy_neighbor

"whole" is the command from its start to its end, imports and loading included; "sound" is what it says that making the
sound took. Each run goes through all neighbors in turn, so that a drift of the machine meets them alike.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .command import run
from .setting import cpu_setting

SCRIPT = "[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."
# They end with the process that began them, also if that is killed.
SPINNING = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
COMPUTING = """
import os, torch
parent, x = os.getppid(), torch.randn(512, 512)
x @ x
print(flush=True)
while os.getppid() == parent:
    x @ x
"""
NEIGHBORS = {
    "alone": [],
    "1 spinning": [SPINNING],
    "2 spinning": [SPINNING] * 2,
    "4 spinning": [SPINNING] * 4,
    "2 spinning, 2 of torch": [SPINNING] * 2 + [COMPUTING] * 2,
}
SAID = re.compile(r"([\d.]+) s of sound in ([\d.]+) s")


def main() -> None:
    options = _arguments()
    report = {**cpu_setting(), "runs": options.runs, "script": SCRIPT, "results": measure(options.runs)}
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(table(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy_neighbor", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="commands beside each set of neighbors (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser.parse_args()


def measure(runs: int) -> list[dict]:
    """One result for each of NEIGHBORS, see `summary`."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in NEIGHBORS}
    for number in range(runs):
        for name, programs in NEIGHBORS.items():
            print(f"run {number + 1} of {runs}: {name} ...", file=sys.stderr)
            with running(programs):
                times[name].append(say())
    return summary(times)


def summary(times: dict[str, list[tuple[float, float]]]) -> list[dict]:
    """Medians in seconds and their ratio to the first entry's.

    Args:
        times: by neighbors, seconds of each run: the whole command, and its sound.
    """
    quiet = [statistics.median(column) for column in zip(*next(iter(times.values())))]
    results = []
    for name, runs in times.items():
        whole, sound = (statistics.median(column) for column in zip(*runs))
        results.append(
            {
                "name": name,
                "whole_seconds": whole,
                "whole_ratio": whole / quiet[0],
                "sound_seconds": sound,
                "sound_ratio": sound / quiet[1],
                "whole_seconds_of_runs": [each for each, _ in runs],
            }
        )
    return results


@contextmanager
def running(programs: list[str]) -> Iterator[None]:
    """Python programs that run meanwhile, each begun when it has written a line."""
    with ExitStack() as stack:
        processes = []
        for program in programs:
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            if not process.stdout.readline():
                raise OSError(f"a neighbor ended with status {process.wait()}")
        yield


def say() -> tuple[float, float]:
    """Seconds that one command takes from start to end, and that it says its sound took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dia_engine", "say", "--model", "talker", "--seed", "1", SCRIPT]
        started = time.perf_counter()
        done = subprocess.run([*command, "-o", f"{folder}/said.wav"], capture_output=True, text=True, check=False)
        whole = time.perf_counter() - started
    said = SAID.search(done.stdout)
    if done.returncode or said is None:
        raise OSError(f"say failed: {done.stderr or done.stdout}")
    return whole, float(said[2])


def table(report: dict) -> str:
    lines = [
        f"{report['device']}, {report['cores']} cores, torch {report['torch']}; medians of {report['runs']} runs",
        f"{'':24}{'whole':>9}{'ratio':>7}{'sound':>9}{'ratio':>7}",
    ]
    for result in report["results"]:
        lines.append(
            f"{result['name']:24}{result['whole_seconds']:7.2f} s{result['whole_ratio']:6.2f}x"
            f"{result['sound_seconds']:7.2f} s{result['sound_ratio']:6.2f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
