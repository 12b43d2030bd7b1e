"""Where `benchmarks.gpu` runs, which file its measurements go to, and the table of them."""

import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from .gpu_plan import ROOT
from .journal import DONE, Journal

PACKAGES = ("torch", "triton", "transformers", "numpy")
SOURCES = ("kernels", "engine", "benchmarks")
QUERIES = {
    "driver": "driver_version",
    "sm_clock_max": "clocks.max.sm",
    "memory_clock_max": "clocks.max.memory",
    "power_limit": "power.limit",
}
CLOCKS = {"sm": "clocks.sm", "memory": "clocks.memory", "temperature": "temperature.gpu", "power": "power.draw"}


def setting() -> dict:
    """The GPU, its limits, and the versions of all that counts."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "architecture": f"{properties.major}{properties.minor}",
        "memory_gigabytes": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        **_nvidia_smi(QUERIES),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "code": code_fingerprint(),
        "date": date.today().isoformat(),
    }


def current_clocks() -> dict:
    """MHz, degrees and watts as they are now; empty where nvidia-smi is not to be had."""
    return _nvidia_smi(CLOCKS)


def _nvidia_smi(queries: dict[str, str]) -> dict:
    command = ["nvidia-smi", f"--query-gpu={','.join(queries.values())}", "--format=csv,noheader", "-i", _nvidia_id()]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(queries, (value.strip() for value in output.strip().split(",")), strict=False))


def _nvidia_id() -> str:
    """What nvidia-smi calls the current GPU: it does not know of CUDA_VISIBLE_DEVICES, which changes the numbers."""
    if not torch.cuda.is_available():
        return "0"
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return f"GPU-{uuid}" if uuid else str(torch.cuda.current_device())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_fingerprint() -> str:
    """Eight digits that change with the code: measurements of other code are not gone on with."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".c", ".h"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def journal_path(results: Path, described: dict) -> Path:
    """The journal of the same GPU, code and versions to go on with, or a new one."""
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", described["gpu"]).strip("-").lower()
    same = ("gpu", "code", "driver", "cuda", "python", *PACKAGES)
    for path in sorted(results.glob(f"{gpu}-*.jsonl"), reverse=True):
        found = Journal(path).entries("setting")
        if found and all(found[0].get(name) == described.get(name) for name in same):
            return path
    path, number = results / f"{gpu}-{described['date']}.jsonl", 1
    while path.exists():
        number += 1
        path = results / f"{gpu}-{described['date']}-{number}.jsonl"
    return path


def table(journal: Journal) -> str:
    """All that a journal has, for people."""
    lines = []
    for described in journal.entries("setting"):
        shown = {name: value for name, value in described.items() if name not in ("part", "name", "status")}
        lines.append(", ".join(f"{name} {value}" for name, value in shown.items()))
    entries = [entry for entry in journal.entries() if entry["part"] != "setting"]
    for part in dict.fromkeys(entry["part"] for entry in entries):
        lines += ["", part]
        lines += [f"  {line}" for entry in entries if entry["part"] == part for line in _lines(entry)]
    return "\n".join(lines)


def _lines(entry: dict) -> Iterator[str]:
    """The figures of a measurement, and its status where that says more."""
    name, figures = entry["name"], list(_figures(entry))
    if entry["status"] == "out of memory":
        yield f"{name:58} out of memory"
    elif not figures or entry["status"] not in DONE:
        clock = entry.get("clocks", {}).get("sm")
        yield f"{name:58} {entry['status']} in {entry['seconds']:.0f} s" + (f", then at {clock}" if clock else "")
    yield from figures


def _figures(entry: dict) -> Iterator[str]:
    """Of a measurement that was cut there are not all."""
    name, report = entry["name"], entry.get("report", {})
    if "first_audio_seconds" in report:
        seconds, stream = report["first_audio_seconds"], report.get("stream")
        underruns = f", {stream['underruns']} underruns" if stream else ""
        yield (
            f"{name:58} first sound p50 {1e3 * seconds['p50']:7.1f} ms, p95 {1e3 * seconds['p95']:7.1f} ms{underruns}"
        )
    for row in report.get("whole", []):
        ratio = row["first_audio_seconds"] / report["first_audio_seconds"]["p50"]
        yield f"{'  ' + row['name']:58} {row['first_audio_seconds']:.2f} s, {ratio:.1f}x later"
    for row in report.get("loads", []):
        first, slots = row["first_audio_seconds"], f", {row['slots']} slots" if row["slots"] else ""
        yield (
            f"{name + ': ' + row['system'] + slots:58} {row['rate']:7.2f} requests/s, {row['kept']} of "
            f"{row['requests']} kept, first sound p50 {1e3 * first['p50']:.0f} ms, "
            f"p95 {1e3 * first['p95']:.0f} ms, {row['times_real_time']:.1f}x real time"
        )
    for row in report.get("results", []):
        yield _tiling(name, row) if "projection" in row else _speed(name, row)
    if "us_per_call" in entry:
        yield f"{name:58} {entry['us_per_call']:8.2f} us {entry['gigabytes_per_second']:8.0f} GB/s {_shares(entry)}"


def _speed(name: str, row: dict) -> str:
    return (
        f"{name:58} {row['step_milliseconds']:8.3f} ms/step {row['steps_per_second']:8.1f} steps/s "
        f"{row['times_real_time']:7.2f}x real time {_shares(row)}"
    )


def _tiling(name: str, row: dict) -> str:
    fastest = f", fastest {row['candidates'][0][0]:8.2f} us" if row["candidates"] else ""
    title = f"{name}: {row['projection']}, {row['quant']}, {row['slots']} slots"
    return f"{title:58} {row['chosen']:8.2f} us{fastest}"


def _shares(figures: dict) -> str:
    peak = figures.get("peak_percent")
    share = f"{figures['roofline_percent']:4.0f} % of a copy"
    return share if peak is None else f"{peak:4.0f} % of peak, {share}"
