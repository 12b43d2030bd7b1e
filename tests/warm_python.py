"""Python processes that have loaded torch already: forked from one that has, where a fresh one takes two seconds.

They differ from `python -c` in that alone: arguments, environment, folder and standard streams are their own. What is
read when an interpreter or torch starts needs a fresh one: standard streams that are closed, PYTHONIOENCODING,
OMP_NUM_THREADS.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import ROOT

HANGS = 300  # seconds after which a program is given up
SERVER = """
import atexit, gc, json, os, sys, threading, traceback
import dia_engine.cli.command, dia_engine.codec, dia_engine.devices.process, dia_engine.engine, dia_engine.weights.save
assert "huggingface_hub" not in sys.modules, "it reads the environment when it is imported"
gc.collect()
gc.freeze()
while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
if line:
    job = json.loads(line)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    for number, (name, flags) in enumerate(zip(job["streams"], (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
        file = os.open(name, flags)
        os.dup2(file, number)
        os.close(file)
    sys.argv = job["arguments"]
    dia_engine.devices.process._first_process = os.getpid()  # in which no engine has worked yet
    status = 0
    try:
        exec(compile(job["program"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    # As an interpreter ends, but without taking torch to pieces, which takes half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
"""
COMMAND = "import sys; from dia_engine.cli import main; sys.exit(main())"  # dia-engine


class WarmPython:
    """Makes processes with torch loaded, one at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        self._readers = ThreadPoolExecutor(2)

    def run(
        self,
        program: str,
        *arguments: object,
        stdin: bytes = b"",
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program, and wait for it."""
        with tempfile.TemporaryDirectory() as own:
            given, *printed = (Path(own, name) for name in ("stdin", "stdout", "stderr"))
            given.write_bytes(stdin)
            for pipe in printed:  # not files, to which a limit on the size of files would apply
                os.mkfifo(pipe)
            argv = ["-c", *map(str, arguments)]
            job = {
                "program": program,
                "arguments": argv,
                "folder": str(folder),
                "environment": dict(os.environ if environment is None else environment),
                "streams": list(map(str, (given, *printed))),
            }
            print(json.dumps(job), file=self._server.stdin, flush=True)
            contents = [self._readers.submit(pipe.read_bytes) for pipe in printed]
            if not select.select([self._server.stdout], [], [], HANGS)[0]:
                os.killpg(self._server.pid, 9)
                raise subprocess.TimeoutExpired(argv, HANGS)
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(argv, status, *(content.result(HANGS) for content in contents))

    def command(self, *arguments: object, **keywords) -> subprocess.CompletedProcess[bytes]:
        """Run the command `dia-engine`."""
        return self.run(COMMAND, *arguments, **keywords)

    def close(self) -> None:
        self._readers.shutdown()
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
