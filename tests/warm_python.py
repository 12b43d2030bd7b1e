"""Python processes that have loaded torch already: forked from one that has, where a fresh one takes two seconds.

They differ from `python -c` in that alone: arguments, environment, folder and standard streams are their own. What is
read when an interpreter or torch starts needs a fresh one: standard streams that are closed, PYTHONIOENCODING,
OMP_NUM_THREADS.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import ROOT

HANGS = 300  # seconds after which a program is given up
MOST_BYTES = 150_000  # of a message on a socket
SERVER = f"""
import atexit, gc, json, os, socket, sys, threading, traceback
import dia_engine.cli.command, dia_engine.codec, dia_engine.devices.process, dia_engine.engine, dia_engine.weights.save
assert "huggingface_hub" not in sys.modules, "it reads the environment when it is imported"
gc.collect()
gc.freeze()
channel = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, streams, *_ = socket.recv_fds(channel, {MOST_BYTES}, 3)
    child = os.fork() if message else None
    if not child:
        break
    for stream in streams:
        os.close(stream)
    channel.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
channel.close()
if message:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    job = json.loads(message)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv = job["arguments"]
    dia_engine.devices.process._first_process = os.getpid()  # in which no engine has worked yet
    status = 0
    try:
        exec(compile(job["program"], "<program>", "exec"), {{"__name__": "__main__"}})
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
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(HANGS)
        with other:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(other.fileno())], cwd=ROOT, pass_fds=[other.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
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
        argv = ["-c", *map(str, arguments)]
        job = {
            "program": program,
            "arguments": argv,
            "folder": str(folder),
            "environment": dict(os.environ if environment is None else environment),
        }
        with tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            pipes = [os.pipe() for _ in range(2)]
            socket.send_fds(
                self._channel, [json.dumps(job).encode()], [given.fileno(), *(writing for _, writing in pipes)]
            )
        for _, writing in pipes:
            os.close(writing)
        printed = [self._readers.submit(_read, reading) for reading, _ in pipes]
        try:
            status = int(self._channel.recv(100))
        except TimeoutError:
            os.killpg(self._server.pid, 9)
            raise
        return subprocess.CompletedProcess(argv, status, *(each.result(HANGS) for each in printed))

    def command(self, *arguments: object, **keywords) -> subprocess.CompletedProcess[bytes]:
        """Run the command `dia-engine`."""
        return self.run(COMMAND, *arguments, **keywords)

    def close(self) -> None:
        self._channel.close()
        self._server.wait()
        self._readers.shutdown()


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()
