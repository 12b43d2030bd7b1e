"""Engines of this checkout and of others, each in a process of its own, measured by the same code.

The process finds `dia_engine` in its checkout and these benchmarks here, and uses nothing of the engine but its public
class, so that it can be of an older version.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .clients import InProcess, Script, open_loop, quiet_logs
from .player import Heard

ROOT = Path(__file__).parent.parent
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); import benchmarks; sys.path[0] = sys.argv[2]; "
    "from benchmarks.versions import answer_questions; answer_questions()"
)


def check_checkout(path: str) -> None:
    """
    Raises:
        FileNotFoundError: there is no engine in that folder.
    """
    if not (Path(path) / "dia_engine" / "__init__.py").is_file():
        raise FileNotFoundError(f"{path} is no checkout of dia-engine: it has no dia_engine/__init__.py")


class Version:
    """An engine of a checkout. Leave a `with` over it to end its process."""

    def __init__(self, checkout: str | Path, **loading: Any):
        """`loading`: arguments of `Engine.load`. Returns once it is loaded."""
        command = [sys.executable, "-c", START, str(ROOT), str(Path(checkout).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.folder = self._ask("load", **loading)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> "Version":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def open_loop(self, scripts: Sequence[Script], arrivals: Sequence[float]) -> list[Heard]:
        """See `clients.open_loop`."""
        streams = self._ask("open_loop", scripts=[asdict(each) for each in scripts], arrivals=list(arrivals))
        return [Heard(**stream) for stream in streams]

    def first_audio(self, script: Script) -> float:
        """Seconds from the call to the first chunk."""
        return self._ask("first_audio", **asdict(script))

    def generate(self, script: Script) -> tuple[float, int]:
        """Seconds that it takes to generate a script, and how much that is: samples, without a codec frames."""
        seconds, length = self._ask("generate", **asdict(script))
        return seconds, length

    def _ask(self, question: str, **arguments: Any) -> Any:
        with suppress(BrokenPipeError):  # the status of the process says more
            print(json.dumps([question, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise OSError(f"an engine's process ended with status {self._process.wait()}")
        result, error = json.loads(answer)
        if error:
            raise ValueError(error)
        return result

    def _end(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class _Answers:
    """What the process can be asked for."""

    def load(self, **loading: Any) -> str:
        import dia_engine

        self.engine = dia_engine.Engine.load(**loading)
        return str(Path(dia_engine.__file__).parent.parent)

    def open_loop(self, scripts: list[dict], arrivals: list[float]) -> list[dict]:
        streams = open_loop(InProcess(self.engine), [Script(**script) for script in scripts], arrivals)
        return [asdict(stream) for stream in streams]

    def first_audio(self, **script: Any) -> float:
        started = time.perf_counter()
        with self.engine.stream(**script) as stream:
            next(stream)
            return time.perf_counter() - started

    def generate(self, **script: Any) -> tuple[float, int]:
        started = time.perf_counter()
        made = self.engine.generate(**script)
        return time.perf_counter() - started, len(made)


def answer_questions() -> None:
    """Answer the questions on standard input, a line of JSON each."""
    output, sys.stdout = sys.stdout, sys.stderr
    quiet_logs()
    answers = _Answers()
    for question, arguments in map(json.loads, sys.stdin):
        result, error = None, ""
        try:
            result = getattr(answers, question)(**arguments)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps([result, error]), file=output, flush=True)
