"""native/step.c as a library for this CPU: the one that came with the package, or one that is compiled on first use,
as Triton compiles its kernels, and kept on disk."""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import stat
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from .structures import SIGNATURES
from .variants import FLAGS, SOURCES, Variant, possible_variants

logger = logging.getLogger(__name__)

COMPILERS = ("gcc", "cc", "clang")  # the first that is there, or the one that CC names
SECONDS = 120  # that a compiler may take


class UnknownInstructions(OSError):
    """The compiler works, but not for a variant: it, or the assembler that it calls, is older than the CPU."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions for this CPU; None, after a warning that says why, where they cannot be compiled.

    Raises:
        ValueError: the environment variable DIA_CPU names no variant that this CPU runs.
    """
    return _first_of(possible_variants())


@functools.cache
def library_of(variant: Variant) -> ctypes.CDLL | None:
    """The same for a variant of one's choice."""
    return _first_of((variant,))


def _first_of(variants: tuple[Variant, ...]) -> ctypes.CDLL | None:
    """Of the first variant that came with the package or that the compiler knows."""
    failure: Exception | None = None
    compiler_works = True
    for variant in variants:
        if not compiler_works and not _packaged(variant).exists():
            continue
        try:
            return _functions(variant)
        except (OSError, AttributeError) as error:  # a library without the functions, among others
            failure = failure or error
            compiler_works = compiler_works and isinstance(error, UnknownInstructions)
    if failure is not None:
        logger.warning(
            "the decode step and the codec have no compiled code on this machine, torch runs them instead (%s)", failure
        )
    return None


def _functions(variant: Variant) -> ctypes.CDLL:
    """Raises AttributeError, OSError."""
    compiled = _compiled(variant)
    for name, (arguments, result) in SIGNATURES.items():
        function = getattr(compiled, name)
        function.argtypes, function.restype = arguments, result
    return compiled


def _compiled(variant: Variant) -> ctypes.CDLL:
    """Raises OSError, with what the compiler says."""
    packaged = _packaged(variant)
    if packaged.exists():
        with suppress(OSError):  # for a newer C library than this machine's: compiled here, if that can be
            if _is_whole(packaged):
                return _load(packaged)
    command = _command(variant)
    folder = _cache_folder()
    if folder is None:
        # Windows does not delete a library that is in use; elsewhere the file is needed no more once it is loaded.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            return _load(_compile(command, Path(temporary) / "step.so"))
    target = folder / f"step-{variant.name}-{_fingerprint(command)}.so"
    with suppress(OSError):  # not there, not readable, or of another system
        if _is_whole(target):
            return _load(target)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        made = _compile(command, Path(temporary) / "step.so")
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        made.replace(target)  # at once, for whoever else is looking for it
    return _load(target)


def _packaged(variant: Variant) -> Path:
    """Where a wheel has the library of a variant."""
    return SOURCES / f"step-{variant.name}.so"


def _command(variant: Variant | None = None) -> list[str]:
    """For a variant, or for any CPU. Raises OSError."""
    return [*_compiler(), *FLAGS, "-shared", "-fPIC", *(variant.flags if variant else ())]


def _is_whole(path: Path) -> bool:
    """Whether a library has its end, where an ELF file has its table of sections: what is cut off may end the process
    as soon as it is loaded."""
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return len(header) == 64  # of a system with other libraries
    table, entry, count = struct.unpack_from("<Q10x2H", header, 40)
    return path.stat().st_size >= table + entry * count


def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _fingerprint(command: list[str]) -> str:
    """Of all that the library depends on: the sources, the compiler and its version, the flags."""
    digest = hashlib.sha256(repr(command).encode())
    for source in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(source.read_bytes())
    path = shutil.which(command[0])
    if path:
        status = os.stat(os.path.realpath(path))
        digest.update(f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _cache_folder() -> Path | None:
    """Where libraries are kept, None if there is no such place: code is loaded only from where no other user writes."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dia-engine"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # the latter: a user without a home
        return None
    if not hasattr(os, "getuid"):
        return folder
    private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if private and os.access(folder, os.W_OK) else None


def _compiler() -> list[str]:
    named = os.environ.get("CC", "")
    try:
        return shlex.split(named) or [next(filter(shutil.which, COMPILERS), COMPILERS[0])]
    except ValueError as error:
        raise OSError(f"CC is {named!r}: {error}") from None


def _compile(command: list[str], target: Path) -> Path:
    """Raises OSError."""
    done = _run([*command, str(SOURCES / "step.c"), "-o", str(target), "-lm"], target.parent)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if "error" in line]
        nothing = [*_command(), "-x", "c", os.devnull, "-o", str(target.with_name("nothing.so"))]
        works = _run(nothing, target.parent).returncode == 0
        raise (UnknownInstructions if works else OSError)((errors or said or [f"{command[0]} failed"])[0])
    if not target.exists():
        raise OSError(f"{command[0]} wrote no {target.name}")
    return target


def _run(command: list[str], temporary: Path) -> subprocess.CompletedProcess[str]:
    """Raises OSError: there is no such compiler, or it takes too long."""
    environment = {**os.environ, "TMPDIR": str(temporary)}  # Python found that it can write there
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} was not done after {SECONDS} s") from None
