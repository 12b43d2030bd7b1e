"""How many streams a server holds: clients at the same time, each of which asks for one script after another.

    python -m benchmarks.streams http://127.0.0.1:8000 --clients 4 8 16 --seconds 10

For each number of clients: seconds of sound made per second, time to first audio, and how many streams were kept, which
means without a stall of a player that starts with the first chunk (`player.py`). A server holds as many as are kept.
"""

import argparse
import itertools
import threading
import time

from .clients import Script, Target, listen
from .command import MeasurementError, at_least, positive, run
from .player import Heard, percentiles
from .served import Served

SCRIPT = "[S1] Can you count? [S2] Five six seven eight nine. [S1] Hello, my little robot. Can you sing?"


def crowd(target: Target, clients: int, seconds: float) -> tuple[list[Heard], float]:
    """What clients heard who began within `seconds`, and how long it took until all had ended."""
    began, results, seeds = time.perf_counter(), [], itertools.count()

    def ask() -> None:
        while (now := time.perf_counter()) < began + seconds:
            results.append(listen(target, Script(SCRIPT, next(seeds)), now))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("--clients", type=at_least(1), nargs="+", default=[1, 4, 8, 16], help="at the same time")
    parser.add_argument("--seconds", type=positive, default=10, help="per number of clients")
    options = parser.parse_args()
    target = Served(options.url)
    first = listen(target, Script(SCRIPT, 0), time.perf_counter())
    if first.first_audio is None:
        raise MeasurementError(f"no sound: {first.error}")
    print("clients  sound/s  first audio p50/p95 (s)  kept")
    for clients in options.clients:
        results, took = crowd(target, clients, options.seconds)
        times = [each.first_audio for each in results if each.first_audio is not None]
        if not times:
            raise MeasurementError(f"no sound: {results[0].error}")
        first = percentiles(times)
        kept = sum(each.kept for each in results)
        sound = sum(each.duration for each in results) / took
        print(f"{clients:7d}  {sound:7.2f}  {first['p50']:10.3f} {first['p95']:12.3f}  {kept:5d} of {len(results)}")


if __name__ == "__main__":
    run(main)
