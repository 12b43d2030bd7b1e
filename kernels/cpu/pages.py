"""Room for weights in large pages.

Reading at the speed of memory leaves no time to look up an address every 4 KB. Linux gives pages of 2 MB for memory
whose owner asks before writing to it.
"""

import math
import mmap
from collections.abc import Sequence

import torch

PAGE = 2 << 20  # bytes of a large page of x86; where they have other sizes, the system does as it likes


def empty_weight(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """`torch.empty`; on a CPU, a tensor of 2 MB or more in large pages if the system has them."""
    count = math.prod(shape)
    if torch.device(device).type == "cpu" and count * dtype.itemsize >= PAGE:
        memory = _large_pages(count * dtype.itemsize)
        if memory is not None:
            return torch.frombuffer(memory, dtype=dtype, count=count).view(tuple(shape))
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def _large_pages(count: int) -> memoryview | None:
    """Bytes of its own from the system, from the start of a page on; None where it has no such pages or no room."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(-1, count + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # the kernel was built without, or there is no room: torch says that better
        return None
    start = torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr()
    return memoryview(memory)[-start % PAGE :][:count]
