"""Draw the figures of `tokens_per_sec --json` as a picture.

    python -m benchmarks.plot speed.json speed.png
"""

import argparse
import json
import sys
from pathlib import Path


def draw(report: dict, path: Path) -> None:
    """One bar a runtime: steps a second, with real time and the roofline marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["results"][::-1]
    names = [row["name"] for row in rows]
    speeds = [row["steps_per_second"] * report["batch"] for row in rows]
    roofline = report["batch"] * report["copy_gigabytes_per_second"] * 1e9 / report["bytes_per_step"]
    real_time = 44100 / 512
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.55 * len(rows)), layout="constrained")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="written by benchmarks.tokens_per_sec --json")
    parser.add_argument("png", type=Path, help="the picture to write")
    options = parser.parse_args()
    try:
        draw(json.loads(options.json.read_text()), options.png)
    except ModuleNotFoundError:
        parser.error("needs matplotlib: pip install matplotlib")
    except FileNotFoundError as error:
        parser.error(f"no such file: {error.filename}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
