"""Subtitles and names: text in, text out."""

import signal

import numpy as np
import pytest
import soundfile

from dia_engine.cli import main
from dia_engine.longform.subtitles import Levels, check_subtitles_path, cues, write_subtitles
from dia_engine.longform.voices import parse_speakers, with_tags
from dia_engine.results import PieceResult

PIECES = (
    PieceResult("[S1] Yes. Go on. [S2] No.", 1, 1, "stop", 0.0, 3.0),
    PieceResult("[S2] <A> & b.", 1, 1, "stop", 3.5, 3600.25),
)


def test_turns_are_exact_at_joins_and_divided_by_bytes_inside():
    found = list(cues(PIECES))
    assert [(cue.speaker, cue.text) for cue in found] == [
        ("[S1]", "Yes. Go on."),
        ("[S2]", "No."),
        ("[S2]", "<A> & b."),
    ]
    assert found[0].start == 0 and found[1].end == pytest.approx(3.0) and found[2].start == 3.5
    assert found[0].end == found[1].start == pytest.approx(3.0 * 11 / 14)


def test_a_piece_without_sound_has_no_cue():
    empty = PieceResult("[S1] Nothing.", 1, 3, "stop", 3.5, 3.5)
    assert list(cues([PIECES[0], empty, PIECES[1]])) == list(cues(PIECES))


def test_silence_near_the_estimate_ends_a_turn():
    piece = PieceResult("[S1] Yes. Go on. [S2] No, my friend.", 1, 1, "stop", 1.0, 4.0)
    sound = np.full(5 * 8000, 0.1, np.float32)
    estimate = next(cues([piece])).end
    for start, end in ((1.2, 1.5), (2.0, 2.1), (2.25, 2.3), (3.8, 3.9)):  # the first and the last are out of reach
        sound[round(start * 8000) : round(end * 8000)] = 0.001
    levels = Levels(8000)
    for first in range(0, len(sound), 1234):
        levels.add(sound[first : first + 1234])
    first, second = cues([piece], levels)
    assert 2.1 < estimate < 2.5 and first.end == second.start == pytest.approx(2.05, abs=0.006) and second.end == 4.0
    loud = Levels(8000)
    loud.add(np.full(5 * 8000, 0.1, np.float32))
    assert next(cues([piece], loud)).end == next(cues([piece], Levels(8000))).end == estimate


def test_a_blank_line_in_a_script_does_not_end_a_cue(tmp_path):
    fake = "[S1] Hello\n\n7\n00:00:00,000 --> 00:00:09,000\nmy friend. [S2] No."
    for name in ("a.srt", "a.vtt"):
        write_subtitles(str(tmp_path / name), [PieceResult(fake, 1, 1, "stop", 0.0, 3.0)])
        lines = (tmp_path / name).read_text().splitlines()
        assert lines.count("") == (1 if name == "a.srt" else 3) and len(lines) == (7 if name == "a.srt" else 10)


def test_srt_and_vtt(tmp_path):
    for name in ("a.srt", "a.VTT"):
        check_subtitles_path(str(tmp_path / name))
        write_subtitles(str(tmp_path / name), PIECES)
    srt, vtt = ((tmp_path / name).read_text() for name in ("a.srt", "a.VTT"))
    assert srt.startswith("1\n00:00:00,000 --> 00:00:02,357\n[S1] Yes. Go on.\n\n2\n")
    assert srt.endswith("3\n00:00:03,500 --> 01:00:00,250\n[S2] <A> & b.\n")
    assert vtt.startswith("WEBVTT\n\nNOTE\nTimes inside a piece are estimated") and "<v S2>&lt;A&gt; &amp; b." in vtt
    with pytest.raises(ValueError, match="a.txt: subtitles are written as .srt or .vtt"):
        check_subtitles_path("a.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_subtitles_path(str(tmp_path / "no" / "a.srt"))


def test_names_become_tags():
    speakers = parse_speakers("Ann=S1, Dr. Bob=s2")
    assert speakers == {"Ann": "[S1]", "Dr. Bob": "[S2]"}
    assert (
        with_tags("Ann: Hi: Bob.\n Dr. Bob : No.\nAnn said: yes.", speakers)
        == "[S1] Hi: Bob.\n[S2] No.\nAnn said: yes."
    )
    for text, message in (
        ("Ann", "as Ann=S1,Bob=S2, got 'Ann'"),
        ("Ann=S3", "Ann must be one of S1, S2, got S3"),
        ("Ann=", "got nothing"),
        ("Ann=S1,Ann=S2", "Ann is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_speakers(text)
    with pytest.raises(ValueError, match="no line of the script begins with Ann: or Dr. Bob:"):
        with_tags("Hello.", speakers)
    with pytest.raises(ValueError, match="the script begins with 'Once.*', before any"):
        with_tags("Once.\nAnn: Hi.", speakers)


SAY = ["say", "--model", "talker", "--seed", "1", "-q"]
LINES = "Ann: Can you count?\nBob: Yes, my friend."


@pytest.mark.parametrize("way", [["-"], ["--file", "script.txt"]])
@pytest.mark.parametrize("streams", [[], ["--stream"]])
def test_subtitles_of_a_short_script_are_of_the_script_that_was_said(tmp_path, monkeypatch, way, streams):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.txt").write_text(LINES)
    monkeypatch.setattr("sys.stdin", (tmp_path / "script.txt").open())
    names = ["--speakers", "Ann=S1,Bob=S2", "--subtitles", "a.srt", "-o", "a.wav"]
    assert main([*SAY, *way, *streams, *names]) == 0
    lines = (tmp_path / "a.srt").read_text().splitlines()
    assert lines[2] == "[S1] Can you count?" and lines[6] == "[S2] Yes, my friend."
    info = soundfile.info(tmp_path / "a.wav")
    assert lines[5].endswith(f"{info.duration:06.3f}".replace(".", ","))


@pytest.fixture
def heeds_ctrl_c():
    """A shell makes what it runs in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("streams", [[], ["--stream"]])
def test_ctrl_c_leaves_what_is_made_of_a_long_script(tmp_path, monkeypatch, capsys, heeds_ctrl_c, streams):
    from dia_engine.cli import say

    pieces, note = [], say._Subtitles.note

    def interrupted(self, progress):
        note(self, progress)
        pieces.append(progress.last)
        if len(pieces) == 6:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(say._Subtitles, "note", interrupted)
    monkeypatch.chdir(tmp_path)
    script = "[S1] Can you count? [S2] Yes, my little robot. " * 12
    assert main([*SAY, script, *streams, "--subtitles", "a.vtt", "-o", "a.wav"]) == 130
    seconds = soundfile.info("a.wav").duration
    assert f"interrupted, {seconds:.2f} s of sound are in a.wav" in capsys.readouterr().err
    assert pieces[0].end < seconds <= pieces[-1].end
    told = (tmp_path / "a.vtt").read_text()
    assert told.count("-->") >= 4 and sorted(path.name for path in tmp_path.iterdir()) == ["a.vtt", "a.wav"]
