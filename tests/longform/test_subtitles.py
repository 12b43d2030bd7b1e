"""Subtitles and names: text in, text out."""

import pytest

from dia_engine.longform.subtitles import check_subtitles_path, cues, write_subtitles
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
