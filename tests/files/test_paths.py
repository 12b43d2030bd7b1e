"""Paths that users name, and files that are written whole."""

import os
from pathlib import Path

import numpy as np
import pytest

from dia_engine.files.output import write_whole
from dia_engine.files.paths import user_path
from dia_engine.files.spectrogram import draw_spectrogram
from dia_engine.files.wav_stream import GrowingWav


def test_a_tilde_is_the_home_folder_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/a.wav") == user_path(Path("~/a.wav")) == tmp_path / "home" / "a.wav"
    assert user_path("~nobody-of-this-name/a.wav") == Path("~nobody-of-this-name/a.wav")
    assert user_path("./~/a.wav") == Path("~/a.wav") and user_path("a~") == Path("a~")
    Path("~").mkdir()
    Path("~/a.wav").touch()
    assert user_path("~/a.wav") == Path("~/a.wav")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_spectrogram_is_written_whole_or_not_at_all(tmp_path, monkeypatch, failure, call):
    def fail(*arguments):
        raise failure

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BaseException, match="No space left|^$") as caught:
        draw_spectrogram(path, np.ones(4000), 16000)
    if caught.type is OSError:
        assert f"could not write {path}" in str(caught.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]


def test_a_growing_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    GrowingWav("~/a.wav", 16000).write(np.zeros(9, np.float32))
    write_whole(user_path("~/b"), b"whole")
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "b"]


def test_a_wav_file_of_more_than_4_gib_counts_as_many_as_it_can(tmp_path):
    wav = GrowingWav(tmp_path / "a.wav", 16000)
    wav._data_bytes = 2**32 - 4  # as after 37 hours; the file has a hole there
    wav.write(np.full(9, 0.5, np.float32))
    with open(tmp_path / "a.wav", "rb") as file:
        header = file.read(44)
    assert header[4:8] == header[40:44] == b"\xff" * 4
