"""Measurements as JSON lines, each on the disk before the next is made: a run that is cut keeps what it has."""

import json
import os
from pathlib import Path

DONE = ("passed", "measured", "out of memory")  # not to be tried again; the last because it would not fit again


class Journal:
    """A file of one JSON object a line, with at least "part", "name" and "status"; see benchmarks/README.md.

    Several processes may write to it in turn. A line that is cut off at the end of the file is passed over.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def append(self, part: str, name: str, status: str, **figures) -> None:
        """Write one measurement and wait until it is on the disk."""
        line = json.dumps({"part": part, "name": name, "status": status, **figures})
        with open(self.path, "a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line  # behind what was cut off
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self, part: str | None = None) -> list[dict]:
        """All lines, or those of one part, the latest of each name, in the order in which names first appear."""
        if not self.path.exists():
            return []
        latest: dict[tuple[str, str], dict] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if part in (None, entry["part"]):
                latest[entry["part"], entry["name"]] = entry
        return list(latest.values())

    def entry(self, part: str, name: str) -> dict | None:
        """The latest line of a measurement, if that need not be repeated."""
        found = (entry for entry in self.entries(part) if entry["name"] == name)
        return next((entry for entry in found if entry["status"] in DONE), None)
