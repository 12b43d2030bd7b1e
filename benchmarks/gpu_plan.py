"""What `benchmarks.gpu` measures: its parts in order, and the commands of each, the most telling first."""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent
BATCHES = (1, 4, 16, 64)
SLOTS = ("1", "4", "16", "32", "64")
MODEL = ["--model", "synthetic:full", "--dtype", "bfloat16"]


@dataclass(frozen=True)
class Measurement:
    """A command that is one line of the journal, or writes lines of its own there and leaves out those it finds."""

    part: str
    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    json: Path | None = None  # written by the command, copied into its line


@dataclass(frozen=True)
class Switch:
    """A choice that only a GPU can judge: an environment variable, its values, and where it should matter."""

    variable: str
    values: tuple[str, ...]
    batches: tuple[int, ...]
    quant: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether the code reads it: otherwise both values would time the same."""
        sources = chain((ROOT / "kernels").glob("*.py"), (ROOT / "engine").rglob("*.py"))
        return any(self.variable in path.read_text(encoding="utf-8") for path in sources)


SWITCHES = (
    Switch("DIA_TEXT_GRAPHS", ("0", "1"), (1, 16), ("int8", "nf4")),  # in prefill: the column "text"
    Switch("DIA_PDL", ("1", "0"), (1, 16), ("int8", "nf4")),  # dependent launches, from sm_90
    Switch("DIA_ATTENTION_WARPS", ("4", "2"), (1, 16), ("int8",)),
    Switch("DIA_ATTENTION_PROGRAMS", ("64", "128"), (1,)),  # of the spans of one request
)


def plan(part: str, journal: Path, reference: str | None = None) -> list[Measurement]:
    """The measurements of a part.

    Args:
        part: one of PARTS.
        journal: where commands write lines of their own.
        reference: checkout of nari-labs/dia, to time it as well.
    """
    return PARTS[part](journal, reference)


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def gpu_test_files() -> list[Path]:
    """Files with tests marked `gpu`, by their text: collecting them would take as long as running some."""
    files = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: ("kernels" not in path.parts, path))
    marked = re.compile(r"mark\.gpu\b|^\s*dtypes,$|import .*\bdtypes\b", re.MULTILINE)
    return [path for path in files if marked.search(path.read_text(encoding="utf-8"))]


def _correctness(journal: Path, reference: str | None) -> list[Measurement]:
    of_kernels = [path for path in gpu_test_files() if path.parent.name == "kernels"]
    # All of them run on the GPU, also those that need none: float32 is compiled as well. Most of the time goes to
    # compiling, so in several processes.
    processes = max(1, min(12, (os.cpu_count() or 1) - 2))
    side_by_side = ["-n", str(processes)] if importlib.util.find_spec("xdist") else []
    measurements = [_tests("kernels", of_kernels, *side_by_side)]
    for path in gpu_test_files():
        if path not in of_kernels:  # one by one: they look at the memory that is free
            measurements.append(_tests(path.stem, [path], "-m", "gpu"))
    return measurements


def _tests(name: str, paths: list[Path], *arguments: str) -> Measurement:
    files = [str(path.relative_to(ROOT)) for path in paths]
    return Measurement("correctness", name, _python("pytest", "-q", *arguments, *files))


def _tokens_per_sec(part: str, label: str, batch: int, journal: Path, *arguments: str) -> list[str]:
    common = ["--batch", str(batch), "--part", part, "--label", label, "--journal", str(journal)]
    return _python("benchmarks.tokens_per_sec", *MODEL, *common, *arguments)


def _speed(journal: Path, reference: str | None) -> list[Measurement]:
    peers = ["--against", "transformers", *(["nari", "--reference", reference] if reference else [])]
    # What follows captures steps, one kernel after the other: a minute for each format.
    measurements = [Measurement("speed", "kernels compiled", _python("benchmarks.compile_kernels"))]
    for batch in BATCHES:
        label = f"batch {batch}"
        command = _tokens_per_sec(
            "speed", label, batch, journal, "--steps", "200", "--peer-runs", "1", "--quant", "int8", "nf4", *peers
        )  # fmt: skip
        measurements.append(Measurement("speed", label, command))
    return measurements


def _kernels(journal: Path, reference: str | None) -> list[Measurement]:
    arguments = ["-q", "benchmarks/bench_kernels.py", "--benchmark-only", "--journal", str(journal)]
    return [Measurement("kernels", "all kernels", _python("pytest", *arguments))]


def _tuning(journal: Path, reference: str | None) -> list[Measurement]:
    measurements = []
    for switch in filter(lambda switch: switch.exists, SWITCHES):
        for batch in switch.batches:
            for value in switch.values:  # one after the other, so that they meet the same clocks
                label = f"{switch.variable}={value}, batch {batch}"
                quant = ["--quant", *switch.quant] if switch.quant else []
                command = _tokens_per_sec("tuning", label, batch, journal, "--steps", "400", *quant)
                measurements.append(Measurement("tuning", label, command, {switch.variable: value}))
    json = journal.with_name(f".{journal.stem}-tilings.json")
    measurements.append(Measurement("tuning", "tilings", _python("benchmarks.tilings", "--json", str(json)), json=json))
    return measurements


def _audio(journal: Path, reference: str | None) -> list[Measurement]:
    peers = ["--against", "transformers", *(["nari", "--reference", reference] if reference else [])]
    measurements = []
    for name, arguments in (
        ("bfloat16", [*peers, "--peer-steps", "100"]),
        ("int8", ["--quant", "int8"]),
        ("nf4", ["--quant", "nf4"]),
        ("int8, codec in float16", ["--quant", "int8", "--codec-dtype", "float16"]),
    ):
        json = journal.with_name(f".{journal.stem}-first-audio.json")
        command = _python("benchmarks.first_audio", *MODEL, *arguments, "--json", str(json))
        measurements.append(Measurement("audio", name, command, json=json))
    return measurements


def _load(journal: Path, reference: str | None) -> list[Measurement]:
    measurements = []
    # At each number of slots three loads of 32 streams of 1.5 s: two minutes for one slot that just keeps up with real
    # time, which many slots need not.
    common = ["--load", "0.5", "0.8", "0.95", "--requests", "32", "--max-tokens", "145"]
    for name, arguments in (("bfloat16", []), ("int8", ["--quant", "int8", "--no-lock"])):
        json = journal.with_name(f".{journal.stem}-load.json")
        command = _python("benchmarks.load", *MODEL, *arguments, "--slots", *SLOTS, *common, "--json", str(json))
        measurements.append(Measurement("load", name, command, json=json))
    return measurements


PARTS = {
    "correctness": _correctness,
    "speed": _speed,
    "kernels": _kernels,
    "tuning": _tuning,
    "audio": _audio,
    "load": _load,
}
