"""Stock clients and a fuzzer against a running server: `make test-server`.

    python -m tests.server.clients.run PYTHON [BARS]

PYTHON is the interpreter of an environment with `requirements.txt`. BARS is a folder of more scripts, `bar_*.py`, that
are given the server's address.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.helpers import ROOT

EXAMPLES = ("openai_client.py", "elevenlabs_client.py", "pipecat_agent.py", "livekit_tts.py")
READY_SECONDS, LONGEST = 180, 600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def commands(python: str, url: str, bars: str | None) -> list[list[str]]:
    """What is run against the server at `url`."""
    found = [[python, str(ROOT / "examples" / name)] for name in EXAMPLES]
    found.append([python, str(ROOT / "tests" / "server" / "clients" / "livekit_sockets.py")])
    found.append(["sh", str(ROOT / "examples" / "curl.sh")])
    found.append([
        str(Path(python).with_name("schemathesis")), "run", f"{url}/openapi.json", "--checks", "not_a_server_error",
        "--max-examples", "40", "--exclude-path-regex", "^/$", "--request-timeout", "60",
    ])  # fmt: skip
    if bars is not None:
        shared = [url, "--model", "talker"]
        found.append([python, f"{bars}/bar_openai.py", *shared])
        found.append([python, f"{bars}/bar_pipecat.py", *shared, "--eleven"])
        port = free_port()
        start = f"{sys.executable} -m dia_engine serve --model talker --port {port}"
        found.append(
            [python, f"{bars}/bar_drain.py", f"http://127.0.0.1:{port}", "--model", "talker", "--start", start]
        )
    return found


def main(python: str, bars: str | None = None) -> int:
    """Run all of them; the number of those that failed."""
    port, failed = free_port(), 0
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dia_engine", "serve", "--model", "talker", "--port", str(port)]
        with open(Path(folder) / "server.log", "w") as log:
            server = subprocess.Popen([*command, "--voices", folder], cwd=ROOT, stderr=log)
        try:
            wait_until_ready(url, server)
            for command in commands(str(Path(python).absolute()), url, bars and str(Path(bars).resolve())):
                environment = {**os.environ, "DIA_URL": url}
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST
                )
                lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
                outcome = "FAIL" if done.returncode else "ok  "
                print(f"{outcome} {Path(command[1]).name}: {lines[-1] if lines else ''}")
                if done.returncode:
                    failed += 1
                    print(done.stdout[-4000:], done.stderr[-4000:])
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(60)
        print(f"the server ended with status {ended}")
    return failed + (ended != 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
