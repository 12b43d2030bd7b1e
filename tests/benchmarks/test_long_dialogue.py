"""The benchmark of long dialogues, in small: what it reports of a stream and of slots."""

import json
import sys

import pytest

from benchmarks import long_dialogue
from dia_engine import Engine


def test_it_reports_a_stream_and_slots(tmp_path, monkeypatch, capsys):
    short = ["--minutes", "0.15", "--compared-seconds", "8", "--runs", "1", "--max-slots", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["long_dialogue", *short, "--json", str(tmp_path / "a.json")])
    monkeypatch.setattr(long_dialogue, "resident", lambda: 123_000_000)
    long_dialogue.main()
    report = json.loads((tmp_path / "a.json").read_text())
    stream, slots = report["stream"], report["slots_compared"]
    assert stream["audio_seconds"] > 8 and stream["megabytes_by_minute"] == [123.0] and report["pieces"] > 2
    assert stream["smallest_lead_seconds"] < stream["audio_seconds"]
    assert slots["equal"] and [row["slots"] for row in slots["results"]] == [1, 2]
    assert slots["results"][0]["times_as_fast"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("first chunk: ") and "MB by minute: 123" in lines[1]


def test_a_dialogue_of_one_piece_is_refused_before_it_is_measured(monkeypatch):
    monkeypatch.setattr(long_dialogue, "first_chunks", lambda *given: pytest.fail("it is measured"))
    monkeypatch.setattr(sys, "argv", ["long_dialogue", "--minutes", "0.01"])
    with pytest.raises(ValueError, match="--minutes 0.01: the dialogue is not planned into pieces; make it longer"):
        long_dialogue.main()


def test_a_dialogue_is_as_long_as_asked():
    with Engine.load("talker", device="cpu", load_dac=False) as engine:
        for seconds in (5, 60):
            plan = engine.plan(long_dialogue.dialogue(engine, seconds))
            assert plan.expected_seconds == pytest.approx(1.05 * seconds, abs=6)
