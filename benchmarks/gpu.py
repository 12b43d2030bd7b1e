"""All that only a GPU can show, in one command: the tests marked `gpu`, then every benchmark, figures as JSON.

    make gpu            or, in an environment of one's own, make gpu READY= PY=python3

Writes benchmarks/results/<GPU>-<date>-*.json and ends with a summary. Exit status 1 if anything failed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
BUDGET_SECONDS = 570
TEST_SECONDS = 240  # of it, at most: the figures are to be had even where a test hangs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", metavar="PATH", help="checkout of nari-labs/dia, to time it as well")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes (%(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device here", file=sys.stderr)
        return 1
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-").lower()
    options.results.mkdir(parents=True, exist_ok=True)
    prefix = options.results / f"{gpu}-{date.today().isoformat()}"
    started = time.monotonic()
    outcome = {}
    for name, command in _commands(options.reference, prefix).items():
        left = BUDGET_SECONDS - (time.monotonic() - started)
        print(f"\n== {name} ({left:.0f} s left)\n{' '.join(command)}", flush=True)
        outcome[name] = _run(command, min(left, TEST_SECONDS) if name == "tests" else left)
    spent = time.monotonic() - started
    print(f"\n== summary ({spent:.0f} s, {torch.cuda.get_device_name()}, torch {torch.__version__})")
    for name, status in outcome.items():
        print(f"{status:10} {name}")
    _print_speeds(prefix)
    return 0 if set(outcome.values()) == {"passed"} else 1


def _commands(reference: str | None, prefix: Path) -> dict[str, list[str]]:
    """What runs: the tests, then the most telling first, as a later one may find the time used up."""
    python = [sys.executable, "-m"]
    speed = [*python, "benchmarks.tokens_per_sec", "--model", "synthetic:full", "--dtype", "bfloat16"]
    nari = ["nari", "--reference", reference] if reference else []
    commands = {
        "tests": [*python, "pytest", "-q", "-m", "gpu", "tests"],
        "speed": [
            *speed, "--quant", "int8", "nf4", "--against", "transformers", *nari, "--json", f"{prefix}-speed.json",
        ],
        "first audio": [
            *python, "benchmarks.first_audio", "--model", "synthetic:full", "--dtype", "bfloat16",
            "--against", "transformers", *nari, "--peer-steps", "200", "--json", f"{prefix}-first-audio.json",
        ],
        "kernels": [
            *python, "pytest", "-q", "benchmarks", "--benchmark-only", "--benchmark-json", f"{prefix}-kernels.json",
        ],
        "speed, batch 8": [*speed, "--batch", "8", "--json", f"{prefix}-speed-batch-8.json"],
        "speed, compiled peers": [
            *speed, "--against", "transformers-compiled", *(["nari-compiled", *nari[1:]] if nari else []),
            "--json", f"{prefix}-speed-compiled.json",
        ],
    }  # fmt: skip
    return commands


def _run(command: list[str], seconds: float) -> str:
    if seconds <= 0:
        return "no time"
    try:
        return "passed" if subprocess.run(command, timeout=seconds).returncode == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        return "timed out"


def _print_speeds(prefix: Path) -> None:
    for path in sorted(prefix.parent.glob(f"{prefix.name}-speed*.json")):
        report = json.loads(path.read_text())
        for row in report["results"]:
            print(
                f"{row['name']:45} batch {report['batch']:<3} {row['steps_per_second']:8.1f} steps/s "
                f"{row['times_real_time']:7.2f}x real time {row['roofline_percent']:4.0f}% of the roofline"
            )
    first_audio = Path(f"{prefix}-first-audio.json")
    if first_audio.exists():
        report = json.loads(first_audio.read_text())
        seconds = report["first_audio_seconds"]
        print(
            f"{'first sound of a stream':45} p50 {1e3 * seconds['p50']:6.1f} ms, p95 {1e3 * seconds['p95']:6.1f} ms, "
            f"{report['stream']['underruns']} underruns"
        )
    kernels = Path(f"{prefix}-kernels.json")
    if kernels.exists():
        for row in json.loads(kernels.read_text())["benchmarks"]:
            info = row["extra_info"]
            print(f"{row['name']:45} {info['us_per_call']:8.2f} us {info['roofline_percent']:4.0f}% of the roofline")


if __name__ == "__main__":
    sys.exit(main())
