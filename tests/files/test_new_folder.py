"""Folders that appear whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dia_engine.files.new_folder import check_new_folder, new_folder, remove_abandoned

HOLD = """
import sys, time
from dia_engine.files.new_folder import new_folder
with new_folder(sys.argv[1]) as partial:
    (partial / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def holder(target):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_appears_at_the_end(tmp_path):
    with new_folder(tmp_path / "x" / "y") as partial:
        (partial / "a").write_text("whole")
        assert not (tmp_path / "x" / "y").exists()
    assert os.listdir(tmp_path / "x") == ["y"] and (tmp_path / "x" / "y" / "a").read_text() == "whole"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failure_leaves_nothing_not_even_parents(tmp_path, error):
    with pytest.raises(type(error)), new_folder(tmp_path / "x" / "y" / "z") as partial:
        (partial / "a").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_parents_that_were_there(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "x" / "y" / "z"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["x"] and os.listdir(tmp_path / "x") == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    process = holder(tmp_path / "model")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".model.") and left.endswith(".partial")
    (tmp_path / ".model2.abc.partial").mkdir()
    with new_folder(tmp_path / "model"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".model2.abc.partial", "model"], "only what is its own"


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    process = holder(tmp_path / "model")
    try:
        before = os.listdir(tmp_path)
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "model"):
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == before
    finally:
        process.kill()
        process.wait(timeout=30)


def test_what_another_process_finishes_meanwhile_is_no_failure(tmp_path, monkeypatch):
    """It is renamed after it has been seen, as a link to nothing looks to who is told that it is a folder."""
    (tmp_path / ".model.abc.partial").symlink_to("gone")
    (tmp_path / ".model.def.partial").mkdir()
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    remove_abandoned(tmp_path, "model")
    assert os.listdir(tmp_path) == [".model.abc.partial"]


def test_an_empty_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with new_folder(tmp_path / "link") as partial:
        (partial / "a").write_text("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "a").read_text() == "x"


def test_where_a_file_system_is_mounted_is_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith("mounted"))
    with pytest.raises(FileExistsError, match="mounted, and cannot be replaced: name a folder in it"):
        check_new_folder(tmp_path / "mounted")
    assert check_new_folder(tmp_path / "mounted" / "model")


def test_a_broken_link_is_in_the_way(tmp_path):
    (tmp_path / "model").symlink_to("gone")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "model"):
        pass


def quantizing(before):
    return f"{before}; from dia_engine.cli import main; sys.exit(main(['quantize', 'talker', *sys.argv[1:]]))"


def test_sigterm_while_a_model_is_quantized_leaves_nothing(tmp_path):
    pause = "import sys, time, safetensors.torch as s; s.save_file = lambda *a, **k: time.sleep(60)"
    command = [sys.executable, "-c", quantizing(pause), str(tmp_path / "deep" / "small"), "--quant", "int8"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("model.safetensors")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors and os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [0, 200, 100_000], ids=["config", "weights", "middle of the weights"])
def test_a_full_disk_is_one_line_and_leaves_nothing(warm_python, tmp_path, limit):
    # A limit on the size of files is what a full disk looks like to a writer.
    full = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    done = warm_python.run(quantizing(full), tmp_path / "small", "--quant", "int8")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and f"could not write {tmp_path / 'small'}" in lines[0], lines
    assert os.listdir(tmp_path) == []
