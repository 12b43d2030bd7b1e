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
        TypeError, ValueError: as `known_bytes`; or longer than `max_length` ids (the reference cuts such text in
            silence).
    """
    encoded = known_bytes(text, vocab_size)
    if len(encoded) > max_length:
        raise ValueError(
            f"text has {len(encoded)} bytes (a speaker tag counts as one), the model reads at most {max_length}; "
            f"shorten it or split it"
        )
    return encoded


def known_bytes(text: str, vocab_size: int = 256, name: str = "text") -> bytes:
    """The ids of a text of any length. `name` is what errors call it.

    Raises:
        TypeError: not a string.
        ValueError: nothing that can be seen, not encodable as UTF-8, or holds a byte that the model does not know.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, got {type(text).__name__}")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} cannot be encoded as UTF-8: {error.reason} at character {error.start}") from None
    check_visible(text, name)
    for tag, byte in SPEAKER_TAGS.items():
        encoded = encoded.replace(tag, byte)
    if max(encoded) >= vocab_size:
        raise ValueError(f"{name} holds the byte {max(encoded)}, the model knows only bytes below {vocab_size}")
    return encoded


def check_visible(text: str, name: str = "text") -> None:
    """Raises ValueError: a text in which nothing can be seen. `name` is what the error calls it."""
    if not has_visible_text(text):
        raise ValueError(f"{name} must not be empty, got {text[:20]!r}, which has no visible characters")


def has_visible_text(text: str) -> bool:
    """Whether a reader would see anything of a text."""
    return any(map(is_visible, text))


def is_visible(character: str) -> bool:
    """Whether a character takes ink by itself."""
    return unicodedata.category(character) not in INVISIBLE_CATEGORIES and character not in FILLERS
