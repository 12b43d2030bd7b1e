"""Which variant of the compiled code a CPU runs: a rule over its features, that never depends on a timing."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import features


@dataclass(frozen=True)
class Variant:
    """One build of native/step.c. All variants give the same bits."""

    name: str
    flags: tuple[str, ...]

    def runs_here(self) -> bool:
        """Whether this CPU has the instructions."""
        return _NEEDS[self.name]()

    @property
    def has_avx512(self) -> bool:
        return "-march=x86-64-v4" in self.flags


SOURCES = Path(__file__).parent / "native"
_DESCRIBED = json.loads((SOURCES / "variants.json").read_text(encoding="utf-8"))  # for setup.py too, which has no torch
# Contraction makes FMAs where the code has none, and other ones for each variant.
FLAGS = tuple(_DESCRIBED["common"])
# The fastest first.
VARIANTS = tuple(
    Variant(name, tuple(flags)) for machine in ("x86_64", "aarch64") for name, flags in _DESCRIBED[machine].items()
)


def _has_avx512() -> bool:
    return features.has_avx2() and features.has_avx512() and features.has_vnni()


def _has_avx512bf16() -> bool:
    return _has_avx512() and features.has_avx512_bf16()


_NEEDS: dict[str, Callable[[], bool]] = {
    "amx": lambda: _has_avx512bf16() and features.has_amx_int8(),
    "avx512bf16": _has_avx512bf16,
    "avx512": _has_avx512,
    "avx2vnni": lambda: features.has_avx2() and features.has_avx_vnni(),
    "avx2": features.has_avx2,
    "neon": lambda: platform.machine() in ("aarch64", "arm64"),
}


def possible_variants() -> tuple[Variant, ...]:
    """The variants that this CPU runs, the fastest first; or the one that the environment variable DIA_CPU names.

    Raises:
        ValueError: DIA_CPU names none, or one that this CPU does not run.
    """
    asked = os.environ.get("DIA_CPU", "")
    if asked == "none":
        return ()
    possible = tuple(variant for variant in VARIANTS if variant.runs_here())
    if not asked:
        return possible
    for variant in possible:
        if variant.name == asked:
            return (variant,)
    names = ", ".join([variant.name for variant in possible] + ["none"])
    raise ValueError(f"DIA_CPU must name a variant that this CPU runs ({names}), got {asked!r}")


def chosen_variant() -> Variant | None:
    """The first of `possible_variants`, None if there is none. A compiler that does not know it makes the next one."""
    return next(iter(possible_variants()), None)


def description() -> str:
    """The choice in words, for people."""
    variant = chosen_variant()
    if variant is None:
        return "torch's, as there is no compiled one for this CPU or DIA_CPU says so"
    return f"compiled for {variant.name}, if there is a C compiler"
