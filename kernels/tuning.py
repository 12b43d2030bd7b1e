"""The environment variables that tune what runs on a GPU: see docs/environment.md."""

import os


def check_tuning() -> None:
    """Validate all of them. Called before a model is loaded: when they are used, requests are already running.

    Raises:
        ValueError: one has a value that it cannot have.
    """
    programs_per_row()
    warps_per_program(element_size=2)
    dependent_launches_are_wanted()
    text_graphs_are_on()


def programs_per_row() -> int:
    """Programs that a row of the cache is cut into, spans times groups, where there are that many spans.

    64 unless the environment variable DIA_ATTENTION_PROGRAMS says otherwise: with few requests more programs fill a
    larger GPU and make each span shorter, but leave more to put together.

    Raises:
        ValueError: it is not a power of two from 16 to 256.
    """
    asked = os.environ.get("DIA_ATTENTION_PROGRAMS", "64")
    if asked not in ("16", "32", "64", "128", "256"):
        raise ValueError(f"DIA_ATTENTION_PROGRAMS must be a power of two from 16 to 256, got {asked!r}")
    return int(asked)


def warps_per_program(element_size: int) -> int:
    """8 in float32, else 4, or 2 where the environment variable DIA_ATTENTION_WARPS says so: one after the other on an
    H100, launches for 16 requests took 14 us with those and 17 with 4; whole steps were not timed.

    Raises:
        ValueError: it is neither 2 nor 4.
    """
    asked = os.environ.get("DIA_ATTENTION_WARPS", "4")
    if asked not in ("2", "4"):
        raise ValueError(f"DIA_ATTENTION_WARPS must be 2 or 4, got {asked!r}")
    return int(asked) if element_size == 2 else 8  # float32 is multiplied in registers, which are too few in 4 warps


def dependent_launches_are_wanted() -> bool:
    """What the environment variable DIA_PDL says; unless it is 0, they are.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    asked = os.environ.get("DIA_PDL", "1")
    if asked not in ("0", "1"):
        raise ValueError(f"DIA_PDL must be 0 (no dependent launches) or 1, got {asked!r}")
    return asked == "1"


def text_graphs_are_on() -> bool:
    """Whether CUDA graphs read the texts (`model.text_graphs`): only if the environment variable DIA_TEXT_GRAPHS is 1.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    asked = os.environ.get("DIA_TEXT_GRAPHS", "0")
    if asked not in ("0", "1"):
        raise ValueError(f"DIA_TEXT_GRAPHS must be 1 (texts are read by CUDA graphs) or 0, got {asked!r}")
    return asked == "1"
