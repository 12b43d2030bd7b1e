"""Plans of scripts: pure text, checked on examples and on whatever hypothesis finds."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dia_engine.longform.options import SpeechOptions
from dia_engine.longform.planning import turns
from dia_engine.longform.planning.checked_plan import _is_readable, make_plan
from dia_engine.longform.planning.plan import Plan, Planner, derived_seed, plan_pieces, size_of
from dia_engine.longform.planning.turns import sentences, units, whole_sentences
from dia_engine.longform_settings import LongFormSettings
from dia_engine.text.tokenizer import has_visible_text
from dia_engine.weights.synthetic import synthetic_config

DIA = LongFormSettings()
TALKER = LongFormSettings(good_bytes=128, piece_bytes=65, anchor_bytes=65)
DIALOGUE = "[S1] Can you count very well? [S2] Yes, my little robot. " * 10


def as_dense(script: str) -> str:
    """Without tags of speakers who go on, and white space."""
    parts, last = [], None
    for part in re.split(r"(\[S[12]\])", script):
        if part in ("[S1]", "[S2]"):
            pending = part
            continue
        text = "".join(part.split())
        if text:
            pending = locals().get("pending")
            if pending and pending != last:
                parts.append(pending)
            last = pending or last
            parts.append(text)
    return "".join(parts)


def plan_script(script: str, seed: int, limits: LongFormSettings, **rules) -> Plan:
    return Plan(tuple(plan_pieces(script, seed, limits, **rules)), is_split=True)


def check(plan: Plan, script: str, limits: LongFormSettings) -> None:
    assert as_dense(" ".join(piece.text for piece in plan.pieces)) == as_dense(script)
    for index, piece in enumerate(plan.pieces):
        assert piece.text.strip() and all(anchor < index for anchor in piece.anchor_pieces)
        assert size_of(piece.text) == piece.size <= 1.5 * limits.piece_bytes + 8
        assert size_of(piece.sent) <= limits.good_bytes + limits.piece_bytes
        assert not re.search(r"(\[S[12]\])(?:(?!\[S[12]\]).)*\1", piece.sent, re.DOTALL), piece.sent


WORDS = [
    "Yes.",
    "[S1]",
    "[S2]",
    "[S3]",
    "(laughs)",
    "(a (b) c.)",
    "(",
    ")",
    "word",
    "one, two;",
    "\u4f60\u597d\u3002",
    "\U0001f600!",
    "a" * 90,
    "\n",
]
SCRIPTS = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=400)


def without_tags(script: str) -> str:
    return script.replace("[S1]", "").replace("[S2]", "")


@settings(max_examples=150, deadline=None)
@given(SCRIPTS, st.sampled_from([DIA, TALKER]))
@example("[S1] a. [S1] b. [S2] c. [S2] d.", TALKER)
def test_pieces_are_the_script(script, limits):
    if not has_visible_text(without_tags(script)):
        with pytest.raises(ValueError, match="nothing but speaker tags|no visible characters"):
            plan_script(script, 1, limits)
        return
    plan = plan_script(script, 1, limits)
    check(plan, script, limits)
    assert plan == plan_script(script, 1, limits)


@settings(max_examples=100, deadline=None)
@given(SCRIPTS, st.sampled_from([DIA, TALKER]))
@example("[S1] \u0301 " + "One two three. " * 30, DIA)
@example("[S1] \ud800 " + "One two three. " * 30, DIA)
@example("[S1] \u200b. " + "\u3164! One two three. " * 30, DIA)
def test_what_is_readable_before_it_is_planned_is_readable_piece_by_piece(script, limits):
    """Errors come before any work, while all but the first piece are planned later."""
    config = synthetic_config("synthetic:full")
    says_something = has_visible_text(without_tags(script))
    if says_something and _is_readable(script, "", limits, config) and size_of(script) > limits.good_bytes:
        make_plan(script, 1, SpeechOptions(), limits, config)


def test_a_script_is_planned_piece_by_piece_as_it_is_at_once():
    script = "[S1] Can you count? [S2] Yes, I can. One. [S1] Two (laughs) three! " * 300
    taken = []

    def noting():
        for unit in units(script, TALKER.piece_bytes):
            taken.append(unit)
            yield unit

    pieces = Planner(1, TALKER).pieces(noting())
    first = next(pieces)
    assert len(taken) < 150 < len(list(units(script, TALKER.piece_bytes)))
    assert [first, *pieces] == Planner(1, TALKER).add(list(units(script, TALKER.piece_bytes)), final=True)


@pytest.mark.parametrize("limits", [DIA, TALKER])
def test_long_scripts(limits):
    for script in (
        "[S1] Can you count? [S2] Yes, I can. " * 5000,
        "word " * 1000,
        "x" * 5000,
        "(" + "laughs " * 700 + ")",
        "[S2] " + "One two three. " * 300 + "[S1] Good morning. " + "Red cats. " * 300,
    ):
        check(plan_script(script, 7, limits), script, limits)


def test_a_dialogue_is_cut_before_the_first_speaker():
    plan = plan_script(DIALOGUE, 3, TALKER)
    assert len(plan.pieces) == 10 and all(piece.text.startswith("[S1]") for piece in plan.pieces)
    first = plan.pieces[0]
    assert first.anchor == "" and first.text == "[S1] Can you count very well? [S2] Yes, my little robot."
    for index, piece in enumerate(plan.pieces[1:], start=1):
        assert piece.anchor == first.text and piece.anchor_pieces == (0,) and piece.sent == f"{first.text} {piece.text}"
        assert piece.seed == derived_seed(3, index) and piece.opens_turn
    assert len({piece.seed for piece in plan.pieces}) == 10


def test_a_speaker_who_goes_on_gets_no_second_tag():
    plan = plan_script("[S1] " + "Can you count very well? " * 12, 1, TALKER)
    assert all(piece.text.startswith("[S1]") for piece in plan.pieces)
    assert all(piece.sent.count("[S1]") == 1 for piece in plan.pieces)
    assert [piece.opens_turn for piece in plan.pieces] == [True] + [False] * (len(plan.pieces) - 1)
    repeated = plan_script("[S1] Yes. [S1] No, my friend. " * 12, 1, TALKER)
    assert all(piece.sent.count("[S1]") == 1 for piece in repeated.pieces)


def test_a_later_speaker_joins_the_anchor():
    script = "[S1] " + "I see two black cats. " * 6 + "[S2] Yes, I hear five dogs. " + "[S1] Good. [S2] Very good. " * 6
    pieces = plan_script(script, 1, TALKER).pieces
    (second,) = [index for index, piece in enumerate(pieces) if piece.text.startswith("[S2] Yes")]
    assert pieces[second].anchor_pieces == (0,)
    both = [piece for piece in pieces[second + 1 :] if "[S1]" in piece.text and "[S2]" in piece.text]
    assert both and all(piece.anchor_pieces == (0, second) for piece in both)
    assert all(size_of(piece.sent) <= TALKER.good_bytes for piece in pieces)


def test_the_callers_prompt_is_the_anchor():
    plan = plan_script(DIALOGUE, 1, TALKER, transcript="[S2] Good morning.")
    assert all(piece.anchor == "[S2] Good morning." and piece.anchor_pieces == () for piece in plan.pieces)
    goes_on = plan_script("[S2] " + "Yes, I can. " * 20, 1, TALKER, transcript="[S2] Good morning.")
    assert all(piece.sent.count("[S2]") == 1 for piece in goes_on.pieces)


def test_short_rests_are_merged():
    for count in range(6, 40):
        for limits in (DIA, TALKER) if count > 12 else (TALKER,):
            pieces = plan_script("[S1] " + "Can you count very well? " * count, 1, limits).pieces
            assert all(piece.size >= 0.4 * limits.piece_bytes for piece in pieces[1:]), [piece.size for piece in pieces]


def test_one_turn():
    pieces = plan_script(DIALOGUE, 1, TALKER, one_turn=True).pieces
    assert len(pieces) == 20 and all(piece.opens_turn for piece in pieces)


def test_sentences():
    assert sentences("Yes. No? (Laughs. Loudly.) Well... Go on!", 65) == [
        "Yes.", "No?", "(Laughs. Loudly.) Well...", "Go on!",
    ]  # fmt: skip
    assert sentences('He said "no." She left.', 65) == ['He said "no."', "She left."]
    assert sentences("\u4f60\u597d\u3002\u518d\u89c1\u3002", 65) == ["\u4f60\u597d\u3002", "\u518d\u89c1\u3002"]
    assert sentences("It costs 3.50 now. Yes.", 65) == ["It costs 3.50 now.", "Yes."]
    assert sentences("one two, three four five six", 20) == ["one two,", "three four five", "six"]
    assert [unit.speaker for unit in units("Yes. [S2] No. [S1]", 65)] == ["", "[S2]"]


def test_whole_sentences():
    for text, whole in (
        ("Hello the", 0), ("Hello.", 0), ("Hello. Th", 6), ("Hello [S2] a", 6),
        ("[S1] (Hm. Well", 0), ("Yes. (Hm. Well", 4), ("(Hm. Well) a. b", 13),
    ):  # fmt: skip
        assert whole_sentences(text, 65) == whole
    assert whole_sentences("one two, three four five six seven eight nine", 20) == len("one two, three four five ")
    assert whole_sentences("(one two three four five six seven eight nine", 20) == 0, "it may still be closed"


def test_settings_are_checked():
    with pytest.raises(ValueError, match="long_form knows good_bytes, .*, got bytes"):
        LongFormSettings.from_config({"bytes": 3})
    with pytest.raises(TypeError, match="good_bytes must be of type int, got 'a'"):
        LongFormSettings.from_config({"good_bytes": "a"})
    with pytest.raises(ValueError, match="shortest must be over 0, got -1"):
        LongFormSettings.from_config({"shortest": -1})
    with pytest.raises(ValueError, match="an anchor of 110 bytes and a piece of 160 do not fit good_bytes, 100"):
        LongFormSettings.from_config({"good_bytes": 100})


def test_a_run_of_ends_is_looked_at_once():
    """Or a long one takes time by the square of its length."""
    for ends in ("!!!! x", "....", "?!\u2026\u2026) x"):
        found = [start for start in range(len(ends)) if turns._SENTENCE_END.match(ends, start)]
        assert found == [0]
