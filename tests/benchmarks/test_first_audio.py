"""The benchmark of the first sound: the player it simulates, and a run of it."""

import json
import sys
from contextlib import contextmanager

import pytest

from benchmarks import first_audio
from dia_engine import Engine
from dia_engine.runtime.chunking import ChunkSizes


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


def test_percentiles_are_by_nearest_rank(monkeypatch):
    """Of 20 runs the nineteenth, not the slowest."""
    stamps = iter([stamp for seconds in range(22) for stamp in (0, seconds)])
    monkeypatch.setattr(first_audio.time, "perf_counter", lambda: next(stamps))
    monkeypatch.setattr(first_audio, "wait_until_idle", lambda engine: None)
    found = first_audio._first_audio(Ending(), runs=20)["first_audio_seconds"]
    assert found == {"p50": 11, "p95": 20, "p99": 21}


def test_a_window_is_timed_at_its_length(monkeypatch):
    """Also for less sound than it has."""
    lengths, decode = [], first_audio.SoundWindows.decode

    def noted(windows, codes, *rest):
        lengths.append(len(codes))
        return decode(windows, codes, *rest)

    monkeypatch.setattr(first_audio.SoundWindows, "decode", noted)
    with Engine.load("synthetic:tiny", device="cpu") as engine:
        sizes = ChunkSizes().with_defaults(first_audio.SoundWindows(engine.codec).receptive_field)
        work = first_audio._codec_work(engine, sizes, frames=3)
    assert set(lengths[:-1]) == {round(work["frames_ratio"] * sizes.chunk_frames)} and lengths[-1] == 3


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
