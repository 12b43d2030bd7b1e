"""How much memory a piece of work needs beside what was there before it."""

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class WorkingMemory:
    """Measures from its construction: on a GPU what torch allocates there, on Linux the process's resident memory."""

    def __init__(self, device: torch.device):
        self.device, self.on_gpu = device, device.type == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif _STATUS.exists():
            _CLEAR.write_text("5")  # sets the peak back to the present size
            self.before = resident()

    def peak(self) -> int | None:
        """Bytes at the peak beyond those at the start; None where nothing can tell."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return resident("VmHWM") - self.before if _STATUS.exists() else None


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process's memory now, or by another field of Linux's status of it."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
