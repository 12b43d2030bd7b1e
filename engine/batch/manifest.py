"""The manifest of a job: a line per request that has ended, appended as they end, from which a killed job goes on."""

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files.output import write_whole

try:
    import fcntl
except ImportError:  # Windows: nothing tells two jobs in one folder from each other
    fcntl = None  # type: ignore[assignment]

NAME = "manifest.jsonl"
ABANDONED = re.compile(r"\.[0-9a-f]{16}\.partial")  # what a process that is killed leaves of `write_whole`


@dataclass(frozen=True)
class Record:
    """How a request ended.

    Attributes:
        id: of the line; None for a line that is no JSON object.
        file: name of the audio file in the folder; None after an error.
        seconds: of audio.
        seed: with which the same line gives the same audio; None where the line failed before it had one.
        finish_reason: "stop", or "length" where `max_tokens` cut it; None after an error.
        error: None for a file that was made.
        request: hash of the line and the options that it was made with.
    """

    id: str | None
    file: str | None = None
    seconds: float | None = None
    seed: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    request: str = ""


class Manifest:
    """The records of a folder. One process at a time works in a folder.

    Attributes:
        done: ids of the requests that had been made when this was opened.
        made: files recorded since.
    """

    def __init__(self, folder: Path):
        """`open_manifest` makes one."""
        self.folder, self.made = folder, 0
        self.done: set[str] = set()
        self._appending = threading.Lock()

    def append(self, record: Record) -> None:
        """Add a record, on the disk when this returns. Any thread may."""
        with self._appending, open(self.folder / NAME, "ab") as file:
            file.write(_encoded(record))
            file.flush()
            os.fsync(file.fileno())
            self.made += record.error is None

    def clean(self, asked: Mapping[str, str]) -> None:
        """Leave only the records of files that are there and wanted so: failed lines are tried again, a line that was
        half written and files that a killed process was writing go. `asked` are hashes of requests by id."""
        for path in self.folder.iterdir():
            if ABANDONED.fullmatch(path.name):
                path.unlink()
        path = self.folder / NAME
        if not path.exists():
            return
        records: dict[str, Record] = {}
        with open(path, "rb") as file:
            for line in file:
                record = _decoded(line)
                if record is not None and record.id is not None:
                    records.pop(record.id, None)  # the last one counts, in its place
                    there = record.file is not None and (self.folder / record.file).is_file()
                    if there and asked.get(record.id, record.request) == record.request:
                        records[record.id] = record
        write_whole(path, b"".join(map(_encoded, records.values())))
        self.done = records.keys() & asked.keys()


@contextmanager
def open_manifest(folder: Path, asked: Mapping[str, str]) -> Iterator[Manifest]:
    """The manifest of a folder, for this process alone; see `Manifest.clean`.

    Raises:
        RuntimeError: another process works in the folder.
        OSError: it cannot be read or written.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"another dia-engine batch is at work in {folder}") from None
        manifest = Manifest(folder)
        manifest.clean(asked)
        yield manifest
    finally:
        os.close(lock)


def _encoded(record: Record) -> bytes:
    return json.dumps(asdict(record), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _decoded(line: bytes) -> Record | None:
    """A record; None for a line that is none, such as one that was half written."""
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names = {field.name for field in fields(Record)}
    if not line.endswith(b"\n") or not isinstance(values, dict) or not set(values) <= names:
        return None
    if not isinstance(values.get("id"), str) or not isinstance(values.get("file"), str | None):
        return None
    return Record(**values)
