"""Plans whose pieces the model can read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...longform_settings import LongFormSettings
from ...messages import shown
from ...model.config import DiaConfig
from ...text.script import checked_transcript, encode_script
from ...text.tokenizer import encode_bytes, is_visible
from ..options import SpeechOptions
from ..voices import joined_prompt
from .plan import Piece, Plan, plan_pieces, size_of, whole_script


def make_plan(
    text: str,
    seed: int,
    options: SpeechOptions,
    settings: LongFormSettings,
    config: DiaConfig,
    *,
    transcript: str | Mapping[str, str] | None = None,
    has_prompt: bool = False,
) -> Plan:
    """How a script will be spoken.

    Raises:
        TypeError, ValueError: it is no text, nothing but tags, or a piece cannot be read by the model.
    """
    is_split = needs_pieces(text, options, settings)
    pieces = piece_maker(
        text, seed, options, settings, config, transcript=transcript, has_prompt=has_prompt, is_split=is_split
    )
    return Plan(tuple(pieces()), is_split)


def needs_pieces(text: Any, options: SpeechOptions, settings: LongFormSettings) -> bool:
    if not isinstance(text, str) or not options.split:
        return False
    return size_of(text) > settings.good_bytes or (options.changes_text and bool(text.strip()))


def piece_maker(
    text: str,
    seed: int,
    options: SpeechOptions,
    settings: LongFormSettings,
    config: DiaConfig,
    *,
    transcript: str | Mapping[str, str] | None,
    has_prompt: bool,
    is_split: bool,
) -> Callable[[], Iterator[Piece]]:
    """What plans the pieces of a script, one by one; errors as those of `make_plan`, all of them now."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    given = joined_prompt(transcript, transcript, text)[1]
    if not is_split:
        encode_script(text, given, has_prompt, config)  # as for a request: the same errors
    said = checked_transcript(given, has_prompt, 1, config)
    if not is_split:
        whole = whole_script(text, seed, settings, said)
        return lambda: iter((whole,))

    def pieces() -> Iterator[Piece]:
        return plan_pieces(text, seed, settings, **planner_rules(options, settings, said, has_prompt))

    planned = pieces()  # raises if there is nothing to say
    if _is_readable(text, said, settings, config):
        return pieces
    checked = tuple(planned)
    for piece in checked:
        check_piece(piece, config)
    return lambda: iter(checked)


def planner_rules(
    options: SpeechOptions, settings: LongFormSettings, transcript: str | None, has_prompt: bool
) -> dict[str, Any]:
    """How pieces are planned, by the names of `Planner`."""
    return {
        "transcript": (transcript or "") if has_prompt else None,
        "one_turn": options.pause > 0,
        "closing_tag": settings.closing_tag if options.closing_tag is None else options.closing_tag,
    }


def _is_readable(text: str, transcript: str, settings: LongFormSettings, config: DiaConfig) -> bool:
    """Whether the model can read all pieces of a text, as far as can be told without a plan of it."""
    longest = max(settings.good_bytes + settings.piece_bytes, size_of(transcript) + 2 * settings.piece_bytes) + 16
    return (
        longest <= config.encoder.max_position_embeddings
        and config.encoder.vocab_size >= 256
        and all(_is_readable_character(character) for character in set(text))
    )


def _is_readable_character(character: str) -> bool:
    """Whether a character can be encoded, and makes what it stands in a text, if it is not white space."""
    return not "\ud800" <= character <= "\udfff" and (character.isspace() or is_visible(character))


def check_piece(piece: Piece, config: DiaConfig) -> None:
    """Raises ValueError: a piece that the model cannot read."""
    try:
        encode_bytes(piece.sent, config.encoder.max_position_embeddings, config.encoder.vocab_size)
    except ValueError as error:
        prompted = piece.anchor and not piece.anchor_pieces  # by the caller; other anchors are pieces of the text
        behind = f" behind audio_prompt_text, {size_of(piece.anchor)} bytes," if prompted else ""
        raise ValueError(f"the piece {shown(piece.text[:60])}{behind} cannot be generated: {error}") from None
