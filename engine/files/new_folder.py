"""A folder that appears whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .paths import user_target

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves behind stays there
    fcntl = None  # type: ignore[assignment]


def nearest_existing(path: Path) -> Path:
    """An absolute path, or the nearest of its parents that is there, be it a link to nothing."""
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def check_new_folder(folder: str | Path) -> Path:
    """Refuse to write over anything, or where nothing can be.

    Returns:
        the absolute path.

    Raises:
        FileExistsError: a file, a folder that holds something, or one where a file system is mounted.
        NotADirectoryError, PermissionError: what it would lie in is a file, or may not be written.
        FileNotFoundError: a name that begins with `~user` where there is no such user.
    """
    path = user_target(folder).absolute()
    if path.is_symlink() and path.is_dir():
        path = Path(os.path.realpath(path))  # which can be replaced by another one
    if os.path.ismount(path):
        raise FileExistsError(f"{path} is where a file system is mounted, and cannot be replaced: name a folder in it")
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    above = nearest_existing(path.parent)
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be created: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be created: no permission to write in {above}")
    return path


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` at the end, and is removed after any failure.

    What an earlier process that was killed left of the same folder is removed first.

    Raises:
        OSError: as `check_new_folder`, or the folder cannot be created.
    """
    path = check_new_folder(folder)
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        partial, lock = _locked_folder(path)
    except OSError as error:
        remove_empty(absent)
        raise type(error)(f"{path} cannot be created: {error.strerror or error}") from None
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:  # an interruption too must not leave half a folder behind
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(absent)
        raise
    finally:
        os.close(lock)


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A folder beside `path` that is locked for as long as this process lives, and the lock's file descriptor."""
    name = f".{path.name}.{uuid.uuid4().hex}"
    created, partial = path.with_name(name), path.with_name(f"{name}.partial")
    created.mkdir()
    lock = os.open(created, os.O_RDONLY)
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    created.rename(partial)  # named so only now: what is named so and not locked has been abandoned
    return partial, lock


def remove_abandoned(parent: Path, name: str = "") -> None:
    """Remove what killed processes have left of `new_folder` in a folder: of all names, or of one."""
    if fcntl is None:
        return
    for partial in parent.iterdir():
        is_ours = partial.name.startswith(f".{name}." if name else ".") and partial.name.endswith(".partial")
        if is_ours and partial.is_dir():
            try:
                lock = os.open(partial, os.O_RDONLY)
            except FileNotFoundError:
                continue  # another process has just finished it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            except BlockingIOError:
                pass  # another process is at work
            finally:
                os.close(lock)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that were created on the way, innermost first, up to one that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
