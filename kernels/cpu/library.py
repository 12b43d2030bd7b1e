"""The C files beside this one, compiled on first use for the CPU that runs them, as Triton compiles its kernels."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
# The first that is there, or the one that CC names. GCC first: its OpenMP is torch's on Linux, one pool of threads.
COMPILERS = ("gcc", "cc", "clang")

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
        compiled = _compile()
    except OSError as error:
        warnings.warn(f"quantised weights are multiplied slowly on this CPU, for want of a C compiler: {error}")
        return None
    for name, arguments in _SIGNATURES.items():
        getattr(compiled, name).argtypes = arguments
    return compiled


def _compile() -> ctypes.CDLL:
    """Raises OSError, with the first line of what the compiler says."""
    compiler = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, COMPILERS), COMPILERS[0])]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "products.so"  # once loaded, the file is needed no more
        command = [*compiler, *FLAGS, *SOURCES, "-o", target, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler[0]} was not done after a minute") from None
        if done.returncode:
            raise OSError(next(iter(done.stderr.splitlines()), f"{compiler[0]} failed"))
        return ctypes.CDLL(str(target))
