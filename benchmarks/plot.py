"""Draw what `tokens_per_sec`, `first_audio`, `fidelity` or `load` wrote with `--json` as a picture.

python -m benchmarks.plot speed.json speed.png
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

from dia_engine.files.paths import read_json

from .command import output_file, run


def draw_speeds(report: dict, path: Path) -> None:
    """One bar per runtime: steps per second, with real time and the roofline marked."""
    rows = report["results"][::-1]
    names = [row["name"] for row in rows]
    speeds = [row["steps_per_second"] * report["batch"] for row in rows]
    roofline = roofline_speed(report)
    real_time = 44100 / 512
    figure, axes = _pyplot().subplots(figsize=(9, 1.6 + 0.55 * len(rows)), layout="constrained")
    colors = ["#228833" if name.startswith("dia-engine") else "#4477aa" for name in names]
    bars = axes.barh(names, speeds, color=colors)
    labels = [f"{row['steps_per_second']:.1f} steps/s, {row['times_real_time']:.2f}x real time" for row in rows]
    axes.bar_label(bars, labels, padding=4, zorder=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    limit = f"roofline in {report['dtype']}, {roofline:.0f} steps/s"
    axes.axvline(roofline, color="#aa3377", linestyle="--", label=limit)
    if real_time < 1.6 * roofline:
        axes.axvline(real_time, color="#666666", linestyle=":", label="real time, 86.13 steps/s")
    axes.set_xlim(0, 1.25 * max(1.3 * max(speeds), roofline))
    axes.set_xlabel("steps/s" if report["batch"] == 1 else f"steps/s of {report['batch']} requests together")
    title = f"{report['model']}, {report['dtype']}, {report['device']}, torch {report['torch']}, {report['date']}"
    axes.set_title(title, fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def roofline_speed(report: dict) -> float:
    """Steps per second, of all requests, at the bandwidth that the percentages of a model in its own dtype refer to."""
    gigabytes = report["results"][0].get("read_gigabytes_per_second") or report["copy_gigabytes_per_second"]
    return report["batch"] * gigabytes * 1e9 / report["bytes_per_step"]


def draw_timeline(report: dict, path: Path) -> None:
    """What a stream did when, seconds from the call: text, steps, codec calls, sound played; gaps are underruns."""
    timeline, first = report["timeline"], report["timeline"]["played"][0][0]
    lanes = {"played": "#ee7733", "codec": "#aa3377", "steps": "#228833", "text": "#4477aa"}
    figure, axes = _pyplot().subplots(figsize=(9, 2.6), layout="constrained")
    for height, (name, color) in enumerate(lanes.items()):
        bars = [(start, end - start) for start, end in timeline[name]]
        axes.broken_barh(bars, (height - 0.4, 0.8), facecolors=color, edgecolor="white", linewidth=0.3)
    axes.axvline(first, color="#666666", linestyle=":", label=f"first sound, {first:.3f} s")
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_xlim(0, None)
    axes.set_xlabel("seconds since the call")
    weights = report["quant"] or report["dtype"]
    title = f"{report['model']}, {weights}, {report['device']}, torch {report['torch']}, {report['date']}"
    axes.set_title(title, fontsize=9)
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=150)


def draw_divergence(report: dict, path: Path) -> None:
    """What each recipe loses: KL divergence by channel, a line a variant."""
    figure, axes = _pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for row in report["recipes"]:
        axes.plot(row["channels"]["kl"], marker="o", label=f"{row['name']}, {row['megabytes']:,.0f} MB")
    axes.set_yscale("log")
    axes.set_xlabel("channel")
    axes.set_ylabel("KL divergence from float32, nats")
    axes.set_title(f"{report['model']}, {report['rows']} rows, torch {report['torch']}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def draw_load(report: dict, path: Path) -> None:
    """First audio and streams kept over the rate of arrivals, a line for each system."""
    figure, (upper, lower) = _pyplot().subplots(2, 1, figsize=(8, 6.5), sharex=True, layout="constrained")
    systems: dict[str, list[dict]] = {}
    for row in report["loads"]:
        slots = f", {row['slots']} slots" if row["system"] == "dia-engine" else ""
        systems.setdefault(row["system"] + slots, []).append(row)
    for name, rows in systems.items():
        rates = [row["rate"] for row in rows]
        (drawn,) = upper.plot(rates, [row["first_audio_seconds"]["p50"] for row in rows], marker="o", label=name)
        p95 = [row["first_audio_seconds"]["p95"] for row in rows]
        upper.plot(rates, p95, marker="o", linestyle=":", color=drawn.get_color())
        lower.plot(rates, [100 * row["kept"] / row["requests"] for row in rows], marker="o", color=drawn.get_color())
    upper.set_yscale("log")
    upper.set_ylabel("first audio, s: p50, p95 dotted")
    upper.legend(fontsize=8)
    lower.set_ylim(-4, 104)
    lower.set_ylabel("streams without an underrun, %")
    lower.set_xlabel("requests/s, Poisson arrivals")
    weights = report["quant"] or report["dtype"]
    title = f"{report['model']}, {weights}, {report['device']}, torch {report['torch']}, {report['date']}"
    upper.set_title(title, fontsize=9)
    figure.savefig(path, dpi=150)


def require_matplotlib(parser: argparse.ArgumentParser) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("pictures need matplotlib: pip install matplotlib")


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="written by one of the benchmarks with --json")
    parser.add_argument("png", type=output_file, help="the picture to write")
    options = parser.parse_args()
    require_matplotlib(parser)
    report = read_json(options.json, "report")
    draw = drawing(report)
    if draw is None:
        parser.error(f"{options.json} was not written by one of these benchmarks, or before they had measured anything")
    draw(report, options.png)
    return 0


def drawing(report: object) -> Callable[[dict, Path], None] | None:
    """What draws a report, by what its benchmark alone writes; None for other files."""
    if not isinstance(report, dict):
        return None
    if "timeline" in report:
        return draw_timeline
    for rows, column, draw in (
        ("loads", "kept", draw_load),
        ("recipes", "channels", draw_divergence),
        ("results", "steps_per_second", draw_speeds),
    ):
        match report.get(rows):
            case [dict() as first, *_] if column in first:
                return draw
    return None


if __name__ == "__main__":
    run(main)
