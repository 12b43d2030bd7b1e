"""The files that a line's sound comes from: those of the model and its codec, and the audio prompts."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files.hub import CODEC, MODEL, Kind, local_path
from ..files.paths import user_path
from ..weights.source import TALKER
from .script_file import Line, prompt_paths

SUFFIXES = (".json", ".safetensors", ".bin", ".pth", ".pt")  # of configs and weights
BLOCK = 2**20


class UsedFiles:
    """Tells whether the files behind a line are those of another time.

    A model's files are compared by size and modification time, as they are large, and an audio prompt's by content.
    What comes from the hub or with the engine, and what cannot be read, has no files here.
    """

    def __init__(self, model: str, codec: str | None, prompts: Path):
        """
        Args:
            model, codec: as `Engine.load` has them.
            prompts: folder that relative paths of audio prompts begin in.
        """
        self._prompts = prompts
        self._stamps = ([] if model == TALKER else _stamps(model, MODEL)) + (_stamps(codec, CODEC) if codec else [])
        self._contents: dict[str, str | None] = {}  # of prompts, which lines share

    def digest(self, line: Line) -> str:
        """All files of a line as a short hash."""
        found = [self._stamps, [self._content(path) for path in _strings(prompt_paths(line, self._prompts))]]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]

    def _content(self, path: str) -> str | None:
        if path not in self._contents:
            self._contents[path] = _content(path)
        return self._contents[path]


def _stamps(name: str, kind: Kind) -> list[tuple[str, int, int]]:
    """Name, size and modification time of each file of something local. What is wrong with it the load tells."""
    with suppress(OSError, ValueError):
        path = local_path(name, kind)
        if path is None:
            return []
        files = [path] if path.is_file() else [*path.iterdir(), *path.glob("codec/*")]
        found = sorted(each for each in files if each.suffix in SUFFIXES and each.is_file())
        statuses = [(str(each.relative_to(path)), each.stat()) for each in found]
        return [(each, status.st_size, status.st_mtime_ns) for each, status in statuses]
    return []


def _strings(prompt: Any) -> Iterator[str]:
    """The paths of one prompt, or of each speaker's."""
    values = prompt.values() if isinstance(prompt, dict) else [prompt]
    yield from (each for each in values if isinstance(each, str))


def _content(name: str) -> str | None:
    with suppress(OSError, ValueError):  # the line's own error, when it is read
        path = user_path(name)
        if path.is_file():
            content = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    content.update(block)
            return content.hexdigest()
    return None
