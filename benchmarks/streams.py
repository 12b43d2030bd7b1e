"""How many streams a server holds: clients at the same time, each of which asks for one script after another.

    python -m benchmarks.streams http://127.0.0.1:8000 --clients 4 8 16 --seconds 10

For each number of clients: seconds of sound made per second, time to first audio, and how many streams were kept, which
means without a stall of a player that starts with the first chunk (`player.py`). A server holds as many as are kept.
"""

import argparse
import asyncio
import time

import httpx
import numpy as np

from .player import Heard, heard, percentiles

SCRIPT = "[S1] Can you count? [S2] Five six seven eight nine. [S1] Hello, my little robot. Can you sing?"
RATE = 24_000


async def listen(client: httpx.AsyncClient, seed: int) -> Heard:
    """One stream of raw samples."""
    began, chunks, error, odd = time.perf_counter(), [], "", b""
    body = {"input": SCRIPT, "voice": "default", "response_format": "pcm", "sample_rate": RATE, "seed": seed}
    try:
        async with client.stream("POST", "/v1/audio/speech", json=body) as response:
            if response.status_code != 200:
                return heard([], RATE, time.perf_counter() - began, f"status {response.status_code}")
            async for data in response.aiter_raw():
                data, arrived = odd + data, time.perf_counter() - began
                odd = data[len(data) // 2 * 2 :]
                samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
                chunks.append((arrived, samples))
    except httpx.HTTPError as failure:
        error = repr(failure)
    return heard(chunks, RATE, time.perf_counter() - began, error)


async def crowd(url: str, clients: int, seconds: float) -> tuple[list[Heard], float]:
    """What clients heard who began within `seconds`, and how long it took until all had ended."""
    began, results = time.perf_counter(), []

    async def ask(client: httpx.AsyncClient, first: int) -> None:
        seed = first
        while time.perf_counter() < began + seconds:
            results.append(await listen(client, seed))
            seed += clients

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(ask(client, number) for number in range(clients)))
    return results, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16], help="at the same time")
    parser.add_argument("--seconds", type=float, default=10, help="per number of clients")
    options = parser.parse_args()
    print("clients  sound/s  first audio p50/p95 (s)  kept")
    for clients in options.clients:
        results, took = asyncio.run(crowd(options.url, clients, options.seconds))
        first = percentiles([each.first_audio for each in results if each.first_audio is not None])
        kept = sum(each.kept for each in results)
        sound = sum(each.duration for each in results) / took
        print(f"{clients:7d}  {sound:7.2f}  {first['p50']:10.3f} {first['p95']:12.3f}  {kept:5d} of {len(results)}")


if __name__ == "__main__":
    main()
