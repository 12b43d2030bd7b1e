"""Text to ids: bytes, tags, and what is refused."""

import pytest

from dia_engine.text.tokenizer import encode_text


def test_bytes_and_speaker_tags():
    assert encode_text("[S1] Hé [S2]!", 64).tolist() == [1, 32, 72, 0xC3, 0xA9, 32, 2, 33]


def test_limit_counts_bytes_after_tags():
    assert len(encode_text("[S1]" * 8, 8)) == 8
    with pytest.raises(ValueError, match="9 bytes .* at most 8"):
        encode_text("[S1]" * 7 + "é", 8)


INVISIBLE = ["\u200b", "\ufeff", "\u2060", "\u00ad", "\x00", "\x07", "\u3164", "\u2800", "\u0301", " \u200b\n"]


@pytest.mark.parametrize("text", ["", "  \n\t", *INVISIBLE])
def test_empty(text):
    with pytest.raises(ValueError, match="must not be empty"):
        encode_text(text, 8)


@pytest.mark.parametrize("text", ["a\u0301", "\U0001f600", "\ue000", ".", "[S1]\u200b"])
def test_what_can_be_seen_is_taken(text):
    assert len(encode_text(text, 16))


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_no_string(text):
    with pytest.raises(TypeError, match=f"must be a string, got {type(text).__name__}"):
        encode_text(text, 8)


def test_lone_surrogate_and_unknown_byte():
    with pytest.raises(ValueError, match="cannot be encoded as UTF-8"):
        encode_text("a\ud800", 8)
    with pytest.raises(ValueError, match="byte 122, the model knows only bytes below 100"):
        encode_text("dz", 8, vocab_size=100)
