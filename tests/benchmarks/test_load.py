"""The benchmarks of concurrent streams: definitions by hand, open-loop clients, and that they run. No test depends on
how long anything takes."""

import http.server
import io
import json
import sys
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from benchmarks import against_commit, codec_batch, http_clients, load, player, served, streams, together
from benchmarks.clients import InProcess, OneAtATime, Script, listen, open_loop, poisson_arrivals
from benchmarks.command import MeasurementError
from benchmarks.player import Heard, heard, percentiles, summary
from benchmarks.served import Served
from benchmarks.versions import ROOT, Version
from dia_engine import Engine

RATE = 1000  # samples per second


def tone(seconds: float) -> np.ndarray:
    return np.tile(np.array([0.5, -0.5], dtype=np.float32), round(seconds * RATE / 2))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def test_a_player_that_runs_dry_goes_on_with_the_next_chunk():
    stream = heard([(1.0, tone(0.5)), (1.4, tone(0.5)), (2.5, tone(0.1)), (2.7, tone(0.4))], RATE, end=2.8)
    assert stream.first_audio == 1.0 and stream.audible == 1.0 and stream.duration == 1.5 and stream.end == 2.8
    assert stream.underruns == 2 and stream.stalled == pytest.approx(0.5 + 0.1), "dry at 2.0 and at 2.6"
    assert not stream.kept


def test_a_chunk_that_comes_as_the_player_runs_dry_is_in_time():
    stream = heard([(1.0, tone(0.5)), (1.5, tone(0.5))], RATE, end=1.6)
    assert (stream.underruns, stream.stalled) == (0, 0.0) and stream.kept


def test_audible_is_when_the_player_reaches_the_sound():
    stream = heard([(1.0, silence(0.2)), (1.1, np.concatenate([silence(0.1), tone(0.5)]))], RATE, end=2.0)
    assert stream.first_audio == 1.0
    assert stream.audible == pytest.approx(1.3, abs=0.011), "0.3 s of silence are played first; windows are 10 ms apart"
    late = heard([(1.0, silence(0.2)), (3.0, np.concatenate([silence(0.1), tone(0.5)]))], RATE, end=3.5)
    assert late.audible == pytest.approx(3.1, abs=0.011) and late.underruns == 1


def test_what_cannot_be_heard():
    assert player.audible_from(silence(1), RATE) is None
    assert player.audible_from(0.004 * tone(1), RATE) is None, "-54 dBFS"
    assert player.audible_from(0.25 + silence(1), RATE) is None, "a constant is no sound"
    assert player.audible_from(tone(0.01), RATE) is None, "shorter than a window"
    click = silence(0.5)
    click[105] = 1.0
    assert player.audible_from(click[:116], RATE) is None, "in one window only"


def test_streams_without_samples_and_with_errors_are_not_kept():
    empty = heard([(1.0, silence(0))], RATE, end=1.5)
    assert empty.first_audio is None and empty.end == 1.5 and not empty.kept
    failed = heard([(1.0, tone(1))], RATE, end=1.5, error="OSError: gone")
    assert failed.underruns == 0 and not failed.kept


def test_percentiles_by_nearest_rank():
    assert percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([3.0, 1.0]) == {"p50": 1.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_summary():
    streams = [
        Heard(1.0, 1.0, end=2.0, duration=4.0, underruns=0, stalled=0.0),
        Heard(3.0, 3.5, end=4.0, duration=4.0, underruns=2, stalled=0.5),
        Heard(None, None, end=1.0, duration=0.0, underruns=0, stalled=0.0, error="OSError: gone"),
    ]
    figures = summary(streams, [10.0, 11.0, 16.0])
    assert (figures["requests"], figures["failed"], figures["kept"]) == (3, 1, 1)
    assert figures["underrun_share"] == pytest.approx(1 / 3) and figures["stalled_seconds"] == 0.5
    assert figures["span_seconds"] == 7.0 and figures["times_real_time"] == pytest.approx(8 / 7)
    assert figures["peak_streams"] == 2 and figures["errors"] == ["OSError: gone"]
    assert figures["audible_seconds"]["p50"] == 1.0 and figures["first_audio_seconds"]["p95"] == 3.0


def test_arrivals_are_random_reproducible_and_at_the_rate():
    arrivals = poisson_arrivals(4.0, 4000, seed=1)
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0.0 and (gaps > 0).all() and arrivals == poisson_arrivals(4.0, 4000, seed=1)
    assert gaps.mean() == pytest.approx(0.25, rel=0.05) and gaps.std() == pytest.approx(0.25, rel=0.05)


class Gate:
    """A target whose streams end when all that are expected have begun."""

    sample_rate = RATE

    def __init__(self, expected: int):
        self.begun = threading.Barrier(expected)
        self.now = self.most = 0

    def stream(self, script):
        self.now += 1
        self.most = max(self.most, self.now)
        yield tone(0.1)
        self.begun.wait(timeout=30)
        self.now -= 1
        if script.seed < 0:
            raise OSError("gone")


def test_an_open_loop_does_not_wait_for_answers():
    """No stream of these ends before the last one has begun."""
    streams = open_loop(Gate(4), [Script("", seed) for seed in (0, 1, 2, -3)], [0.0, 0.01, 0.02, 0.03])
    assert [stream.error for stream in streams] == ["", "", "", "OSError: gone"]
    assert [stream.duration for stream in streams] == [pytest.approx(0.1)] * 4


def test_one_at_a_time():
    gate = Gate(1)
    streams = open_loop(OneAtATime(gate), [Script("", seed) for seed in range(5)], [0.0] * 5)
    assert gate.most == 1 and all(stream.kept for stream in streams)


def test_times_count_from_when_a_request_was_due():
    """Also if its client could not begin then."""
    assert listen(Gate(1), Script("", 0), due=time.perf_counter() - 100).first_audio > 100


@pytest.fixture(scope="module")
def engine():
    return Engine.load("synthetic:tiny", device="cpu")


def test_an_engine_as_a_target(engine):
    script = Script("[S1] Hello.", seed=3, max_tokens=30)
    chunks = list(InProcess(engine).stream(script))
    whole = engine.generate("[S1] Hello.", seed=3, max_tokens=30)
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)
    stream = InProcess(engine).stream(script)
    next(stream)
    stream.close()
    engine.generate("[S1] Hello.", max_tokens=20)
    assert engine.active_requests == 0, "the stream that was given up is gone"


def run(module, monkeypatch, tmp_path, *arguments: str) -> dict:
    path = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, "--json", str(path)])
    module.main()
    return json.loads(path.read_text())


TINY = ["--model", "synthetic:tiny", "--device", "cpu", "--max-tokens", "24"]


def test_a_load_beside_its_baselines(monkeypatch, tmp_path, capsys):
    """The other version is this one."""
    arguments = [*TINY, "--requests", "3", "--slots", "1", "2", "--load", "0.5", "--baseline", str(ROOT)]
    report = run(load, monkeypatch, tmp_path, *arguments)
    rows = [(row["system"], row["slots"]) for row in report["loads"]]
    assert rows == [("dia-engine", 1), ("one at a time", 1), ("baseline", None), ("dia-engine", 2)]
    assert [each["slots"] for each in report["capacity"]] == [1, 2]
    for row in report["loads"]:
        assert (row["requests"], row["failed"]) == (3, 0) and row["audio_seconds"] == report["loads"][0][
            "audio_seconds"
        ]
    assert (
        report["loads"][0]["rate"] == report["loads"][1]["rate"] == 0.5 * report["capacity"][0]["requests_per_second"]
    )
    assert "first audio p50" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw_load

    draw_load(report, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 5000


@pytest.mark.parametrize("started", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_load_of_a_server(engine, monkeypatch, tmp_path, capsys, started):
    """One that runs, or is started: streamed, and whole one at a time, both the audio of the same seeds."""
    pytest.importorskip("fastapi")
    from tests.server.helpers import Server

    arguments = [*TINY, "--requests", "3", "--slots", "2", "--load", "0.5", "--server"]
    if started:
        report = run(load, monkeypatch, tmp_path, *arguments)
    else:
        with Server(engine, model="synthetic:tiny", voices=str(tmp_path / "voices")) as server:
            report = run(load, monkeypatch, tmp_path, *arguments, server.url)
    assert [(row["system"], row["slots"]) for row in report["loads"]] == [("served", 2), ("whole, one at a time", 1)]
    assert report["model"] == "synthetic:tiny" and report["sample_rate"] == 24_000
    for row in report["loads"]:
        assert (row["requests"], row["failed"]) == (3, 0) and row["first_audio_seconds"]["p95"] > 0
        assert row["audio_seconds"] == pytest.approx(report["loads"][0]["audio_seconds"])
    assert "first bytes alone" in capsys.readouterr().out


def test_a_server_is_ready_whatever_was_said_before(monkeypatch):
    """Python, OpenMP and the hub's progress bars write to the same stream; some of it names addresses."""
    asked = []
    monkeypatch.setattr(served, "_is_healthy", lambda url: asked.append(url) is None)
    line = '{"message": "listening on http://127.0.0.1:4567, loading talker"}'
    log = io.StringIO(f"Invalid -W option ignored\nsee http://pypi.org/, or not\n{line}\nmore\n")
    assert served._ready(SimpleNamespace(poll=lambda: None), log) == "http://127.0.0.1:4567"
    assert asked == ["http://127.0.0.1:4567"]


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server of another make: odd parts of samples, then refusals."""

    asked: ClassVar[list] = []

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200 if len(self.asked) == 1 else 429)
        self.end_headers()
        for part in () if len(self.asked) > 1 else (b"\1", b"\0\2\0\3", b"\0\4"):
            self.wfile.write(part)
            self.wfile.flush()

    def log_message(self, *arguments):
        pass


def test_samples_of_a_server_that_are_cut_anywhere_and_a_refusal():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = Served(f"http://127.0.0.1:{server.server_port}/", api_key="k")
        found = np.concatenate(list(target.stream(Script("[S1] Hello.", 3, max_tokens=9))))
        np.testing.assert_allclose(found * 32767, [1, 2, 3], atol=1e-3)
        assert listen(target, Script("x", 0), 0.0).error == "OSError: status 429"
        server.shutdown()
    first, second = Refusing.asked
    assert first["input"] == "[S1] Hello." and first["max_tokens"] == 9 and first["stream"] and first["seed"] == 3
    assert "max_tokens" not in second


def test_a_version_runs_its_own_engine_and_tells_its_errors(tmp_path):
    for name in ("dia_engine", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    with Version(tmp_path, model="synthetic:tiny", device="cpu", load_dac=False) as version:
        assert version.folder == str(tmp_path)
        with pytest.raises(ValueError, match="max_tokens must be at least 17"):
            version.generate(Script("[S1] Hello.", 0, max_tokens=3))
        script = Script("[S1] Hello.", 0, max_tokens=20)
        seconds, frames = version.generate(script)
        assert seconds > 0 and frames == 20 - 1 - 15 and version.first_audio(script) > 0
    with pytest.raises(ValueError, match="no synthetic model"):
        Version(ROOT, model="synthetic:none")


def test_company(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(together, "JOINS", 2)
    report = run(together, monkeypatch, tmp_path, *TINY[:-1], "150", "--callers", "3", "--runs", "1")
    assert report["generate"]["equal"] and report["first_audio"]["ratio"] > 0
    assert "sounds equal" in capsys.readouterr().out


def test_streams_that_none_has_joined_are_an_error(engine, monkeypatch):
    monkeypatch.setattr(together, "JOINS", 0)  # as if each had ended too early
    options = together.argparse.Namespace(callers=2, runs=1, max_tokens=17)
    with pytest.raises(ValueError, match="raise --max-tokens"):
        together.one_more(engine, options)


def test_sounds_that_differ_are_told(engine, monkeypatch):
    monkeypatch.setattr(together, "in_threads", lambda calls: [call() + 1e-4 for call in calls])
    options = together.argparse.Namespace(callers=2, runs=1, max_tokens=20)
    assert not together.callers_at_once(engine, options)["equal"]


def test_figures_of_clients_over_http():
    def first_audio(seconds: float, underruns: int = 0, error: str = "") -> Heard:
        return Heard(seconds, None, 1.0, 1.0, underruns, 0.0, error)

    alone = [first_audio(seconds) for seconds in (0.1, 0.1, 0.4)]
    report = http_clients.figures(alone, [first_audio(0.2), first_audio(0.8, underruns=2), first_audio(0.3, error="x")])
    assert report["alone_seconds"]["p95"] == 0.4 and report["together_seconds"]["p95"] == 0.8
    assert (report["ratio"], report["ratio_p95"]) == (pytest.approx(8), pytest.approx(2))
    assert (report["underruns"], report["failed"]) == (1, 1)
    with pytest.raises(MeasurementError, match="no sound: status 500"):
        http_clients.figures([Heard(None, None, 0.1, 0.0, 0, 0.0, "status 500")], alone)


def test_clients_over_http(monkeypatch, tmp_path, capsys):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    report = run(http_clients, monkeypatch, tmp_path, "--clients", "2", "--rounds", "1", "--over", "0.1")
    assert report["failed"] == 0 and report["alone_seconds"]["p50"] > 0 and report["together_seconds"]["p95"] > 0
    assert "2 clients within 0.1 s p50" in capsys.readouterr().out


def test_clients_that_ask_again_and_again():
    with Engine.load("synthetic:tiny", device="cpu", max_rows=40) as engine:
        results, took = streams.crowd(InProcess(engine), clients=2, seconds=0.1)
    assert len(results) >= 2 and took > 0 and not any(each.error for each in results)


def test_a_server_that_is_not_there(monkeypatch):
    """It is told before clients ask it again and again."""
    monkeypatch.setattr(streams, "crowd", lambda *clients: pytest.fail("clients ask"))
    monkeypatch.setattr(sys, "argv", ["streams", "http://127.0.0.1:9"])
    with pytest.raises(MeasurementError, match="no sound: ConnectionRefusedError"):
        streams.main()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:abc", "http://127.0.0.1:99999", "http://"])
def test_no_address_of_a_server(url):
    with pytest.raises(ValueError, match="the server's address must be such as"):
        Served(url)


def test_against_another_commit(monkeypatch, tmp_path, capsys):
    arguments = [str(ROOT), "--model", "synthetic:tiny", "--pairs", "2", "--steps", "16", "--what", "step"]
    report = run(against_commit, monkeypatch, tmp_path, *arguments)
    assert [row["what"] for row in report["comparisons"]] == ["step"]
    for row in report["comparisons"]:
        assert len(row["milliseconds_of_pairs"]) == 2 and row["ratio_interval"][0] < row["ratio"]
    assert "now/before" in capsys.readouterr().out


@pytest.mark.parametrize("made", [30, 180])
def test_the_steps_that_are_timed_are_those_that_were_made(made):
    """Not of a script that ended early, or that was planned into pieces, each with steps of its own."""
    version = SimpleNamespace(folder="/v", generate=lambda script: (3.0, made))
    with pytest.raises(ValueError, match=f"--steps 60: /v makes {made} frames of the script instead of 45"):
        against_commit._seconds_per_step(version, 60, 45)
    assert against_commit._seconds_per_step(version, 60, made) == 3.0 / 60


def test_the_script_of_a_step_is_one_piece():
    with Engine.load("talker", device="cpu", load_dac=False) as engine:
        assert len(engine.plan(against_commit.ONE_PIECE).pieces) == 1
        frames = 60 - engine.config.max_delay
        assert len(engine.generate(against_commit.ONE_PIECE, seed=1, max_tokens=61)) == frames


def test_the_interval_of_pairs():
    assert against_commit.interval([1.0, 1.0, 1.0]) == (1.0, 1.0)
    low, high = against_commit.interval([0.0, 1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(1.5 - 3.18 * 0.6455, abs=1e-3), pytest.approx(1.5 + 3.18 * 0.6455, abs=1e-3))
    now = iter([1.0, 1.0, 2.2, 2.0, 1.8])
    row = against_commit.compare(lambda: 1.0, lambda: next(now), pairs=3)
    assert row["milliseconds_of_pairs"] == [[1000, 2200], [1000, 2000], [1000, 1800]] and 1.9 < row["ratio"] < 2.1


def test_windows_of_several_requests(monkeypatch, tmp_path, capsys):
    arguments = ["--models", "synthetic:tiny", "--device", "cpu", "--requests", "2", "--seconds", "1e-9"]
    report = run(codec_batch, monkeypatch, tmp_path, *arguments)
    assert [row["frames"] for row in report["results"]] == [18, 68]
    assert all(row["pairs"] == 3 and row["largest_difference"] < 1e-5 for row in report["results"])
    assert "one call is" in capsys.readouterr().out


@pytest.mark.parametrize("module, arguments, message", [
    (load, ["--requests", "0"], "--requests: must be at least 1, got 0"),
    (load, ["--load", "nan"], "--load: must be over 0 and finite, got nan"),
    (load, ["--server", "http://x", "--slots", "1", "2"], "--server takes one number of --slots and no --baseline"),
    (load, ["--slots", "4", "-1"], "--slots: must be at least 1, got -1"),
    (together, ["--callers", "0"], "--callers: must be at least 1, got 0"),
    (http_clients, ["--rounds", "0"], "--rounds: must be at least 1, got 0"),
    (http_clients, ["--over", "-1"], "--over must be in [0, 60] seconds, got -1.0"),
    (against_commit, [".", "--pairs", "1"], "--pairs: must be at least 2, got 1"),
])  # fmt: skip
def test_options_that_cannot_work(module, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit):
        module.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("module, arguments", [(load, ["--baseline"]), (against_commit, [])])
def test_a_folder_that_is_no_checkout(module, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="is no checkout of dia-engine"):
        module.main()
