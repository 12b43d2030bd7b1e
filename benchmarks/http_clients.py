"""First audio over HTTP: clients of `dia-engine serve` that come at the same moment, against one alone.

    python -m benchmarks.http_clients --model talker

Starts a server of this checkout in a process of its own. Each client asks OpenAI's speech route for pcm and plays what
arrives as `player.py` says; its times count from before it connects.
"""

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from .command import run
from .player import Heard, heard, percentiles
from .setting import cpu_setting

TEXT = "[S1] Can you count? [S2] Five six seven eight nine."
RATE = 24000  # Hz of pcm
READY_SECONDS = 300


def main() -> None:
    options = _arguments()
    report = {**cpu_setting(), "benchmark": "http_clients", "model": options.model, "clients": options.clients}
    with server(options) as port:
        ask = partial(listen, port, options.text, options.voice)
        crowd(ask, range(options.clients))  # first calls allocate
        alone, together = [], []
        for number in range(options.rounds):
            seeds = range(number * options.clients, (number + 1) * options.clients)
            alone += map(ask, seeds)
            together += crowd(ask, seeds)
    report |= figures(alone, together)
    print(line(report))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_clients", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="talker", help="hub id, folder, talker or synthetic:... (%(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="at the same moment (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (%(default)s)")
    parser.add_argument("--text", default=TEXT, help="what each client asks for (%(default)s)")
    parser.add_argument("--voice", default="alloy", help="whose prompt is read before it (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("options", nargs="*", help="further options of dia-engine serve, behind --")
    options = parser.parse_args()
    for name in ("clients", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


@contextmanager
def server(options: argparse.Namespace) -> Iterator[int]:
    """The port of a server that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dia_engine", "serve", "--model", options.model, "--port", str(port)]
    process = subprocess.Popen([*command, *options.options], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_SECONDS
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not get ready: {' '.join(command)}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def listen(port: int, text: str, voice: str, seed: int) -> Heard:
    """A stream, read to its end."""
    fields = {"model": "dia", "voice": voice, "input": text, "response_format": "pcm", "seed": seed}
    chunks, started = [], time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/audio/speech", json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return heard([], RATE, time.perf_counter() - started, f"status {response.status}")
        odd = b""
        while data := response.read1(1 << 16):
            arrival, data = time.perf_counter() - started, odd + data
            whole = len(data) // 2 * 2
            chunks.append((arrival, np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768))
            odd = data[whole:]
    except (OSError, http.client.HTTPException) as error:
        return heard(chunks, RATE, time.perf_counter() - started, f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    return heard(chunks, RATE, time.perf_counter() - started)


def crowd(ask: Callable[[int], Heard], seeds: Sequence[int]) -> list[Heard]:
    """What clients hear that begin at the same moment."""
    found: list[Heard] = []
    barrier = threading.Barrier(len(seeds))

    def client(seed: int) -> None:
        barrier.wait()
        found.append(ask(seed))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def figures(alone: list[Heard], together: list[Heard]) -> dict:
    """Percentiles of the first audio in seconds; the ratio is p95 together to the median alone."""
    first = [[each.first_audio for each in streams if each.first_audio is not None] for streams in (alone, together)]
    if not all(first):
        raise RuntimeError(f"no sound: {next(each.error for each in [*alone, *together] if each.error)}")
    return {
        "alone_seconds": percentiles(first[0]),
        "together_seconds": percentiles(first[1]),
        "ratio": percentiles(first[1])["p95"] / statistics.median(first[0]),
        "ratio_p95": percentiles(first[1])["p95"] / percentiles(first[0])["p95"],
        "failed": sum(bool(each.error) for each in [*alone, *together]),
        "underruns": sum(each.underruns > 0 for each in together),
    }


def line(report: dict) -> str:
    alone, together = report["alone_seconds"], report["together_seconds"]
    return (
        f"first audio over HTTP: alone p50 {alone['p50']:.3f} s, p95 {alone['p95']:.3f} s; "
        f"{report['clients']} clients at once p50 {together['p50']:.3f} s, p95 {together['p95']:.3f} s; "
        f"p95 is {report['ratio']:.2f} times p50 alone, {report['ratio_p95']:.2f} times p95 alone; "
        f"{report['underruns']} streams ran dry, {report['failed']} failed"
    )


if __name__ == "__main__":
    run(main)
