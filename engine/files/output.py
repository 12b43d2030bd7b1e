"""Files that are written: whether one can be put at a path, and written whole or not at all."""

import os
import secrets
import stat
from pathlib import Path

from ..messages import shown


def check_file_name(path: str | os.PathLike) -> None:
    """Raises ValueError: no file can have this name."""
    if not str(path):
        raise ValueError("the name of the file to write is empty")
    if "\0" in str(path):
        raise ValueError(f"the name of the file to write holds a null character: {shown(str(path))}")


def check_replaceable(path: Path) -> None:
    """Check that a file can be put at `path`.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: the folder or the file that is there may not be written.
        ValueError: the path is a folder, or its parent is not one.
        OSError: the operating system does not accept the path (too long, for instance).
    """
    target = Path(os.path.realpath(path))  # a link is followed, so that it stays a link
    parent_mode, mode = _stat_mode(target.parent), _stat_mode(target)
    if parent_mode is None:
        raise FileNotFoundError(f"{path}: folder {target.parent} does not exist; create it first")
    if not stat.S_ISDIR(parent_mode):
        raise ValueError(f"{path}: {target.parent} is not a folder")
    if mode is not None and not stat.S_ISREG(mode):
        kind = "is a folder" if stat.S_ISDIR(mode) else "is not an ordinary file"
        raise ValueError(f"{path} {kind}; name a file to write to")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write in folder {target.parent}")
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: no permission to overwrite this file")


def write_whole(path: str | Path, content: bytes) -> None:
    """Put `content` at a path whole, or leave everything as it was: it is written beside it, then moved.

    Raises:
        OSError: the disk is full or fails; the message names the path.
    """
    target = Path(os.path.realpath(path))  # a link is followed, so that it stays a link
    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
        except BaseException:  # an interruption too must not leave a half-written file behind
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from None


def _stat_mode(path: Path) -> int | None:
    """The stat mode of a path, None when there is nothing."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OSError(error.errno, f"cannot use path {path}: {error.strerror}") from None
