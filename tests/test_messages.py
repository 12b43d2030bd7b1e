"""Values and names of hostile files in one printable line."""

import numpy as np
import pytest

from dia_engine.messages import first_line, listed, shown, without_controls

VALUES = {
    "digits": 10**400,
    "more digits": 10**5000,
    "text": "x" * 10**6,
    "list": [[0] * 1000] * 1000,
    "controls": "\x1b[31m\n",
    "array": np.zeros((3, 3)),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_any_value_is_short_and_printable(value):
    text = shown(value)
    assert len(text) < 120 and text.isprintable()


def test_a_deep_value():
    deep = []
    for _ in range(10**5):
        deep = [deep]
    assert shown(deep) == "a deeply nested list"


@pytest.mark.parametrize(
    "pair", [lambda part: (part, part), lambda part: [part, part], lambda part: {0: part, 1: part}]
)
def test_a_value_that_holds_one_part_many_times(pair):
    value = 1
    for _ in range(18):
        value = pair(value)
    assert shown(value) == f"a very large {type(value).__name__}"
    assert shown(pair("x" * 10**5)).startswith("a very large")
    assert shown(pair(2 ** (10**6))).startswith("a very large")


@pytest.mark.parametrize("value", [(1, [2, {"a": (3.5, None)}], {4}), list(range(20)), {}, ("x",)])
def test_plain_values_are_shown_as_they_are(value):
    assert shown(value) == repr(value)


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\r\nb", "\x07", "\u202egnp.wav", "\x9b2J", "\udcff"])
def test_control_characters_are_escaped(name):
    assert without_controls(name).isprintable() and listed([name, name]).isprintable()


def test_names_stay_as_they_are():
    assert without_controls("dia engine \u65e5\u672c \U0001f600 [S1]") == "dia engine \u65e5\u672c \U0001f600 [S1]"


def test_lists_are_short():
    text = listed(["x" * 10**6] * 1000)
    assert len(text) < 1400 and text.endswith("and 990 more")
    assert listed([]) == "nothing" and listed(["a", "b"]) == "a, b"


def test_an_error_without_words_is_its_class():
    assert first_line(MemoryError()) == "MemoryError"
    assert first_line(ValueError("\x1b[31mred\x1b[0m\nsecond")) == "red"
