"""Processes of a cluster that this process has started."""

import os
from pathlib import Path


def workers(name: str) -> list[int]:
    """Ids of the workers whose title begins with `name`, below this process."""
    parents, found = {}, []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (folder / "cmdline").read_bytes().decode(errors="replace").startswith(name):
                    found.append(int(folder.name))
        except OSError:
            continue  # it has just ended

    def is_below(process: int) -> bool:
        while process := parents.get(process, 0):
            if process == os.getpid():
                return True
        return False

    return sorted(filter(is_below, found))
