"""Steps per second of this engine and of other runtimes of Dia, on the same weights in one run.

    python -m benchmarks.tokens_per_sec --model synthetic:full --dtype bfloat16 --against transformers

A step makes one row of nine codes; 86.13 steps are one second of sound. Timed are whole steps: decoder, guidance,
filter, draw and bookkeeping. "text" is the time from the script to where the first step can start, "first row" to its
end (with graphs: to the end of the first launch of several steps); "memory" is what the run needs beside the weights.
"roofline" is the time that reading a step's bytes takes at the bandwidth measured in the same run, as a share of the
step's: a copy's on a GPU, on a CPU that of reading alone. Below the table are a CPU step's GB/s and its stages' times.
README.md beside this file explains the keys of the JSON.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from dia_engine import Engine
from dia_engine.text.tokenizer import encode_text
from dia_engine.weights.recipes import RECIPES

from .command import add_json_argument, at_least, output_file, run, write_report
from .journal import Journal
from .memory import WorkingMemory
from .nari import Nari
from .peers import Ours, Timing, Transformers
from .roofline import bandwidth_in_words, copy_bandwidth, data_sheet_bandwidth, read_bandwidth, step_bytes
from .setting import (
    SCRIPT,
    STEPS_PER_SECOND_OF_SOUND,
    add_peer_arguments,
    check_peer_arguments,
    check_steps,
    machine,
    peers,
)

STAGE_NAMES = {
    "project_qkv": "qkv",
    "attend_to_rows": "attention",
    "project_attn_out": "o",
    "project_cross_query": "cross q",
    "attend_to_text": "cross-attention",
    "project_cross_attn_out": "cross o",
    "project_hidden": "gate and up",
    "project_down": "down",
    "project_logits": "head",
    "next_row": "sampling",
}


def main() -> None:
    options = _arguments()
    plain = Engine.load(options.model, dtype=options.dtype, device=options.device, load_dac=False)
    options.steps = (400 if plain.device.type == "cuda" else 60) if options.steps is None else options.steps
    check_steps("--steps", options.steps, plain)
    text = encode_text(SCRIPT, plain.config.encoder.max_position_embeddings)
    copied = copy_bandwidth(plain.device)
    print(bandwidth_in_words(copied, plain.device), file=sys.stderr)
    report = {**machine(plain), **_setting(options, plain, text, copied), "results": []}
    record = Record(options)
    for name, prepared in _runners(options, plain):
        earlier = record.earlier(name)
        if earlier is not None:
            report["results"] += earlier
            continue
        print(f"measuring {name} ...", file=sys.stderr)
        try:
            result = _result(*prepared(), text, options, copied)
        except torch.OutOfMemoryError as error:
            record.out_of_memory(name, error)
            continue
        report["results"].append(result)
        record.measured(report, result)
    print("\n".join([_table(report), *_divisions(report)]) if report["results"] else "nothing was measured")


class Record:
    """Writes each result when it is there and not at the end, which a limit of time may cut off."""

    def __init__(self, options: argparse.Namespace):
        self.json, self.part, self.label = options.json, options.part, options.label or f"batch {options.batch}"
        self.journal = Journal(options.journal) if options.journal else None

    def earlier(self, name: str) -> list[dict] | None:
        """What the journal has of a runtime, None if it is still to be measured."""
        entry = self.journal and self.journal.entry(self.part, self._name(name))
        return entry.get("report", {"results": []})["results"] if entry else None

    def measured(self, report: dict, result: dict) -> None:
        write_report(self.json, report)
        if self.journal:
            self.journal.append(
                self.part, self._name(result["name"]), "measured", report={**report, "results": [result]}
            )

    def out_of_memory(self, name: str, error: torch.OutOfMemoryError) -> None:
        """Note it and go on with the next.

        Raises:
            torch.OutOfMemoryError: there is no journal to note it in.
        """
        if self.journal is None:
            raise error
        first_line = str(error).split("\n")[0]
        print(f"{name}: {first_line}", file=sys.stderr)
        self.journal.append(self.part, self._name(name), "out of memory", error=first_line)

    def _name(self, name: str) -> str:
        return f"{self.label}: {name}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens_per_sec", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="synthetic:full", help="hub id, folder or synthetic:... (%(default)s)")
    parser.add_argument("--dtype", help="default: what suits the device")
    parser.add_argument("--quant", nargs="*", default=[], choices=RECIPES, help="quantize as well: int8, nf4, nf4-all")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--batch", type=at_least(1), default=1, help="requests at once (%(default)s)")
    parser.add_argument(
        "--steps", type=at_least(1), help="steps per run; the first tenth is not timed (cpu 60, cuda 400)"
    )
    parser.add_argument("--runs", type=at_least(1), default=3, help="timed runs (%(default)s)")
    parser.add_argument("--peer-runs", type=at_least(1), help="timed runs of other runtimes (as --runs)")
    add_peer_arguments(parser)
    add_json_argument(parser)
    parser.add_argument(
        "--journal",
        metavar="FILE",
        type=output_file,
        help="append a line for each result there, and leave out what it has already",
    )
    parser.add_argument("--part", default="speed", help="the part that lines of the journal name (%(default)s)")
    parser.add_argument("--label", help="what the names of its lines begin with (batch N)")
    options = parser.parse_args()
    check_peer_arguments(parser, options)
    return options


Prepared = Callable[[], tuple[Ours | Transformers | Nari, Engine]]


def _runners(options: argparse.Namespace, engine: Engine) -> Iterator[tuple[str, Prepared]]:
    """Names of what is timed, ourselves first; each with a function for it and the engine whose weights it reads."""
    yield Ours.title(), lambda: (Ours(engine.model), engine)
    for quant in options.quant:
        yield Ours.title(quant), partial(_quantized, options, engine, quant)
    for peer in peers(options, engine):
        yield peer.name, partial(lambda peer: (peer, engine), peer)


def _quantized(options: argparse.Namespace, engine: Engine, quant: str) -> tuple[Ours, Engine]:
    quantized = Engine.load(options.model, quant=quant, dtype=engine.dtype, device=engine.device, load_dac=False)
    return Ours(quantized.model, quant), quantized


def _result(
    runner: Ours | Transformers | Nari,
    engine: Engine,
    text: torch.Tensor,
    options: argparse.Namespace,
    copied: float,
) -> dict:
    read = _read_bandwidth(engine)
    memory = WorkingMemory(engine.device)
    runner.run(text, options.batch, 2)  # first calls allocate, compile and fill caches
    result = {**_measure(runner, text, options, engine), "working_bytes": memory.peak()}
    # Before or behind: what else runs on the machine may have disturbed one of them.
    read = max(read, _read_bandwidth(engine))
    return {
        **result,
        "read_gigabytes_per_second": read / 1e9 or None,
        "roofline_percent": 100 * result["gigabytes_per_second"] * 1e9 / (read or copied),
    }


def _read_bandwidth(engine: Engine) -> float:
    """0 where it cannot be measured."""
    return (engine.device.type == "cpu" and read_bandwidth()) or 0.0


def _measure(runner, text: torch.Tensor, options, engine: Engine) -> dict:
    with _timed_stages(runner) as seconds:
        timings = [runner.run(text, options.batch, options.steps) for _ in range(_runs(runner, options))]
    steps = sorted(span for timing in timings for span in timing.steps[len(timing.steps) // 10 :])
    median = statistics.median(steps)
    bytes_read = _step_bytes(engine, options, text)
    peak = data_sheet_bandwidth(engine.device)
    return {
        "name": runner.name,
        "first_step_seconds": statistics.median(timing.first for timing in timings),
        "text_seconds": statistics.median(timing.first - timing.first_steps * median for timing in timings),
        "step_milliseconds": 1e3 * median,
        "step_milliseconds_p10_p90": [1e3 * steps[len(steps) // 10], 1e3 * steps[len(steps) * 9 // 10]],
        "steps_per_second": 1 / median,
        "times_real_time": options.batch / median / STEPS_PER_SECOND_OF_SOUND,
        "bytes_per_step": bytes_read,
        "weight_bytes": _weight_bytes(engine),
        "gigabytes_per_second": bytes_read / median / 1e9,
        "stage_milliseconds": _stage_milliseconds(seconds, timings),
        "peak_percent": None if peak is None else 100 * bytes_read / peak / median,
    }


def _runs(runner, options) -> int:
    return options.runs if isinstance(runner, Ours) else options.peer_runs or options.runs


def _timed_stages(runner) -> AbstractContextManager[dict[str, float]]:
    """A step's clocks cost some ten microseconds of it."""
    return runner.timed_stages() if isinstance(runner, Ours) else nullcontext({})


def _stage_milliseconds(seconds: dict[str, float], timings: list[Timing]) -> dict[str, float] | None:
    """Of a step by its parts, means over all steps, and what is left of the steps after the first; None if nothing was
    timed."""
    if not seconds:
        return None
    steps = [span for timing in timings for span in timing.steps]
    parts = {STAGE_NAMES[stage]: 1e3 * spent / (len(steps) + len(timings)) for stage, spent in seconds.items()}
    return {**parts, "rest": max(1e3 * statistics.mean(steps) - sum(parts.values()), 0.0)}


def _weight_bytes(engine: Engine) -> int:
    return sum(weight.nbytes for weight in engine.weights.values())


def _step_bytes(engine: Engine, options, text: torch.Tensor) -> int:
    """What a step reads in the middle of a run."""
    sizes = {name: weight.nbytes for name, weight in engine.weights.items()}
    return step_bytes(engine.config, sizes, engine.dtype.itemsize, options.batch, options.steps // 2, len(text))


def _setting(options, engine: Engine, text: torch.Tensor, copied: float) -> dict:
    return {
        "model": options.model,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "batch": options.batch,
        "text_bytes": len(text),
        "rows": [options.steps // 10, options.steps],
        "bytes_per_step": _step_bytes(engine, options, text),
        "weight_bytes": _weight_bytes(engine),
        "copy_gigabytes_per_second": copied / 1e9,
        "peak_gigabytes_per_second": None if (peak := data_sheet_bandwidth(engine.device)) is None else peak / 1e9,
    }


def _table(report: dict) -> str:
    lines = [
        f"{report['model']} in {report['dtype']} on {report['device']}, {report['threads']} threads, "
        f"torch {report['torch']}, {report['date']}",
        f"batch {report['batch']}, {report['text_bytes']} bytes of text, rows {report['rows'][0]} to "
        f"{report['rows'][1]}, weights {report['weight_bytes'] / 1e6:,.0f} MB, "
        f"{report['bytes_per_step'] / 1e6:,.0f} MB a step, copy {report['copy_gigabytes_per_second']:.1f} GB/s",
        "",
        f"{'':40}{'text':>9}{'first row':>11}{'ms/step':>10}{'p10-p90':>16}{'steps/s':>10}{'x real':>8}{'roofline':>10}"
        f"{'weights':>10}{'memory':>10}{'dia-engine is':>16}",
    ]
    ours = report["results"][0]  # in the model's dtype, unless that did not fit the memory
    for row in report["results"]:
        low, high = row["step_milliseconds_p10_p90"]
        ratio = row["step_milliseconds"] / ours["step_milliseconds"]
        memory = "-" if row["working_bytes"] is None else f"{row['working_bytes'] / 1e6:,.0f} MB"
        lines.append(
            f"{row['name']:40}{row['text_seconds']:>7.3f} s{row['first_step_seconds']:>9.3f} s"
            f"{row['step_milliseconds']:>10.2f}"
            f"{f'{low:.1f}-{high:.1f}':>16}{row['steps_per_second']:>10.2f}{row['times_real_time']:>8.3f}"
            f"{row['roofline_percent']:>9.0f}%"
            f"{row['weight_bytes'] / 1e6:>7,.0f} MB{memory:>10}{_compared(ratio):>16}"
        )
    return "\n".join(lines)


def _divisions(report: dict) -> Iterator[str]:
    """A line for each result whose parts were timed."""
    for row in report["results"]:
        stages = row.get("stage_milliseconds")
        if stages:
            parts = ", ".join(f"{name} {spent:.2f}" for name, spent in stages.items())
            speed, most = row["gigabytes_per_second"], row["read_gigabytes_per_second"]
            yield f"{row['name']} reads {speed:.1f} of {most:.1f} GB/s; ms of a step: {parts}"


def _compared(ratio: float) -> str:
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"


if __name__ == "__main__":
    run(main)
