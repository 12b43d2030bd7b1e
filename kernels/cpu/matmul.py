"""y = x W^T in the compiled code. A quantized weight stays as it is in memory."""

import ctypes
import functools
import os
from typing import TypeGuard

import torch

from ..quantized import QuantWeight, is_quantized
from .build import library
from .structures import KINDS, is_compilable, matrix_of
from .variants import chosen_variant


def is_compiled(weight: object) -> TypeGuard[QuantWeight]:
    """Whether there is compiled code for the products of a quantized weight."""
    return is_quantized(weight) and is_compilable(weight) and library() is not None


def compiled_for_sequences(x: torch.Tensor) -> ctypes.CDLL | None:
    """The compiled functions, where they are faster than torch for what a sequence does between its products.

    That is in float32 on a CPU with AVX-512.
    """
    return library() if x.device.type == "cpu" and x.dtype == torch.float32 and uses_avx512() else None


def compiled_for_rows(x: torch.Tensor) -> ctypes.CDLL | None:
    """`compiled_for_sequences`, for those that want rows one after the other in memory."""
    return compiled_for_sequences(x) if x.dim() == 2 and x.is_contiguous() else None


@functools.cache
def uses_avx512() -> bool:
    """Whether the compiled code is there and uses it."""
    variant = chosen_variant()
    return variant is not None and variant.has_avx512 and library() is not None


def thread_count() -> int:
    """How many threads the compiled code may use: as many as torch, at most one per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), cores)


def multiply(x: torch.Tensor, weight: torch.Tensor | QuantWeight, functions: ctypes.CDLL | None = None) -> torch.Tensor:
    """A row's result does not depend on the others.

    Args:
        x: [M, K] of any float dtype. With int8, a row with an infinite number gives NaN throughout.
        weight: [N, K].
        functions: another variant than that of this CPU.

    Returns:
        [M, N] float32.
    """
    x = (x if x.dtype in KINDS else x.float()).contiguous()
    functions, matrix = functions or _functions(), matrix_of(weight)
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device="cpu")
    scratch = scratch_memory(functions.multiply_bytes(matrix, x.shape[0]))
    given = x.data_ptr(), KINDS[x.dtype], x.shape[0]
    functions.multiply_matrix(matrix, *given, y.data_ptr(), scratch.data_ptr(), thread_count())
    return y


def read(weight: QuantWeight) -> torch.Tensor:
    """`weight.dequantize()`, bit for bit."""
    matrix = torch.empty(tuple(weight.shape), dtype=weight.dtype, device="cpu")
    _functions().read_matrix(matrix_of(weight), matrix.data_ptr(), KINDS[weight.dtype], thread_count())
    return matrix


def scratch_memory(count: int) -> torch.Tensor:
    """Memory for the compiled code, which wants it at a multiple of 64 bytes, as torch allocates it.

    Raises:
        MemoryError: there is none left.
    """
    try:
        return torch.empty(max(count, 1), dtype=torch.uint8, device="cpu")
    except RuntimeError:
        raise MemoryError(f"no memory for {count} bytes that a product needs") from None


def _functions() -> ctypes.CDLL:
    compiled = library()
    if compiled is None:
        raise RuntimeError("the products of quantized weights are not compiled here, see is_compiled")
    return compiled
