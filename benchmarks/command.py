"""How the benchmarks end: with their status, and with one line for a user's mistake."""

import sys
from collections.abc import Callable


def run(main: Callable[[], int | None]) -> None:
    """Run a benchmark's `main` and leave with its status; what a user did wrong is one line and status 2."""
    try:
        status = main()
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    sys.exit(status)
