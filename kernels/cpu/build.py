"""The C files beside this one, compiled on first use for the CPU that runs them, as Triton compiles its kernels."""

import ctypes
import functools
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
FLAGS = ("-O3", "-fno-math-errno", "-shared", "-fPIC")
# What not every compiler and assembler has: the CPU's own instructions and threads, in the order of doing without.
EXTRAS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
# The first that is there, or the one that CC names. GCC first: its OpenMP is torch's on Linux, one pool of threads.
COMPILERS = ("gcc", "cc", "clang")
SECONDS = 60  # that a compiler may take

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_X = [_pointer, _int, _long, _long]  # where, kind, rows, columns
_Y = [_long, _pointer, _int]  # columns, where, threads
_MATRIX = [_int, _pointer, _int]  # kind, where, threads
_SIGNATURES = {
    "multiply_int8": [*_X, _int, _pointer, _pointer, *_Y],  # digits, values, absmax
    "multiply_nf4": [*_X, _pointer, _pointer, _pointer, *_Y],  # packed, absmax, levels
    "read_int8": [_pointer, _pointer, _long, _long, *_MATRIX],  # values, absmax, rows, columns
    "read_nf4": [_pointer, _pointer, _pointer, _long, *_MATRIX],  # packed, absmax, levels, blocks
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None, after a warning that says why, where they cannot be compiled."""
    try:
        compiled = _compiled()
        for name, arguments in _SIGNATURES.items():
            getattr(compiled, name).argtypes = arguments
    except (OSError, AttributeError) as error:  # a library without the functions, among others
        logger.warning("the products of quantized weights could not be compiled, torch's are used instead (%s)", error)
        return None
    return compiled


def _compiled() -> ctypes.CDLL:
    """Raises OSError, with what the compiler says."""
    compiler = _compiler()
    # Windows does not delete a library that is in use; elsewhere the file is needed no more once it is loaded.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target, refusals = Path(folder) / "products.so", []
        for extras in EXTRAS:
            try:
                _compile([*compiler, *FLAGS, *extras], target)
                break
            except ChildProcessError as error:
                refusals.append(error)
        else:
            raise refusals[0]
        if refusals:
            missing = " and ".join(flag for flag in EXTRAS[0] if flag not in extras)
            logger.warning(
                "quantized weights could be faster on this CPU: compiled without %s (%s)", missing, refusals[0]
            )
        return ctypes.CDLL(str(target))


def _compiler() -> list[str]:
    named = os.environ.get("CC", "")
    try:
        return shlex.split(named) or [next(filter(shutil.which, COMPILERS), COMPILERS[0])]
    except ValueError as error:
        raise OSError(f"CC is {named!r}: {error}") from None


def _compile(command: list[str], target: Path) -> None:
    """Raises OSError; ChildProcessError if the compiler ran and failed."""
    command = [*command, *map(str, SOURCES), "-o", str(target), "-lm"]
    environment = {**os.environ, "TMPDIR": str(target.parent)}  # Python found that it can write there
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} was not done after {SECONDS} s") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if "error" in line]
        raise ChildProcessError((errors or said or [f"{command[0]} failed"])[0])
