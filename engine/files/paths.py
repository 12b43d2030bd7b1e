"""Paths as users write them, files that must be there, and small JSON files."""

import json
import os
from pathlib import Path
from typing import Any

from ..messages import first_line

# A config is a few kilobytes and an index of shards some tens; parsed, JSON takes up to thirty times its size.
MAX_JSON_BYTES = 4 * 2**20
_LFS_POINTER = b"version https://git-lfs"


def user_path(name: str | Path) -> Path:
    """A path that a user wrote. What exists under exactly this name is meant; otherwise a leading `~` or `~user` is a
    home folder. A user that does not exist leaves the name as it is."""
    return Path(name) if os.path.lexists(name) else Path(os.path.expanduser(name))


def user_target(name: str | Path) -> Path:
    """As `user_path`, for something to be created.

    Raises:
        FileNotFoundError: the name begins with `~user`, and there is no such user.
    """
    path = user_path(name)
    first = path.parts[0] if path.parts else ""
    if str(name).startswith("~") and first.startswith("~") and not os.path.lexists(first):
        raise FileNotFoundError(f"{name}: no user {first[1:]!r}; write ./{name} for a folder of that name")
    return path


def require_file(path: Path, kind: str) -> None:
    """Check that a regular file with content of its own is there.

    Args:
        kind: what messages call it, such as "config file".

    Raises:
        FileNotFoundError: nothing is there, or a link to nothing, or something that is not a file.
        ValueError: a Git LFS pointer.
        OSError: it cannot be opened.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"no {kind} at {path}: a broken link to {os.readlink(path)}")
    if not path.is_file():
        found = ": it is a folder" if path.is_dir() else ": it is no regular file" if path.exists() else ""
        raise FileNotFoundError(f"no {kind} at {path}{found}")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path}: a Git LFS pointer, not the {kind}; run `git lfs pull` in its folder")


def read_json(path: Path, kind: str = "config file") -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises:
        FileNotFoundError, OSError: as `require_file`.
        ValueError: a Git LFS pointer, more than 4 MB, not UTF-8, not JSON, or nested too deeply; the message names it.
    """
    require_file(path, kind)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is not JSON that this engine reads: it has {size} bytes, at most {MAX_JSON_BYTES}")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is not JSON that this engine reads: it is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and an integer of more than 4300 digits
        raise ValueError(f"{path} is not JSON: {first_line(error)}") from None
