"""The benchmark of the first sound: the player it simulates, and a run of it."""

import json
import sys
from contextlib import contextmanager

import pytest

from benchmarks import first_audio


def test_a_player_in_real_time():
    chunks = [[1.0, 100], [1.5, 200], [4.5, 100], [4.6, 100]]
    played = first_audio._played(chunks, sample_rate=100)
    assert played == [[1.0, 2.0], [2.0, 4.0], [4.5, 5.5], [5.5, 6.5]]
    assert first_audio._underruns(played) == {"chunks": 4, "underruns": 1, "silence_seconds": 0.5}


class Ending:
    """An engine whose thread still works for a while on a stream that was given up."""

    def __init__(self):
        self.looks, self.begun_busy = 0, False

    @contextmanager
    def stream(self, script, seed):
        self.begun_busy |= self.looks > 0
        yield iter([None])
        self.looks = 3

    @property
    def active_requests(self):
        self.looks -= 1
        return int(self.looks > 0)


def test_the_engine_has_nothing_to_do_behind_a_measured_stream():
    """What follows runs the same model in another thread, which frees what the engine's thread computes with."""
    engine = Ending()
    first_audio._first_audio(engine, runs=2)
    assert engine.looks == 0 and not engine.begun_busy


def test_a_run(tmp_path, monkeypatch, capsys):
    quick = ["--runs", "1", "--seconds", "0.2", "--stream-frames", "12", "--peer-steps", "2"]
    model = ["--model", "synthetic:tiny", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["first_audio", *model, *quick, "--json", str(tmp_path / "j")])
    first_audio.main()
    shown, report = capsys.readouterr().out, json.loads((tmp_path / "j").read_text())
    assert "first 8 frames of sound after" in shown and "dia-engine whole" in shown
    assert report["split"]["launches"] == 15 + 8 + 10 and report["codec_work"]["frames_ratio"] < 1.6
    assert report["stream"]["frames"] == 12 and len(report["timeline"]["steps"]) == 15 + 12
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw_timeline

    draw_timeline(report, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 5000
