"""Many listeners at once: streams that arrive at random, at several rates, and how each of them fares.

    python -m benchmarks.load --model talker
    python -m benchmarks.load --model talker --baseline path/to/an/older/checkout
    python -m benchmarks.load --server                           # starts `dia-engine serve --model talker`
    python -m benchmarks.load --server http://127.0.0.1:8000     # any server of OpenAI's route that streams pcm

Requests arrive by a Poisson process, whatever has become of those before (an open loop), at shares of the rate that the
engine was measured to sustain with all slots in use. `player.py` has the definitions. Beside the engine, with the same
arrivals, scripts and seeds: the same engine behind a lock, one stream at a time; and a checkout of another version.

With --server the clients speak HTTP, first audio is the first bytes of a response, and what one at a time does is the
way of Dia-TTS-Server: a request waits for those before it, and is answered once all of its audio is made. The clients
are threads of this process, so on the server's machine they take some of its time.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from dia_engine import Engine
from dia_engine.runtime.limits import Limits

from .clients import InProcess, OneAtATime, Script, Target, open_loop, poisson_arrivals, quiet_logs
from .command import MeasurementError, add_json_argument, at_least, output_file, positive, run, write_report
from .player import Heard, percentiles, summary
from .plot import draw_load, require_matplotlib
from .served import Served, started_server
from .setting import add_model_arguments, cores, cpu_setting, machine
from .versions import Version, check_checkout

TEXTS = (
    "[S1] Hello, my little robot. Can you sing?",
    "[S1] Can you sing? [S2] No, I can count very well.",
    "[S1] Hello, my little robot.",
    "[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well.",
)
Measure = Callable[[Sequence[Script], Sequence[float]], list[Heard]]


def main() -> None:
    options = _arguments()
    quiet_logs()
    if options.server is not None:
        with _server(options) as url:
            _measure_server(url, options)
        return
    loaded = Engine.load(options.model, dtype=options.dtype, quant=options.quant, device=options.device)
    report = {**machine(loaded), **_setting(options, loaded), "capacity": [], "loads": []}
    for slots in options.slots or [loaded.max_slots]:
        engine = with_slots(loaded, slots)
        target = InProcess(engine)
        if not report["capacity"]:
            report["alone"] = alone(target, options)
            print(f"first audio alone: {_times(report['alone'])}", flush=True)
        engine.prepare(slots)
        report["capacity"].append({"slots": slots, **capacity(target, slots, options)})
        for share in options.load:
            plan = _plan(options, share, report["capacity"][-1]["requests_per_second"])
            _measure(options, report, "dia-engine", slots, plan, lambda *load, target=target: open_loop(target, *load))
        if slots == report["capacity"][0]["slots"]:  # what does one at a time has the same rates for all
            plans = [_plan(options, share, report["capacity"][0]["requests_per_second"]) for share in options.load]
            if not options.no_lock:
                locked = OneAtATime(target)
                for plan in plans:
                    _measure(
                        options, report, "one at a time", 1, plan, lambda *load, locked=locked: open_loop(locked, *load)
                    )
            if options.baseline:
                loading = {name: getattr(options, name) for name in ("model", "dtype", "quant", "device")}
                with Version(options.baseline, **loading) as other:
                    other.first_audio(scripts(1, None)[0])  # first calls allocate and compile
                    for plan in plans:
                        _measure(options, report, options.baseline_name, None, plan, other.open_loop)
        engine.close()
    if options.png:
        draw_load(report, options.png)


def _measure_server(url: str, options: argparse.Namespace) -> None:
    target = Served(url, api_key=options.api_key)
    state = target.get("/health")
    slots = options.slots[0] if options.slots else int(state.get("slots", 1))
    report = {**_served_setting(options, url, state), "alone": alone(target, options), "capacity": [], "loads": []}
    print(f"first bytes alone: {_times(report['alone'])}", flush=True)
    report["capacity"].append({"slots": slots, **capacity(target, slots, options)})
    plans = [_plan(options, share, report["capacity"][0]["requests_per_second"]) for share in options.load]
    systems: list[tuple[str, int, Target]] = [("served", slots, target)]
    if not options.no_lock:
        systems.append(("whole, one at a time", 1, OneAtATime(Served(url, api_key=options.api_key, whole=True))))
    for name, at_once, system in systems:
        for plan in plans:
            _measure(options, report, name, at_once, plan, lambda *load, system=system: open_loop(system, *load))
    if options.png:
        draw_load(report, options.png)


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[str]:
    """The address of the server that is named, or of one that is started."""
    if options.server:
        yield options.server
        return
    loading = {name: getattr(options, name) for name in ("model", "dtype", "quant", "device")}
    with started_server({**loading, "slots": options.slots and options.slots[0]}) as url:
        yield url


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument(
        "--slots", nargs="+", type=at_least(1), help="requests that run at a time (the engine's default)"
    )
    parser.add_argument(
        "--load",
        nargs="+",
        type=positive,
        default=[0.2, 0.5, 0.8],
        help="rates, as shares of the capacity (%(default)s)",
    )
    parser.add_argument("--requests", type=at_least(1), default=40, help="at each rate (%(default)s)")
    parser.add_argument(
        "--max-tokens", type=at_least(1), help="of each request; synthetic models do not end (200 for them)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the arrivals (%(default)s)")
    parser.add_argument("--no-lock", action="store_true", help="leave out one stream at a time")
    parser.add_argument(
        "--server", metavar="URL", nargs="?", const="", help="measure a server over HTTP; without URL, one of --model"
    )
    parser.add_argument("--api-key", default="", help="of the server")
    parser.add_argument("--baseline", metavar="PATH", help="checkout of another version, for the same load")
    parser.add_argument("--baseline-name", default="baseline", help="its name in the results (%(default)s)")
    add_json_argument(parser)
    parser.add_argument("--png", metavar="FILE", type=output_file, help="draw them there")
    options = parser.parse_args()
    if options.server is not None:
        if options.baseline or len(options.slots or ()) > 1:
            parser.error("--server takes one number of --slots and no --baseline")
        if options.server:
            Served(options.server)  # checks the address
    if options.baseline:
        check_checkout(options.baseline)
    if options.png:
        require_matplotlib(parser)
    if options.max_tokens is None and options.model.startswith("synthetic:"):
        options.max_tokens = 200
    return options


def _setting(options: argparse.Namespace, engine: Engine) -> dict:
    return {
        "benchmark": "load",
        "cores": cores(),
        "model": options.model,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "quant": options.quant,
        "sample_rate": engine.sample_rate,
        "max_tokens": options.max_tokens,
        "arrivals": "poisson",
        "seed": options.seed,
    }


def _served_setting(options: argparse.Namespace, url: str, state: dict) -> dict:
    model = state.get("model", options.model)
    return {
        **cpu_setting(), "benchmark": "load", "server": url if options.server else "started here", "model": model,
        "sample_rate": Served.sample_rate, "max_tokens": options.max_tokens, "arrivals": "poisson",
        "seed": options.seed,
    }  # fmt: skip


def with_slots(engine: Engine, slots: int) -> Engine:
    """An engine with the weights of another one, that plans scripts as it does."""
    return Engine(
        engine.config, engine.weights, engine.codec,
        defaults=engine.defaults, limits=Limits(max_slots=slots), long_form=engine.long_form,
    )  # fmt: skip


def scripts(count: int, max_tokens: int | None) -> list[Script]:
    return [Script(TEXTS[index % len(TEXTS)], seed=index, max_tokens=max_tokens) for index in range(count)]


def alone(target: Target, options: argparse.Namespace) -> dict[str, float | None]:
    """Percentiles of the first audio in seconds while nothing else runs."""
    times: list[float] = []
    for script in [
        *scripts(2, options.max_tokens),
        *scripts(8, options.max_tokens),
    ]:  # first calls allocate and compile
        stream, started = target.stream(script), time.perf_counter()
        for samples in stream:
            if len(samples):
                times.append(time.perf_counter() - started)
                break
        stream.close()
    return percentiles(times[2:])


def capacity(target: Target, slots: int, options: argparse.Namespace) -> dict:
    """Requests per second with all slots in use: of three times as many requests that are all there at once.

    Raises:
        MeasurementError: a request failed.
    """
    open_loop(target, scripts(slots, 40), [0.0] * slots)
    count = 3 * slots
    streams = open_loop(target, scripts(count, options.max_tokens), [0.0] * count)
    figures = summary(streams, [0.0] * count)
    if figures["failed"]:
        raise MeasurementError(f"{figures['failed']} of {count} requests at once failed: {figures['errors'][0]}")
    rate = count / figures["span_seconds"]
    print(
        f"{slots} slots: {rate:.2f} requests/s, {figures['times_real_time']:.2f}x real time with all in use", flush=True
    )
    return {"requests_per_second": rate, "times_real_time": figures["times_real_time"]}


def _plan(options: argparse.Namespace, share: float, sustained: float) -> dict:
    """What is asked for when, as JSON can hold it."""
    rate = share * sustained
    return {
        "load": share,
        "rate": rate,
        "scripts": [asdict(script) for script in scripts(options.requests, options.max_tokens)],
        "arrivals": poisson_arrivals(rate, options.requests, options.seed),
    }


def _measure(
    options: argparse.Namespace, report: dict, system: str, slots: int | None, plan: dict, measure: Measure
) -> None:
    streams = measure([Script(**script) for script in plan["scripts"]], plan["arrivals"])
    row = {"system": system, "slots": slots, "load": plan["load"], "rate": plan["rate"]}
    report["loads"].append({**row, **summary(streams, plan["arrivals"])})
    write_report(options.json, report)
    if len(report["loads"]) == 1:
        print(HEAD)
    print(line(report["loads"][-1]), flush=True)


HEAD = (
    f"{'':22}{'slots':>6}{'load':>6}{'req/s':>8}{'kept':>10}{'underrun':>10}"
    f"{'first audio p50, p95, p99':>28}{'audible p50':>13}{'at once':>9}{'x real':>8}"
)


def line(row: dict) -> str:
    kept = f"{row['kept']}/{row['requests']}"
    audible = row["audible_seconds"]["p50"]
    return (
        f"{row['system']:22}{row['slots'] or '':>6}{row['load']:>6.2f}{row['rate']:>8.2f}{kept:>10}"
        f"{row['underrun_share']:>10.0%}{_times(row['first_audio_seconds']):>28}"
        f"{'-' if audible is None else f'{audible:.2f} s':>13}{row['peak_streams']:>9}{row['times_real_time']:>8.2f}"
        + (f"  {row['failed']} failed: {row['errors'][0]}" if row["failed"] else "")
    )


def _times(seconds: dict[str, float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.2f}" for value in seconds.values()) + " s"


if __name__ == "__main__":
    run(main)
