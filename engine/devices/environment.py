"""What a report of a fault should tell of a machine; `dia-engine info` prints it."""

import os
import platform
from importlib import metadata

import torch

from .. import __version__

PACKAGES = ("triton", "numpy", "huggingface_hub", "soundfile")


def described_environment() -> list[str]:
    """Versions, system, CPU and GPUs, a line each."""
    installed = [f"{name} {_version(name)}" for name in PACKAGES]
    return [
        f"versions    dia-engine {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        + ", ".join(installed),
        f"system      {platform.platform()}",
        f"CPU         {processor()}, cores for this process: {cores()}, threads of torch: {torch.get_num_threads()}",
        *_gpus(),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(none)"


def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["GPU         none that torch can use"]
    built = f"torch for ROCm {torch.version.hip}" if torch.version.hip else f"torch for CUDA {torch.version.cuda}"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        f"GPU         {each.name}, capability {each.major}.{each.minor}, {each.total_memory / 1e9:.0f} GB; {built}"
        for each in found
    ]
