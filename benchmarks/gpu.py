"""All that only a GPU can show, in parts: the tests marked `gpu`, then every benchmark.

    make gpu                               or, in an environment of one's own, make gpu READY= PY=python3
    make gpu PARTS="correctness speed"     each part can be run alone

A part takes at most 8 minutes, all together 25. Each measurement is a line in benchmarks/results/<GPU>-<date>.jsonl as
soon as it is made; the next run on the same GPU with the same code goes on after those. Ends with a table. Exit status
1 if anything failed or is left to do.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from .command import run
from .gpu_plan import PARTS, ROOT, Measurement, plan
from .gpu_report import current_clocks, journal_path, setting, table
from .journal import Journal
from .nari import check_nari

RESULTS = Path(__file__).parent / "results"
TOTAL_SECONDS = 25 * 60
PART_SECONDS = 8 * 60
TAIL_LINES = 40  # of a command that failed, kept in the journal
LEAST_SECONDS = 10  # a command with less has no time to load anything


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=" ".join(PARTS) + " (all)"
    )
    parser.add_argument("--reference", metavar="PATH", help="checkout of nari-labs/dia, to time it as well")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the journal goes (%(default)s)")
    options = parser.parse_args()
    if options.reference is not None:
        options.reference = str(Path(options.reference).resolve())  # commands run in the repository's root
        check_nari(options.reference)
    if not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device here", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` sends it: take the running command along
    results = options.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    described = setting()
    journal = Journal(journal_path(results, described))
    journal.append("setting", "setting", "measured", **described)
    parts = [part for part in PARTS if part in options.parts]  # in their order, each once
    left = run_parts(parts, journal, options.reference)
    print(f"\n{table(journal)}\n\n{journal.path}")
    failed = [entry for part in parts for entry in journal.entries(part) if entry["status"] in ("failed", "timed out")]
    if left:
        print(f"left to do: {', '.join(f'{each.part} {each.name}' for each in left)}; run it again to go on")
    return 1 if left or failed else 0


class Budget:
    """Seconds that are left, of all and of a part."""

    def __init__(self, total: float, part: float, clock: Callable[[], float] = time.monotonic):
        self._clock, self._part = clock, part
        self._end = self._part_end = clock() + total

    def start_part(self) -> None:
        self._part_end = self._clock() + self._part

    def left(self) -> float:
        return min(self._end, self._part_end) - self._clock()


class Outcome(NamedTuple):
    status: str  # "passed", "failed" or "timed out"
    output: str = ""  # its last lines


Runner = Callable[[Measurement, float], Outcome]


def run_parts(
    parts: list[str],
    journal: Journal,
    reference: str | None = None,
    budget: Budget | None = None,
    run: Runner | None = None,
) -> list[Measurement]:
    """Make the measurements of some parts that the journal does not have.

    Args:
        run: makes one within some seconds.

    Returns:
        those there was no time for.
    """
    budget, run = budget or Budget(TOTAL_SECONDS, PART_SECONDS), run or run_command
    left = []
    for part in parts:
        budget.start_part()
        for measurement in plan(part, journal.path, reference):
            if journal.entry(part, measurement.name):
                continue
            if budget.left() < LEAST_SECONDS:
                left.append(measurement)
                continue
            print(f"\n== {part}: {measurement.name} ({budget.left():.0f} s left)", flush=True)
            if measurement.json:
                measurement.json.unlink(missing_ok=True)  # of a run that was cut
            started = time.monotonic()
            status, output = run(measurement, budget.left())
            journal.append(
                part,
                measurement.name,
                status,
                seconds=round(time.monotonic() - started, 1),
                command=_shown(measurement),
                clocks=current_clocks(),
                **({} if status == "passed" else {"output": output}),
                **_figures(measurement),
            )
    return left


def _figures(measurement: Measurement) -> dict:
    """What the command wrote, out of a file that then goes: also the part of it that was measured before a failure."""
    if measurement.json is None or not measurement.json.exists():
        return {}
    report = json.loads(measurement.json.read_text(encoding="utf-8"))
    measurement.json.unlink()
    report.pop("timeline", None)  # thousands of spans
    return {"report": report}


def _shown(measurement: Measurement) -> str:
    """The command without the folders of this machine."""
    words = [f"{name}={value}" for name, value in measurement.environment.items()]
    words += ["python", *measurement.command[1:]]
    return " ".join(Path(word).name if word.startswith("/") else word for word in words)


def run_command(measurement: Measurement, seconds: float) -> Outcome:
    """Run a command in a process group of its own, which ends with it; what it prints is shown."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **measurement.environment}
    process = subprocess.Popen(
        measurement.command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    reader = threading.Thread(target=_show, args=(process.stdout, tail), daemon=True)
    reader.start()
    try:
        status = "passed" if process.wait(seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "timed out"
    finally:
        _end(process)
    reader.join(timeout=5)  # not longer: a process that the command left behind may hold the pipe
    return Outcome(status, _without_folders("".join(tail)))


def _without_folders(output: str) -> str:
    """Results are published: they do not name the folders of this machine."""
    for folder, shown in ((sys.prefix, "<python>"), (ROOT, "."), (Path.home(), "~")):
        output = output.replace(str(folder), shown)
    return output


def _show(lines: Iterable[str], tail: deque[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)
        tail.append(line)


def _end(process: subprocess.Popen) -> None:
    """Its workers too, also behind its own end: a compiler that is left would be measured with the next command."""
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    run(main)
