"""A file of scripts becomes a folder of audio: each line as it is alone, a bad one alone, after a kill the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from dia_engine import Engine
from dia_engine.batch.job import AHEAD, LineRenderer, run_job
from dia_engine.batch.manifest import Record, open_manifest
from dia_engine.batch.script_file import Line, check_script_file
from dia_engine.cli import main
from dia_engine.longform_settings import LongFormSettings
from dia_engine.weights.source import TALKER_FOLDER
from dia_engine.weights.synthetic import synthetic_config

QUICK = ["--model", "synthetic:tiny", "--max-tokens", "30"]
TEXT = "[S1] Hello. [S2] Hi!"


def written(path, *lines) -> str:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return str(path)


def records(folder) -> dict:
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines), "one record per request"
    return {line["id"]: line for line in lines}


LONGER = ("--max-tokens", 60)  # pieces that are cut give up the last 15 frames


def run_batch(scripts, folder, *arguments) -> int:
    return main(["batch", scripts, "-o", str(folder), *QUICK, *map(str, arguments)])


def test_each_file_is_what_generate_gives_alone(tmp_path, capsys):
    soundfile.write(tmp_path / "voice.wav", 0.3 * np.sin(np.arange(3000) * 0.05), 44100)
    asked = [
        {"id": "plain", "text": TEXT, "seed": 5},
        {
            "id": "params",
            "text": "[S2] Other.",
            "seed": 6,
            "temperature": 0.8,
            "cfg_filter_top_k": None,
            "max_tokens": 40,
        },
        {"id": "voice", "text": TEXT, "seed": 7, "audio_prompt": "voice.wav", "audio_prompt_text": "[S1] Before."},
        {
            "id": "voices",
            "text": TEXT,
            "seed": 8,
            "audio_prompt": {"S1": "voice.wav", "S2": "voice.wav"},
            "audio_prompt_text": {"S1": "Before.", "S2": "After."},
        },
        *({"id": f"more{seed}", "text": TEXT, "seed": seed} for seed in range(9)),
    ]
    assert run_batch(written(tmp_path / "scripts.jsonl", *asked), tmp_path / "out", "--slots", 3) == 0
    assert "13 scripts" in capsys.readouterr().out
    found, engine = records(tmp_path / "out"), Engine.load("synthetic:tiny", device="cpu")
    assert sorted(found) == sorted(line["id"] for line in asked)
    for line in asked:
        arguments = {"max_tokens": 30, **line}
        if "audio_prompt" in line:
            path = str(tmp_path / "voice.wav")
            arguments["audio_prompt"] = {"S1": path, "S2": path} if line["id"] == "voices" else path
        del arguments["id"]
        whole, record = engine.generate(**arguments, details=True), found[line["id"]]
        engine.save_audio(tmp_path / "alone.wav", whole.audio)
        assert (tmp_path / "alone.wav").read_bytes() == (tmp_path / "out" / record["file"]).read_bytes()
        assert record["seed"] == line["seed"] and record["finish_reason"] == whole.finish_reason
        assert record["seconds"] == pytest.approx(whole.duration, abs=1e-3) and record["error"] is None


LONG = " ".join(f"[S{1 + turn % 2}] This is what turn {turn} of a long script says." for turn in range(9))


def test_long_scripts_are_planned_and_options_hold_for_lines_that_lack_them(tmp_path, capsys):
    asked = [
        {"id": "long", "text": LONG, "seed": 1},
        {"id": "whole", "text": LONG, "seed": 1, "split": False},
        {"id": "fast", "text": TEXT, "seed": 1, "speed": 2},
        {"id": "paused", "text": TEXT, "seed": 1, "speed": 1.0, "pause": 0.5, "tail_silence": 0.25},
    ]
    scripts = written(tmp_path / "scripts.jsonl", *asked)
    assert run_batch(scripts, tmp_path / "out", "--speed", 0.5, *LONGER) == 0
    found, engine = records(tmp_path / "out"), Engine.load("synthetic:tiny", device="cpu")
    assert len(engine.plan(LONG).pieces) > 2
    for line in asked:
        arguments = {"max_tokens": 60, "speed": 0.5, **line}
        del arguments["id"]
        engine.save_audio(tmp_path / "alone.wav", engine.generate(**arguments))
        assert (tmp_path / "alone.wav").read_bytes() == (tmp_path / "out" / found[line["id"]]["file"]).read_bytes()
    engine.close()
    assert found["long"]["seconds"] > 2 * found["whole"]["seconds"]

    capsys.readouterr()
    assert (
        run_batch(scripts, tmp_path / "out", "--speed", 0.5, *LONGER) == 0 and "all of the 4" in capsys.readouterr().out
    )
    assert run_batch(scripts, tmp_path / "out", "--speed", 0.5, *LONGER, "--no-split") == 0
    assert "4 scripts" in capsys.readouterr().out, "made with another option"
    again = records(tmp_path / "out")
    assert again["long"]["seconds"] == again["whole"]["seconds"] == found["whole"]["seconds"]
    one = written(tmp_path / "long.jsonl", {"id": "long", "text": LONG * 3})
    assert run_batch(one, tmp_path / "too_long", "--no-split") == 1
    assert "text has" in records(tmp_path / "too_long")["long"]["error"]
    assert run_batch(one, tmp_path / "too_long", "--speed", 5) == 2 and "speed must be in" in capsys.readouterr().err


def test_a_line_without_a_seed_gets_one_that_makes_it_again(tmp_path):
    scripts = written(tmp_path / "scripts.jsonl", *({"id": name, "text": TEXT} for name in "ab"))
    assert run_batch(scripts, tmp_path / "out", "--format", "flac", "-q") == 0
    found = records(tmp_path / "out")
    assert found["a"]["seed"] != found["b"]["seed"]
    again = written(tmp_path / "again.jsonl", {"id": "a", "text": TEXT, "seed": found["a"]["seed"]})
    assert run_batch(again, tmp_path / "again", "--format", "flac", "-q") == 0
    assert (tmp_path / "again" / "a.flac").read_bytes() == (tmp_path / "out" / "a.flac").read_bytes()


BAD_LINES = {
    b"{": "line 2 is not JSON",
    b"\xff": "line 2 is not UTF-8",
    b"[1]": "must be a JSON object",
    b"[" * 100_000: "nested too deeply",
    b'{"id": "x", "text": "a", "text": "b"}': "text given twice",
    b'{"id": "x"}': "no text",
    b'{"id": "x", "text": 3}': "text must be a string",
    b'{"id": "x", "text": ["a", "b"]}': "text must be a string",
    b'{"id": "x", "text": "a", "sed": 3}': "unknown field sed",
    b'{"id": "x", "text": "a", "seed": "3"}': "seed must be an integer",
    b'{"id": "x", "text": "a", "seed": -1}': "seed must be in",
    b'{"id": "x", "text": "a", "seed": [3]}': "seed must be an integer, got [3]",
    b'{"id": "x", "text": "a", "temperature": "hot"}': "temperature must be a number",
    b'{"id": "x", "text": "a", "temperature": NaN}': "temperature must be finite",
    b'{"id": "x", "text": "a", "max_tokens": 99999}': "max_tokens must be at most",
    b'{"id": "x", "text": "a", "audio_prompt": "absent.wav"}': "no sound file",
    b'{"id": "x", "text": "a", "audio_prompt": "' + b"a" * 5000 + b'"}': "...: File name too long",
    b'{"id": "x", "text": "a", "audio_prompt_text": "b"}': "there is no audio_prompt",
    b'{"id": "x", "text": "a", "audio_prompt": {"S1": 3}, "audio_prompt_text": {"S1": "b"}}': "must be a string, got 3",
    b'{"id": "x", "text": "a", "audio_prompt": {"S1": "a.wav"}}': "must both be given by speaker",
    b'{"id": "x", "text": "a", "audio_prompt": {"A": "a"}, "audio_prompt_text": {"A": "b"}}': "S1 and S2, got 'A'",
    b'{"id": "x", "split": false, "text": "' + b"a" * 2000 + b'"}': "text has 2000 bytes",
    b'{"id": "x", "text": "a", "split": 0}': "split must be True or False, got 0",
    b'{"id": "x", "text": "a", "speed": 9}': "speed must be in",
    b'{"id": "x", "text": "a", "pause": "1"}': "pause must be a number",
    b'{"id": "x", "text": "[S1] [S2]", "pause": 1}': "nothing but speaker tags",
    b'{"id": "x", "text": "' + b"a" * 2**20 + b'"}': "more than 1048576 bytes",
    b'{"id": "x", "text": "\\ud800"}': "text",
}


def test_a_bad_line_fails_alone(tmp_path, capsys):
    engine = Engine.load("synthetic:tiny", device="cpu")
    for number, (bad, message) in enumerate(BAD_LINES.items()):
        lines = {"id": "before", "text": TEXT, "seed": 1}, bad, b"", {"id": "after", "text": TEXT, "seed": 1}
        with open(written(tmp_path / "scripts.jsonl", *lines), "rb") as file:
            parsed = list(check_script_file(file, "scripts.jsonl"))
        folder = tmp_path / str(number)
        renderer = LineRenderer(engine, folder, ".wav", tmp_path, {"max_tokens": 20}, lambda: 3)
        before, failed, after = (renderer.render(line)[0] for line in parsed)
        assert before.error is None and after.error is None and failed.file is None
        assert message in failed.error and "\n" not in failed.error, failed
    engine.close()
    assert run_batch(str(tmp_path / "scripts.jsonl"), tmp_path / "out") == 1
    assert "1 failed: see" in capsys.readouterr().out
    assert (tmp_path / "out" / "after.wav").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": TEXT}], "line 1: id is missing"),
        ([{"id": "a", "text": TEXT}, {"id": "a", "text": TEXT}], "line 2: id 'a' is that of line 1"),
        ([{"id": "a", "text": TEXT}, b"{", {"id": "A", "text": TEXT}], "line 3: id 'A' is that of line 1"),
        *(
            ([{"id": id, "text": TEXT}], "line 1: id must be a string")
            for id in ("", "../x", "a/b", ".hidden", "-o", "a\0", "a b", "\u00e9", "x" * 200, 3, None, ["a"])
        ),
        ([b"\xff\xfea\0"], "not UTF-8 text but UTF-16"),
        ([b"", b"  "], "holds no request"),
    ],
)
def test_a_meaningless_job_is_refused_before_any_work(tmp_path, capsys, monkeypatch, lines, message):
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("loaded"))
    assert run_batch(written(tmp_path / "scripts.jsonl", *lines), tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out").exists()


def test_places_that_cannot_be_used(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("loaded"))
    scripts = written(tmp_path / "scripts.jsonl", {"id": "a", "text": TEXT})
    for arguments, message in (
        ((str(tmp_path / "absent"), tmp_path / "out"), "no script file"),
        ((str(tmp_path), tmp_path / "out"), "not an ordinary file"),
        ((scripts, scripts), "is not a folder"),
        ((scripts, "/proc/out"), "/proc/out"),
        ((scripts, ""), "--output must name a folder, got an empty string"),
        (("", tmp_path / "out"), "the name of the script file is empty"),
        ((scripts, tmp_path / "out", "--max-tokens", 10**20), "max_tokens must be at most"),
        ((scripts, tmp_path / "out", "--max-rows", 100, "--max-tokens", 101), "max_tokens must be at most 100"),
        ((scripts, tmp_path / "out", "--max-tokens", 2), "max_tokens must be at least"),
        ((scripts, tmp_path / "out", "--min-tokens", 20), "min_tokens must be at most 14, the frames that max_tokens"),
        ((scripts, tmp_path / "out", "--format", "aac"), "--format must be one of wav, flac, ogg, mp3"),
        ((scripts, tmp_path / "out", "--slots", 0), "max_slots must be at least 1"),
        ((scripts, tmp_path / "out", "--top-p", 2), "top_p must be in"),
    ):
        assert run_batch(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    whole_model = ["batch", scripts, "-o", str(tmp_path / "out"), "--model", "synthetic:tiny"]
    assert main([*whole_model, "--min-tokens", "100000"]) == 2
    assert "min_tokens must be at most" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with open_manifest(tmp_path / "out", {}):
        assert run_batch(scripts, tmp_path / "out") == 2
    assert "another dia-engine batch is at work" in capsys.readouterr().err


def test_a_manifest_of_others_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("loaded"))
    scripts, out = written(tmp_path / "scripts.jsonl", {"id": "a", "text": TEXT}), tmp_path / "out"
    out.mkdir()
    manifest = out / "manifest.jsonl"
    for content in (
        b'{"id": "a", "text": "[S1] Hello."}\n', b'{"audio_filepath": "a.wav"}\n', b"{}\n", b"notes\nmore\n", b"a note",
        b"[1, 2]\n", b'"hello"', b'{"id": 3}\n', b"id,file\na,b\n", b'{\n"id": "a"\n}\n',
    ):  # fmt: skip
        manifest.write_bytes(content)
        for file in (scripts, str(manifest)):
            assert run_batch(file, out) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "manifest.jsonl, line 1" in line and manifest.read_bytes() == content, line
    manifest.unlink()
    os.mkfifo(manifest)
    assert run_batch(scripts, out) == 2 and "is not an ordinary file" in capsys.readouterr().err


def test_a_job_that_cannot_begin_leaves_no_folder(tmp_path, capsys):
    scripts = written(tmp_path / "scripts.jsonl", {"id": "a", "text": TEXT})
    for out in (tmp_path / "a" / "b", tmp_path / "c"):
        assert run_batch(scripts, out, "--codec", tmp_path / "absent") == 2
        assert "absent" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert run_batch(scripts, tmp_path / "there", "--codec", tmp_path / "absent") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scripts.jsonl", "there"]


def test_what_ends_a_job_says_how_far_it_came(tmp_path, capsys, monkeypatch):
    make = LineRenderer.render

    def make_or_fail(self, line):
        if line.id == "b":
            while not (self.folder / "a.wav").exists():
                time.sleep(0.01)
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:129] err == 0. can't allocate memory")
        return make(self, line)

    monkeypatch.setattr(LineRenderer, "render", make_or_fail)
    scripts = written(tmp_path / "scripts.jsonl", *({"id": name, "text": TEXT} for name in "ab"))
    assert run_batch(scripts, tmp_path / "out", "-q") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"out of memory; 1 of 2 scripts are in {tmp_path / 'out'}; the same command goes on")
    monkeypatch.undo()
    assert run_batch(scripts, tmp_path / "out") == 0 and "1 more were there already" in capsys.readouterr().out


def test_a_name_that_is_taken_by_no_file_fails_its_line_alone(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    (out / "a.wav").mkdir(parents=True)
    os.mkfifo(out / "b.wav")
    generated, run_requests = [], Engine.run_requests
    monkeypatch.setattr(
        Engine, "run_requests", lambda self, requests: generated.append(requests) or run_requests(self, requests)
    )
    scripts = written(tmp_path / "scripts.jsonl", *({"id": name, "text": TEXT} for name in "abc"))
    assert run_batch(scripts, out) == 1 and "2 failed: see" in capsys.readouterr().out
    assert {id: record["file"] for id, record in records(out).items()} == {"a": None, "b": None, "c": "c.wav"}
    assert len(generated) == 1, "no sound is made that cannot be kept"
    with open_manifest(out, {}) as manifest:  # the name was taken while the sound was made, or on another machine
        kept = manifest.keep(Record("a", "a.wav", 1.0, 5, "stop"), b"sound")
    assert (kept.file, kept.seconds, kept.seed) == (None, None, 5) and kept.error.endswith("name a file to write to")
    (out / "a.wav").rmdir()
    (out / "b.wav").unlink()
    assert run_batch(scripts, out) == 0 and "2 scripts" in capsys.readouterr().out


@pytest.mark.parametrize("tail", [b"\0" * 300, b"\n", b"\0\0\n"])
def test_what_a_loss_of_power_leaves_behind_the_last_line_is_passed_over(tail, tmp_path, capsys):
    scripts = written(tmp_path / "scripts.jsonl", *({"id": name, "text": TEXT} for name in "ab"))
    assert run_batch(scripts, tmp_path / "out", "-q") == 0
    with open(tmp_path / "out" / "manifest.jsonl", "ab") as file:
        file.write(tail)
    assert run_batch(scripts, tmp_path / "out") == 0 and "all of the 2" in capsys.readouterr().out
    more = written(tmp_path / "more.jsonl", *({"id": name, "text": TEXT} for name in "abc"))
    assert run_batch(more, tmp_path / "out", "-q") == 0
    assert set(records(tmp_path / "out")) == set("abc")


def test_a_job_has_no_more_threads_than_lines(tmp_path, monkeypatch):
    started = []

    class Counted(threading.Thread):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setattr("dia_engine.batch.job.threading.Thread", Counted)
    scripts = written(tmp_path / "scripts.jsonl", *({"id": name, "text": TEXT} for name in "abc"))
    assert run_batch(scripts, tmp_path / "out", "--slots", 100, "-q") == 0
    assert len([thread for thread in started if "(work)" in thread.name]) == 3


def test_progress_that_nobody_can_see_ends_no_job(tmp_path, capsys, monkeypatch):
    scripts = written(tmp_path / "scripts.jsonl", *({"id": name, "text": TEXT} for name in "ab"))
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run_batch(scripts, tmp_path / "out") == 0 and "2 scripts" in capsys.readouterr().out
    assert len(records(tmp_path / "out")) == 2


@pytest.mark.parametrize("id", ["../evil", ["a"], "new", "b"])
def test_a_file_of_scripts_that_changes_while_it_is_read_ends_the_job(tmp_path, capsys, monkeypatch, id):
    load, scripts = Engine.load, tmp_path / "scripts.jsonl"
    written(scripts, *({"id": name, "text": TEXT} for name in "ab"))

    def load_and_change(*arguments, **keywords):
        written(scripts, {"id": id, "text": "[S1] Other."})
        return load(*arguments, **keywords)

    monkeypatch.setattr(Engine, "load", load_and_change)
    assert run_batch(str(scripts), tmp_path / "out", "-q") == 2
    assert "was changed while it was read, at line 1" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"scripts.jsonl", "out"}


def test_a_record_that_does_not_fit_the_disk_leaves_no_half_line(tmp_path, monkeypatch):
    with open_manifest(tmp_path, {}) as manifest:
        manifest.append(Record("a", "a.wav"))
        with monkeypatch.context() as full:
            full.setattr("dia_engine.batch.manifest._write_all", half_written)
            with pytest.raises(OSError, match="No space left"):
                manifest.append(Record("b", "b.wav"))
        manifest.append(Record("c", "c.wav"))
    assert list(records(tmp_path)) == ["a", "c"]


def half_written(file, content):
    file.write(content[:20])
    raise OSError(28, "No space left on device")


def test_a_second_run_makes_only_what_is_not_there(tmp_path, capsys):
    asked = [{"id": name, "text": TEXT, "seed": 1} for name in "abcdef"]
    scripts, out = written(tmp_path / "scripts.jsonl", *asked, b"{"), tmp_path / "out"
    assert run_batch(scripts, out) == 1
    before = {path.name: path.stat() for path in out.glob("*.wav")}
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["id"] in ("a", "b", "c", "d", None)]
    torn = next(line for line in lines if json.loads(line)["id"] == "e")  # and f is not in it at all
    (out / "manifest.jsonl").write_bytes(b"".join(kept) + torn[:40])
    (out / "b.wav").unlink()
    (out / ".0123456789abcdef.partial").write_bytes(b"of a killed process")
    asked[2]["text"] = "[S1] Another text."
    written(tmp_path / "scripts.jsonl", *asked)
    capsys.readouterr()
    assert run_batch(scripts, out) == 0
    shown = capsys.readouterr().out
    assert "4 scripts" in shown and "2 more were there already" in shown
    after = {path.name: path.stat() for path in out.iterdir()}
    same = {name for name, status in before.items() if after[name].st_ino == status.st_ino}
    assert {"a.wav", "d.wav"} <= same and "c.wav" not in same
    assert sorted(after) == [*(f"{name}.wav" for name in "abcdef"), "manifest.jsonl"] and len(records(out)) == 6
    assert run_batch(scripts, out) == 0 and "were there already" in capsys.readouterr().out
    assert run_batch(scripts, out, "--temperature", 0.5) == 0 and "6 scripts" in capsys.readouterr().out


def test_a_changed_model_or_prompt_under_the_same_name_is_heard(tmp_path, capsys):
    model, out, tone = tmp_path / "model", tmp_path / "out", 0.3 * np.sin(np.arange(3000) * 0.05)
    shutil.copytree(TALKER_FOLDER, model)
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", tone, 44100)
    pair = {"S1": "one.wav", "S2": "two.wav"}
    scripts = written(
        tmp_path / "scripts.jsonl",
        {"id": "plain", "text": TEXT, "seed": 1},
        {"id": "voice", "text": TEXT, "seed": 1, "audio_prompt": "one.wav"},
        {"id": "pair", "text": TEXT, "seed": 1, "audio_prompt": pair, "audio_prompt_text": {"S1": "a", "S2": "b"}},
    )
    arguments = ("--model", model, "--max-tokens", 60, "-q")

    def made() -> int:
        capsys.readouterr()
        before = {path.name: path.stat().st_ino for path in out.glob("*.wav")}
        assert run_batch(scripts, out, *arguments) == 0
        return sum(before.get(path.name) != path.stat().st_ino for path in out.glob("*.wav"))

    assert (made(), made()) == (3, 0)
    soundfile.write(tmp_path / "two.wav", 0.9 * tone, 44100)
    assert (made(), made()) == (1, 0)
    soundfile.write(tmp_path / "one.wav", 0.9 * tone, 44100)
    assert (made(), made()) == (2, 0)
    os.utime(tmp_path / "one.wav", ns=(0, 0))
    (model / "notes.txt").write_text("beside the model")
    assert made() == 0, "the same content"
    for changed in (model / "model.safetensors", model / "config.json"):
        status = changed.stat()
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert (made(), made()) == (3, 0), changed
    without = [{name: value for name, value in each.items() if name != "files"} for each in records(out).values()]
    written(out / "manifest.jsonl", *without)  # of an earlier version
    assert made() == 0
    soundfile.write(tmp_path / "two.wav", tone, 44100)
    assert (made(), made()) == (1, 0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_after_a_kill_the_same_command_goes_on(tmp_path, how, capsys):
    asked = [{"id": f"n{number}", "text": TEXT, "seed": number} for number in range(12)]
    scripts, out = written(tmp_path / "scripts.jsonl", *asked), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "dia_engine", "batch", scripts, "-o", str(out), *QUICK, "--slots", "1"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    manifest = out / "manifest.jsonl"
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    done = {id: (out / f"{id}.wav").stat().st_ino for id in records_until_torn(manifest)}
    assert 3 <= len(done) < 12
    if how == signal.SIGINT:
        last = errors.decode().splitlines()[-1]
        assert f"interrupted, {len(done)} of 12 scripts are in {out}; the same command goes on" in last
        assert len(list(out.iterdir())) == len(done) + 1
    assert run_batch(scripts, out, "-q") == 0
    assert len(records(out)) == 12 and len(list(out.iterdir())) == 13
    assert all((out / f"{id}.wav").stat().st_ino == inode for id, inode in done.items()), "none is made twice"


def records_until_torn(manifest) -> list[str]:
    return [json.loads(line)["id"] for line in manifest.read_bytes().split(b"\n")[:-1]]


class FakeEngine:
    """Generates a tone when the test lets it."""

    device, max_slots, sample_rate, usable = torch.device("cpu"), 3, 44100, True

    def __init__(self):
        self.config, self.max_rows, self.defaults, self.codec = synthetic_config("synthetic:tiny"), 3072, {}, None
        self.long_form = LongFormSettings()
        self.go, self.asked, self.error = threading.Semaphore(0), 0, None

    def run_requests(self, requests):
        self.go.acquire()
        if self.error is not None:
            raise self.error
        if not self.usable:
            raise RuntimeError("this engine is closed")
        audio = np.full(512, 0.1, dtype=np.float32)
        return [SimpleNamespace(audio=audio, duration=0.0116, finish_reason="stop")]

    def close(self):
        self.usable = False
        self.go.release(100)


def lines_told(taken, count):
    for number in range(count):
        taken.append(number)
        values = {"id": f"n{number}", "text": "x", "seed": 1}
        yield Line(number + 1, json.dumps(values).encode(), values["id"], values)


def test_no_more_lines_are_taken_than_keep_the_slots_busy(tmp_path):
    engine, taken, ahead = FakeEngine(), [], []

    def on_record(record):
        ahead.append(len(taken) - len(ahead))
        engine.go.release()

    engine.go.release()
    with open_manifest(tmp_path, {}) as manifest:
        run_job(
            LineRenderer(engine, tmp_path, ".wav", tmp_path, {}, lambda: 1), manifest, lines_told(taken, 200), on_record
        )
    assert len(ahead) == 200 and max(ahead) <= 3 + AHEAD + 1
    assert len(records(tmp_path)) == 200


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory for a slot"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes."),
        RuntimeError("could not create a primitive"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        OSError(28, "No space left on device"),
    ],
)
def test_what_no_line_is_to_blame_for_ends_the_job(tmp_path, monkeypatch, error):
    before, engine, taken = threading.enumerate(), FakeEngine(), []
    engine.error = error
    if isinstance(error, OSError) and error.errno == 28:
        engine.error = None
        monkeypatch.setattr("dia_engine.batch.manifest.write_whole", lambda *_: (_ for _ in ()).throw(error))
    engine.go.release(1000)
    with open_manifest(tmp_path, {}) as manifest, pytest.raises(type(error)):
        renderer = LineRenderer(engine, tmp_path, ".wav", tmp_path, {}, lambda: 1)
        run_job(renderer, manifest, lines_told(taken, 1000), lambda _: None)
    assert len(taken) < 1000 and not manifest.made
    assert not set(threading.enumerate()) - set(before)
    assert os.listdir(tmp_path) == []
