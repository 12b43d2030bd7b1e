"""Names of files for processes that work elsewhere."""

import os
from typing import TypeVar

from ..files.paths import user_path
from ..weights.source import TALKER

Name = TypeVar("Name", str, str | None)


def as_seen_elsewhere(name: Name) -> Name:
    """A name that may be a path, absolute where it is one on this machine: other processes have another folder to begin
    in. On another machine the same path must be there."""
    if name is None or name == TALKER:  # which is a name, whatever files there are
        return name
    path = user_path(name)
    return str(path.absolute()) if path.is_absolute() or os.path.lexists(path) else name
