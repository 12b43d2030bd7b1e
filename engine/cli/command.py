"""The command `dia-engine`: `say` makes a sound file of a script, `batch` files of many, `serve` streams to clients,
`info` describes a model, `quantize` shrinks one.

Imports of this package stand inside the functions of this folder: --help must not wait for torch, nor Ctrl-C meet its
import.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import NoReturn

from . import batch, info, quantize, say, serve
from .process import limit_primitive_cache, reserve_standard_descriptors, show, silence
from .script import DASH_HINT

# FileNotFoundError and PermissionError are OSErrors, torch.OutOfMemoryError is a RuntimeError.
USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
INTERRUPTED = "dia-engine: interrupted, nothing was written"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 where lines of a batch failed, 2 for an error of the
    user's, 130 after Ctrl-C."""
    reserve_standard_descriptors()
    try:
        options = _parser().parse_args(arguments)
        limit_primitive_cache()
        with _leaving_at_once():
            import_all()
        status = options.run(options) or 0
        _flush_standard_error()
        return status
    except KeyboardInterrupt as interrupt:
        _complain(str(interrupt) or INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the summary or the sound has gone: there is nothing left to do.
        silence(sys.stdout)
    except USER_ERRORS as error:
        _complain(f"dia-engine: error: {_message(error)}")
        return EXIT_ERROR
    return 0


def _complain(text: str) -> None:
    """Print a line to standard error. Where that is full or gone, the exit status alone tells."""
    try:
        show(text, sys.stderr)
    except OSError:
        silence(sys.stderr)  # or the interpreter tries again when it exits, and changes the status


def _flush_standard_error() -> None:
    """Where it is full, a progress bar has left something in its buffer, which would change the status at the exit."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            silence(sys.stderr)


def import_all() -> None:
    """Import what every command needs, which takes seconds."""
    for name in ("engine", "info", "batch.command", "weights.save"):
        importlib.import_module(f"..{name}", __package__)


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """End the process on Ctrl-C, without an exception: inside the import of a C++ extension one can abort it."""
    before = signal.getsignal(signal.SIGINT)
    # Someone else's handler, an ignored signal and other threads are left alone.
    takes_over = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()

    def leave(*_: object) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    if takes_over:
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if takes_over:
            signal.signal(signal.SIGINT, before)


def _message(error: BaseException) -> str:
    """An error as one line: an operating system's own by file and reason, without their number."""
    from ..messages import described, is_out_of_memory, without_controls

    if (isinstance(error, OSError) and error.strerror) or is_out_of_memory(error):
        return described(error)
    return without_controls(" ".join(str(error).split()) or type(error).__name__)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse has it
        """Refuse `-hello`, a script without `--` before it, which Python 3.12 and later take for `-h`; and
        `--option=--`, which earlier ones take for an empty list."""
        for argument in takewhile(lambda argument: argument != "--", sys.argv[1:] if args is None else args):
            if argument.startswith("-h") and argument != "-h":
                self.error(f"unrecognized arguments: {argument}")
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument.removesuffix('=--')}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, like every other error, instead of the whole usage."""
        if message.startswith("unrecognized arguments: -") or "ignored explicit argument" in message:
            message += f"; {DASH_HINT}"
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = _Parser(prog="dia-engine", description="Run Dia, the open text-to-dialogue model.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (say, batch, serve, info, quantize):
        command.add_command(commands)
    return parser
