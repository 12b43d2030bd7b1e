"""Room for weights in large pages.

Reading at the speed of memory leaves no time to look up an address every 4 KB. Linux gives pages of 2 MB to those who ask
before they write.
"""

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Sequence

import torch

LEAST = 4 << 20  # bytes of a tensor, below which few of its bytes would lie in whole large pages
HUGEPAGE = 14  # MADV_HUGEPAGE

Advise = Callable[[int, int], object]


def empty_weight(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """`torch.empty`; on a CPU a large tensor is asked to lie in large pages, which takes effect as it is written."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    if tensor.device.type == "cpu" and tensor.nbytes >= LEAST:
        use_large_pages(tensor)
    return tensor


def use_large_pages(tensor: torch.Tensor, advise: Advise | None = None) -> None:
    """Ask for large pages for the memory of a tensor that nobody has written to; refused, it stays as it is.

    Args:
        tensor: contiguous, on the CPU.
        advise: asks for an address and a number of bytes, both of whole pages; default: the system, on Linux.
    """
    advise = advise or _system_advise()
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and first < end:
        advise(first, end - first)


@functools.cache
def _system_advise() -> Advise | None:
    """None where there is no such request."""
    if sys.platform != "linux":
        return None
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes, madvise.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return lambda address, count: madvise(address, count, HUGEPAGE)
