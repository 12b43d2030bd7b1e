"""What the benchmarks' command lines share: options that are checked before any work, reports that are written as they
grow, and an end in one line for what a user did wrong."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dia_engine.files.output import check_file_name, check_replaceable, write_whole


class MeasurementError(RuntimeError):
    """There is nothing to measure: a server that does not start, requests that fail."""


def run(main: Callable[[], int | None]) -> None:
    """Run a benchmark's `main` and leave with its status; what a user did wrong is one line and status 2, Ctrl-C one
    line and status 130."""
    try:
        status = main()
    except (ValueError, TypeError, OSError, MeasurementError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def output_file(text: str) -> Path:
    """The type of an option that names a file to write."""
    try:
        check_file_name(text)
        check_replaceable(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return number


def positive(text: str) -> float:
    """The type of an option that is a number over 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be over 0 and finite, got {text}")
    return value


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures there as they are measured")


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write what has been measured so far; to be called behind each part, since a limit of time or Ctrl-C may cut the
    rest off."""
    if path is not None:
        write_whole(path, json.dumps(report, indent=2).encode() + b"\n")
