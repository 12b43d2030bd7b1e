"""Text to byte ids: UTF-8 bytes, with the speaker tags [S1] and [S2] as the ids 1 and 2."""

import unicodedata

import torch

SPEAKER_TAGS = {b"[S1]": b"\x01", b"[S2]": b"\x02"}
# What takes no ink: control and format characters, spaces, line ends, marks on nothing; and letters that are fillers.
INVISIBLE_CATEGORIES = {"Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp"}
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"


def encode_text(text: str, max_length: int, vocab_size: int = 256) -> torch.Tensor:
    """Turn a script into the encoder's ids.

    Args:
        text: the script; `[S1]` and `[S2]` become one id each.
        max_length: the encoder's number of positions.
        vocab_size: the encoder's number of ids.

    Returns:
        ids [S] int64, S <= max_length.

    Raises:
        TypeError, ValueError: as `encode_bytes`.
    """
    return torch.tensor(list(encode_bytes(text, max_length, vocab_size)), dtype=torch.int64, device="cpu")


def encode_bytes(text: str, max_length: int, vocab_size: int = 256) -> bytes:
    """The ids of `encode_text`, each of which is a byte.

    Raises:
        TypeError: `text` is not a string.
        ValueError: nothing that can be seen, not encodable as UTF-8, or longer than `max_length` ids (the
            reference cuts such text in silence), or holds a byte that the model does not know.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text cannot be encoded as UTF-8: {error.reason} at character {error.start}") from None
    if not has_visible_text(text):
        raise ValueError(f"text must not be empty, got {text[:20]!r}, in which nothing can be seen")
    for tag, byte in SPEAKER_TAGS.items():
        encoded = encoded.replace(tag, byte)
    if len(encoded) > max_length:
        raise ValueError(
            f"text has {len(encoded)} bytes (a speaker tag counts as one), the model reads at most {max_length}; "
            f"shorten it or split it"
        )
    if max(encoded) >= vocab_size:
        raise ValueError(f"text holds the byte {max(encoded)}, the model knows only bytes below {vocab_size}")
    return encoded


def has_visible_text(text: str) -> bool:
    """Whether a reader would see anything of a text."""
    return any(map(is_visible, text))


def is_visible(character: str) -> bool:
    """Whether a character takes ink by itself."""
    return unicodedata.category(character) not in INVISIBLE_CATEGORIES and character not in FILLERS
