"""What this CPU has.

Every choice is a rule over these features and not a timing, so that two starts on one machine compute the same bits.
"""

import functools

import torch

X86_64_V3 = frozenset({"fma", "f16c", "bmi1", "bmi2", "movbe", "abm"})  # beside AVX2, by Linux' names


def has_amx() -> bool:
    """Whether oneDNN multiplies bfloat16 with AMX, the tile unit of Intel's servers since 2023."""
    return _supported("_is_amx_tile_supported")


def has_amx_int8() -> bool:
    """Whether AMX multiplies integers of 8 bits, and Linux lets this process use it, which is asked here."""
    return "amx_int8" in _linux_flags() and _supported("_init_amx")


def has_vnni() -> bool:
    """Whether there are instructions that add products of 8-bit integers in 32 bits."""
    return _supported("_is_vnni_supported")


def has_avx2() -> bool:
    """Whether there is all of x86-64-v3, which compilers are told: AVX2, and what came with it."""
    return _supported("_is_avx2_supported") and _linux_flags() >= X86_64_V3


def has_avx_vnni() -> bool:
    """The same in registers of 256 bits, which CPUs without AVX-512 may have: Intel's for desktops since 2021."""
    return "avx_vnni" in _linux_flags()  # torch does not tell


def has_avx512() -> bool:
    return _supported("_is_avx512_supported")


def has_avx512_bf16() -> bool:
    """Whether there are instructions that multiply pairs of bfloat16."""
    return _supported("_is_avx512_bf16_supported")


def multiplies(dtype: torch.dtype) -> bool:
    """Whether there are instructions for products of matrices in a dtype, which torch needs to be fast.

    Where nothing tells, as outside Linux, there are none for half precision.
    """
    if dtype == torch.bfloat16:
        return has_avx512_bf16() or has_amx() or "bf16" in _linux_flags()
    if dtype == torch.float16:
        return not _linux_flags().isdisjoint({"avx512_fp16", "amx_fp16", "asimdhp"})
    return True


@functools.cache
def _supported(name: str) -> bool:
    query = getattr(torch.cpu, name, None)  # underscored in torch 2.9 to 2.13: one that has gone counts as "no"
    return bool(query and query())


@functools.cache
def _linux_flags() -> frozenset[str]:
    """The features of the first core, by Linux' names, which are others on ARM; none on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(flags.partition(":")[2].split())
