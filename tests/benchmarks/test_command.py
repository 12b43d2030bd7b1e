"""What the command lines of the benchmarks share."""

import argparse
import importlib
import json
import sys
from contextlib import nullcontext

import pytest
import torch

from benchmarks import busy_neighbor, cpu_products, fidelity, first_audio, http_clients, long_dialogue, plot, together
from benchmarks.command import MeasurementError, at_least, output_file, positive, run, write_report
from tests.helpers import ROOT

WRITING = [  # a report
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "add_json_argument(parser)\n" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("two\nlines"), 2, "error: two lines"),
        (MeasurementError("no sound"), 2, "error: no sound"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_end_in_one_line(error, status, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        run(main)
    assert left.value.code == status and capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (at_least(1), "0", "must be at least 1, got 0"),
        (at_least(2), "x", "must be a whole number, got 'x'"),
        (positive, "0", "must be over 0 and finite, got 0"),
        (positive, "nan", "must be over 0 and finite, got nan"),
        (positive, "inf", "must be over 0 and finite, got inf"),
        (positive, "x", "must be a number, got 'x'"),
    ],
)
def test_numbers_of_a_command_line(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


@pytest.mark.parametrize("place", ["nowhere/x.json", "."])
def test_where_a_report_cannot_be_written_is_told_before_any_work(place, tmp_path, monkeypatch, capsys):
    assert len(WRITING) == 12, WRITING
    for name in WRITING:
        module = importlib.import_module(f"benchmarks.{name}")
        needed = ["."] if name == "against_commit" else []
        monkeypatch.setattr(sys, "argv", [name, *needed, "--json", str(tmp_path / place)])
        with pytest.raises(SystemExit):
            module.main()
        assert "argument --json:" in capsys.readouterr().err


def test_a_report_is_written_whole(tmp_path):
    path = output_file(str(tmp_path / "x.json"))
    write_report(path, {"a": 1})
    write_report(None, {})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def interrupted(main, tmp_path, monkeypatch, *arguments):
    """The report of a benchmark that Ctrl-C ends."""
    path = tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--json", str(path)])
    with pytest.raises(KeyboardInterrupt):
        main()
    return json.loads(path.read_text())


def once(*values):
    """Gives values, then Ctrl-C."""
    left = list(values)

    def give(*arguments, **keywords):
        if not left:
            raise KeyboardInterrupt
        return left.pop(0)

    return give


def test_figures_before_ctrl_c_are_written(tmp_path, monkeypatch):
    heard = http_clients.Heard(0.5, None, 1.0, 1.0, 0, 0.0)
    row = {"kind": "int8", "shape": [8, 4], "rows": 2, "chosen": "C"}
    row |= {"milliseconds": {"C": 1.0}, "gigabytes_per_second": {"C": 1.0}}
    for module, name, value in (
        (together, "callers_at_once", once({"equal": True})),
        (together, "generate_line", str),
        (together, "one_more", once()),
        (long_dialogue, "first_chunks", once({"ratio": 1.0})),
        (long_dialogue, "_first_chunk_line", str),
        (long_dialogue, "streamed", once()),
        (first_audio, "_codec_work", once()),
        (busy_neighbor, "NEIGHBORS", {"alone": []}),
        (busy_neighbor, "say", once({"whole": 2.0}, {"whole": 4.0})),
        (cpu_products, "measure", once([row])),
        (http_clients, "started_server", lambda *options: nullcontext("http://127.0.0.1:1")),
        (http_clients, "listen", lambda *arguments: heard),
        (http_clients, "open_loop", once([heard], [heard])),  # one to begin with, and one round
    ):
        monkeypatch.setattr(module, name, value)
    tiny = ["--model", "synthetic:tiny", "--device", "cpu"]
    assert interrupted(together.main, tmp_path, monkeypatch)["generate"] == {"equal": True}
    assert interrupted(long_dialogue.main, tmp_path, monkeypatch)["first_chunk"] == {"ratio": 1.0}
    report = interrupted(first_audio.main, tmp_path, monkeypatch, *tiny, "--stream-frames", "12", "--runs", "1")
    assert report["stream"]["frames"] == 12
    (result,) = interrupted(busy_neighbor.main, tmp_path, monkeypatch)["results"]
    assert result["whole_seconds_of_runs"] == [2.0, 4.0]
    report = interrupted(cpu_products.main, tmp_path, monkeypatch, "--model", "synthetic:tiny")
    assert [result["chosen"] for result in report["results"]] == ["C"]
    assert interrupted(http_clients.main, tmp_path, monkeypatch)["together_seconds"]["p50"] == 0.5


def test_variants_before_ctrl_c_are_written(tmp_path, monkeypatch):
    made, original = [], fidelity.Variant.__init__

    def make(*arguments):
        if len(made) == 2:  # float32 and one other
            raise KeyboardInterrupt
        made.append(original(*arguments))

    monkeypatch.setattr(fidelity.Variant, "__init__", make)
    monkeypatch.setattr(fidelity, "recipes", lambda: dict.fromkeys(("bfloat16", "again"), (torch.bfloat16, {})))
    report = interrupted(fidelity.main, tmp_path, monkeypatch, "--model", "talker", "--rows", "2")
    assert [row["name"] for row in report["recipes"]] == ["bfloat16"]


@pytest.mark.parametrize(
    "report",
    [[], {}, {"results": []}, {"results": [{"chosen": 1.0}]}, {"results": {}}, {"loads": []}, {"recipes": [3]}],
)
def test_files_that_cannot_be_drawn(report):
    assert plot.drawing(report) is None


def test_what_is_drawn_is_told_by_its_rows():
    results = {path.name: json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")}
    for word, draw in (
        ("speed", plot.draw_speeds),
        ("load-t", plot.draw_load),
        ("fidelity", plot.draw_divergence),
        ("products", None),
        ("busy-step", None),
        ("tilings", None),
    ):
        assert {plot.drawing(report) for name, report in results.items() if word in name} == {draw}


@pytest.mark.parametrize("name", ["epyc-2-cores-2026-11-26-speed", "xeon-2-cores-2026-11-22-speed"])
def test_the_roofline_that_is_drawn_is_that_of_the_percentages(name):
    """On a CPU that of reading, in reports of older versions that of a copy."""
    report = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    ours = report["results"][0]
    expected = 100 * report["batch"] * ours["steps_per_second"] / ours["roofline_percent"]
    assert plot.roofline_speed(report) == pytest.approx(expected, rel=1e-3)


def test_no_report_to_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "require_matplotlib", lambda parser: None)
    for name, error in (("README.md", ValueError), ("benchmarks", FileNotFoundError), ("nothing", FileNotFoundError)):
        monkeypatch.setattr(sys, "argv", ["plot", str(ROOT / name), str(tmp_path / "x.png")])
        with pytest.raises(error, match=name):
            plot.main()
