"""The manifest of a job: a line per request that has ended, appended as they end, from which a killed job goes on."""

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..files.output import check_replaceable, write_whole
from ..messages import described

try:
    import fcntl
except ImportError:  # Windows: nothing tells two jobs in one folder from each other
    fcntl = None  # type: ignore[assignment]

NAME = "manifest.jsonl"
BEGINNING = b'{"id": '  # of a record
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
        files: hash of the model's files and the audio prompts that it was made with; None in the records of versions
            that did not note it.
    """

    id: str | None
    file: str | None = None
    seconds: float | None = None
    seed: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    request: str = ""
    files: str | None = None


class Manifest:
    """The records of a folder. One process at a time works in a folder.

    Attributes:
        done: ids of the requests that had been made when this was opened.
        made: files recorded since.
    """

    def __init__(self, folder: Path, files: Mapping[str, str]):
        """`open_manifest` makes one."""
        self.folder, self.made, self._files = folder, 0, files
        self.done: set[str] = set()
        self._appending = threading.Lock()

    def keep(self, record: Record, content: bytes) -> Record:
        """Write the file of a record, if it has one, and add the record. Any thread may.

        Returns:
            the record as it was added: with an error where a folder, say, has the name of the file.

        Raises:
            OSError: it cannot be written.
        """
        if record.file is not None:
            path = self.folder / record.file
            try:
                check_replaceable(path)
            except ValueError as error:
                record = replace(record, file=None, seconds=None, finish_reason=None, error=described(error))
            else:
                write_whole(path, content)
        self.append(record)
        return record

    def append(self, record: Record) -> None:
        """Add a record and the hash of its files, on the disk when this returns. Any thread may."""
        record = self._with_files(record)
        with self._appending, open(self.folder / NAME, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                _write_all(file, _encoded(record))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # a record that another thread appends must begin its line
                raise
            self.made += record.error is None

    def clean(self, asked: Mapping[str, str]) -> None:
        """Leave only the records of files that are there and wanted so: failed lines are tried again, a line that was
        half written and files that a killed process was writing go. `asked` are hashes of requests by id.

        Raises:
            ValueError: the manifest is not one of this command, or no ordinary file.
            OSError: it cannot be read or written.
        """
        path = self.folder / NAME
        check_replaceable(path)
        records = self._records(path) if path.exists() else {}
        for each in self.folder.iterdir():
            if ABANDONED.fullmatch(each.name) and each.is_file():
                each.unlink()
        if not path.exists():
            return
        kept = {}
        for id, record in records.items():
            there = record.file is not None and (self.folder / record.file).is_file()
            # A record without a hash of its files counts as made with those of today, and has theirs from now on.
            wanted = self._with_files(record)
            same_files = record.files in (None, wanted.files)
            if there and same_files and asked.get(id, record.request) == record.request:
                kept[id] = wanted
        write_whole(path, b"".join(map(_encoded, kept.values())))
        self.done = kept.keys() & asked.keys()

    def _with_files(self, record: Record) -> Record:
        """A record with the hash of the files that its line has now; as it is where the job has no such line."""
        return replace(record, files=self._files.get(record.id or "", record.files))

    @staticmethod
    def _records(path: Path) -> dict[str, Record]:
        """The last record of each id.

        Raises:
            ValueError: the file holds something else, which would be lost.
        """
        records: dict[str, Record] = {}
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = _decoded(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}; move the file, or name another folder") from None
                if record is not None and record.id is not None:
                    records.pop(record.id, None)  # the last one counts, in its place
                    records[record.id] = record
        return records


@contextmanager
def open_manifest(folder: Path, asked: Mapping[str, str], files: Mapping[str, str] | None = None) -> Iterator[Manifest]:
    """The manifest of a folder, for this process alone; see `Manifest.clean`.

    Args:
        asked: hashes of the requests, by id.
        files: hashes of the files that they need, by id.

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
        manifest = Manifest(folder, files or {})
        manifest.clean(asked)
        yield manifest
    finally:
        os.close(lock)


def _encoded(record: Record) -> bytes:
    return json.dumps(asdict(record), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write_all(file: Any, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]


def _decoded(line: bytes) -> Record | None:
    """A record; None for the last line where it was half written, and for what a file system leaves behind the last
    write after a loss of power: zeros, or nothing.

    Raises:
        ValueError: a whole line of somebody else's: a file of scripts, or a manifest of another program.
    """
    if not line.strip(b"\0\r\n "):
        return None
    names = {field.name for field in fields(Record)}
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        values = None
        if not line.endswith(b"\n") and BEGINNING.startswith(line[: len(BEGINNING)]):
            return None
    is_record = isinstance(values, dict) and {"id"} <= set(values) <= names
    if not is_record or not all(isinstance(values.get(name), str | None) for name in ("id", "file")):
        raise ValueError("this is no record of dia-engine batch")
    return Record(**values)
