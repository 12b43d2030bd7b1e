"""A long dialogue: streamed against real time, in how much memory, and what slots are worth.

    python -m benchmarks.long_dialogue --json long_dialogue.json

Four figures, each of one run of this command:

    first chunk   of the long script, and of a text that arrives, against that of a single turn; in turn, medians
    lead          of the stream over a player that starts with the first chunk, the smallest of all chunks
    memory        of the process after each minute of sound
    slots         seconds for a shorter dialogue with one slot and with more, whose codes must be equal
"""

import argparse
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from dia_engine import Engine

from .clients import quiet_logs, wait_until_idle
from .command import add_json_argument, at_least, positive, run, write_report
from .load import with_slots
from .memory import resident
from .setting import add_model_arguments, cores, machine

SINGLE_TURN = "[S1] Can you count very well?"
SENTENCES = (
    "Can you count very well?", "Yes, I can count very well.", "I see two black cats.", "The dogs are red.",
    "Good morning, my little friend.", "No, I hear five green birds.", "Can you hear me, little robot?",
    "One two three four five.", "My robot can sing.", "Thank you, my friend.",
)  # fmt: skip
PARTS = ("first-chunk", "stream", "slots")
STAGES = {"dia-engine": "steps", "dia-engine worker": "codec and prefill", "dia-engine script": "script"}  # by thread


def main() -> None:
    options = _arguments()
    quiet_logs()
    engine = Engine.load(options.model, dtype=options.dtype, quant=options.quant, device=options.device)
    script = dialogue(engine, 60 * options.minutes)
    pieces = len(engine.plan(script).pieces)
    if pieces < 2:
        raise ValueError(f"--minutes {options.minutes:g}: the dialogue is not planned into pieces; make it longer")
    report = {
        **machine(engine), "benchmark": "long_dialogue", "cores": cores(), "model": options.model,
        "quant": options.quant, "dtype": str(engine.dtype).removeprefix("torch."), "slots": engine.max_slots,
        "pieces": pieces, "runs": options.runs,
    }  # fmt: skip
    if "first-chunk" in options.parts:
        report["first_chunk"] = first_chunks(engine, script, options.runs)
        write_report(options.json, report)
        print(_first_chunk_line(report["first_chunk"]), flush=True)
    if "stream" in options.parts:
        report["stream"] = streamed(engine, script)
        write_report(options.json, report)
        print(_stream_line(report["stream"]), flush=True)
    if "slots" in options.parts:
        report["slots_compared"] = slots_compared(engine, dialogue(engine, options.compared_seconds), options)
        write_report(options.json, report)
        print("\n".join(map(_slots_line, report["slots_compared"]["results"])))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_dialogue", description=__doc__.split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--minutes", type=positive, default=10.0, help="of the streamed dialogue (%(default)s)")
    parser.add_argument("--compared-seconds", type=positive, default=60.0, help="of that for slots (%(default)s)")
    parser.add_argument("--max-slots", type=at_least(1), nargs="+", default=[1, 4, 8], help="to be compared (1 4 8)")
    parser.add_argument(
        "--max-tokens",
        type=at_least(1),
        help="of each piece where slots are compared; random weights do not end (100 for them)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--runs", type=at_least(1), default=5, help="of each comparison (%(default)s)")
    add_json_argument(parser)
    options = parser.parse_args()
    if options.max_tokens is None and options.model.startswith("synthetic:"):
        options.max_tokens = 100
    return options


def dialogue(engine: Engine, seconds: float) -> str:
    """Sentences by two speakers in turn, of at least so many seconds by what the model's settings say of its pace."""
    sentences = cycle(SENTENCES)
    turns, lasts = [], 0.0
    for tag, sentence in zip(cycle(("[S1]", "[S2]")), sentences, strict=False):
        turns.append(f"{tag} {sentence}")
        lasts += (len(sentence) + 3) * engine.long_form.seconds_per_byte
        if lasts >= 1.05 * seconds:
            return " ".join(turns)
    raise AssertionError("cycles have no end")


def first_chunks(engine: Engine, script: str, runs: int) -> dict:
    """Seconds to the first chunk of a single turn, of the script, and of a text that arrives, of which the same turn is
    whole at once; medians of alternating runs."""

    def seconds(text: "str | Iterator[str]", seed: int) -> float:
        started = time.perf_counter()
        with engine.stream(text, seed=seed) as stream:
            next(stream)
            took = time.perf_counter() - started
        wait_until_idle(engine)
        return took

    def arriving(heard: threading.Event) -> Iterator[str]:
        yield f"{SINGLE_TURN} [S2] Yes"
        heard.wait()

    def seconds_of_arriving(seed: int) -> float:
        heard = threading.Event()
        try:
            return seconds(arriving(heard), seed)
        finally:
            heard.set()

    times = [
        (seconds(SINGLE_TURN, seed), seconds(script, seed), seconds_of_arriving(seed)) for seed in range(2 + 4 * runs)
    ]
    single, long, arrived = (
        statistics.median(column[2:]) for column in zip(*times, strict=True)
    )  # first calls compile
    return {
        "single_turn_seconds": single, "long_script_seconds": long, "ratio": long / single,
        "arriving_text_seconds": arrived, "arriving_ratio": arrived / single,
    }  # fmt: skip


def streamed(engine: Engine, script: str) -> dict:
    """Lead over real time and memory of a stream that is read as fast as it comes."""
    megabytes, leads, given, first = [], [], 0.0, 0.0
    with engine.stream(script, seed=0) as stream:
        for chunk in stream:
            now = time.perf_counter()
            first = first or now
            if given:
                leads.append(given - (now - first))
            given += len(chunk) / engine.sample_rate
            if given >= 60 * len(megabytes):
                megabytes.append(round(resident() / 1e6, 1))
        spent = time.perf_counter() - first
    return {
        "audio_seconds": round(given, 1), "seconds": spent, "times_real_time": given / spent,
        "smallest_lead_seconds": min(leads), "megabytes_by_minute": megabytes,
        "tries_per_piece": statistics.mean(piece.tries for piece in stream.result.pieces),
    }  # fmt: skip


def slots_compared(engine: Engine, script: str, options: argparse.Namespace) -> dict:
    """Seconds of `generate` by number of slots, medians of alternating runs, and CPU seconds by what threads do."""
    engines = {slots: with_slots(engine, slots) for slots in options.max_slots}
    seconds, spent = {slots: [] for slots in engines}, {slots: Counter() for slots in engines}
    codes = []
    for number in range(1 + options.runs):
        for slots, each in engines.items():
            before, started = _cpu_seconds(), time.perf_counter()
            made = each.generate(script, seed=0, max_tokens=options.max_tokens, details=True)
            took, after = time.perf_counter() - started, _cpu_seconds()
            codes.append(made.codes)
            if number:  # the first calls allocate and compile
                seconds[slots].append(took)
                spent[slots].update({stage: after[stage] - before[stage] for stage in after})
    fewest = min(seconds)
    return {
        "audio_seconds": round(made.duration, 1),
        "equal": all(np.array_equal(codes[0], each) for each in codes),
        "results": [
            {
                "slots": slots, "seconds": statistics.median(times), "audio_seconds": round(made.duration, 1),
                "times_as_fast": statistics.median(a / b for a, b in zip(seconds[fewest], times, strict=True)),
                "cpu_seconds": {stage: round(total / options.runs, 3) for stage, total in spent[slots].items()},
            }
            for slots, times in seconds.items()
        ],
    }  # fmt: skip


def _cpu_seconds() -> Counter:
    """CPU seconds of this process so far, in all, and of its threads by what they do."""
    spent: Counter = Counter()
    for thread in threading.enumerate():
        try:
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended, or this is not Linux
            continue
        stage = STAGES.get(thread.name)
        if stage:
            spent[stage] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    spent["all"] = time.process_time()
    return spent


def _first_chunk_line(row: dict) -> str:
    return (
        f"first chunk: {row['single_turn_seconds']:.4f} s of a single turn, {row['long_script_seconds']:.4f} s of the "
        f"long script, ratio {row['ratio']:.2f}; {row['arriving_text_seconds']:.4f} s of a text that arrives, "
        f"ratio {row['arriving_ratio']:.2f}"
    )


def _stream_line(row: dict) -> str:
    return (
        f"streamed: {row['audio_seconds']} s of sound in {row['seconds']:.1f} s "
        f"({row['times_real_time']:.1f}x real time), smallest lead {row['smallest_lead_seconds']:.2f} s; MB by minute: "
        f"{' '.join(f'{each:.0f}' for each in row['megabytes_by_minute'])}"
    )


def _slots_line(row: dict) -> str:
    spent = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row["cpu_seconds"].items())
    return (
        f"{row['slots']} slots: {row['audio_seconds']} s of sound in {row['seconds']:.2f} s, "
        f"{row['times_as_fast']:.2f} times as fast; CPU seconds: {spent}"
    )


if __name__ == "__main__":
    run(main)
