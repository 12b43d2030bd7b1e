"""How much longer `say --model talker`, or a decode step, takes beside processes that keep the CPU busy.

    python -m benchmarks.busy_neighbor
    python -m benchmarks.busy_neighbor --step synthetic:full --dtype bfloat16 --quant int8

"whole" is the command from its start to its end, imports and loading included; "sound" is what it says that making the
sound took. "step" is a step of one request. Each run goes through all neighbors in turn, so that a drift of the machine
meets them alike.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from dia_engine import Engine
from dia_engine.devices.device import computing
from dia_engine.devices.threads import is_small
from dia_engine.text.tokenizer import encode_text

from .command import add_json_argument, at_least, run, write_report
from .peers import Ours
from .setting import cpu_setting

SCRIPT = "[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."
STEPS = 40
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
    if options.step:
        setting, timed = {"model": options.step, "dtype": options.dtype, "quant": options.quant}, step_timer(options)
    else:
        setting, timed = {}, say
    report = {**cpu_setting(), **setting, "runs": options.runs, "script": SCRIPT, "results": []}
    for times in measure(timed, options.runs):
        report["results"] = summary(times)
        write_report(options.json, report)
    print(table(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy_neighbor", description=__doc__.split("\n")[0])
    parser.add_argument("--step", metavar="MODEL", help="time its decode step: hub id, folder, talker or synthetic:...")
    parser.add_argument("--dtype", help="of that model")
    parser.add_argument("--quant", help="of that model: int8 or nf4")
    parser.add_argument(
        "--runs", type=at_least(1), default=5, help="of each, beside each set of neighbors (%(default)s)"
    )
    add_json_argument(parser)
    options = parser.parse_args()
    if not options.step and (options.dtype or options.quant):
        parser.error("--dtype and --quant are those of the model that --step names")
    return options


def measure(timed: Callable[[], dict[str, float]], runs: int) -> Iterator[dict[str, list[dict[str, float]]]]:
    """What it times, in seconds by what they are of, by neighbors, run by run; so far, behind each run."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in NEIGHBORS}
    for number in range(runs):
        for name, programs in NEIGHBORS.items():
            print(f"run {number + 1} of {runs}: {name} ...", file=sys.stderr)
            with running(programs):
                times[name].append(timed())
        yield times


def summary(times: dict[str, list[dict[str, float]]]) -> list[dict]:
    """Medians in seconds and their ratio to the first entry's.

    Args:
        times: of `measure`.
    """
    first = next(iter(times.values()))
    quiet = {of: statistics.median(run[of] for run in first) for of in first[0]}
    results = []
    for name, runs in times.items():
        result: dict = {"name": name}
        for of in quiet:
            seconds = [run[of] for run in runs]
            median = statistics.median(seconds)
            result |= {f"{of}_seconds": median, f"{of}_ratio": median / quiet[of], f"{of}_seconds_of_runs": seconds}
        results.append(result)
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


def step_timer(options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Loads the model that the options name -> what times STEPS steps of one request and gives their median."""
    engine = Engine.load(options.step, dtype=options.dtype, quant=options.quant, device="cpu", load_dac=False)
    text = encode_text(SCRIPT, engine.config.encoder.max_position_embeddings)
    small = is_small((weight.nbytes for weight in engine.weights.values()), engine.device)
    runtime = Ours(engine.model)

    def timed() -> dict[str, float]:
        with computing(engine.device, alone=small):
            return {"step": statistics.median(runtime.run(text, 1, STEPS).steps)}

    return timed


def say() -> dict[str, float]:
    """Seconds that one command takes from start to end, and that it says its sound took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dia_engine", "say", "--model", "talker", "--seed", "1", SCRIPT]
        started = time.perf_counter()
        done = subprocess.run([*command, "-o", f"{folder}/said.wav"], capture_output=True, text=True, check=False)
        whole = time.perf_counter() - started
    said = SAID.search(done.stdout)
    if done.returncode or said is None:
        raise OSError(f"say failed: {done.stderr or done.stdout}")
    return {"whole": whole, "sound": float(said[2])}


def table(report: dict) -> str:
    columns = [key.removesuffix("_ratio") for key in report["results"][0] if key.endswith("_ratio")]
    lines = [
        f"{report['device']}, {report['cores']} cores, torch {report['torch']}; medians of {report['runs']} runs",
        f"{'':24}" + "".join(f"{of:>9}{'ratio':>7}" for of in columns),
    ]
    for result in report["results"]:
        cells = [f"{_in_words(result[f'{of}_seconds']):>9}{result[f'{of}_ratio']:6.2f}x" for of in columns]
        lines.append(f"{result['name']:24}" + "".join(cells))
    return "\n".join(lines)


def _in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


if __name__ == "__main__":
    run(main)
