"""What several test files use."""

import os
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in the repository's root, in which Triton compiles instead of interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def wav_fields(data: bytes) -> tuple[bytes | int, ...]:
    """The 13 fields of a WAV file's header of 44 bytes."""
    return struct.unpack_from("<4sI4s4sIHHIIHH4sI", data)
