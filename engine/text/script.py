"""Scripts as users write them: what is refused, and what is warned of because the model would misread it."""

import logging
import re
from collections.abc import Collection

import torch

from ..model.config import DiaConfig
from .tokenizer import SPEAKER_TAGS, check_visible, encode_text, has_visible_text, known_bytes

logger = logging.getLogger(__name__)

TAGS = [tag.decode() for tag in SPEAKER_TAGS]
# What looks like a speaker tag, in ASCII or full-width characters: [s1], [S3], [ S1 ], [S-1], [Speaker 1].
TAG_LIKE = re.compile(r"[\[\uff3b]\s*(?:[s\uff33\uff53]|speaker)[\s_.:#-]*\d+\s*:?\s*[\]\uff3d]", re.IGNORECASE)
# Dia speaks some 15 characters per second. Under 5 seconds it sounds unnatural, and over 20 it hurries.
CHARACTERS_PER_SECOND = 15
SHORTEST_SECONDS, LONGEST_SECONDS = 5, 20


def encode_script(text: str, transcript: str | None, has_prompt: bool, config: DiaConfig) -> torch.Tensor:
    """Ids [S] int64 of a script, with the transcript of its audio prompt before it. A transcript in which nothing can
    be seen is none.

    Raises:
        TypeError, ValueError: not a script that this model can read, or a transcript of no prompt.
    """
    limits = config.encoder.max_position_embeddings, config.encoder.vocab_size
    ids = encode_text(text, *limits)
    check_says_something(text)
    said = checked_transcript(transcript, has_prompt, len(ids), config)
    return encode_text(f"{said.rstrip()} {text}", *limits) if said else ids


def checked_transcript(transcript: str | None, has_prompt: bool, text_bytes: int, config: DiaConfig) -> str:
    """The transcript of an audio prompt, "" if there is none or nothing can be seen in it.

    Args:
        text_bytes: ids of the shortest text that goes behind it.

    Raises:
        TypeError, ValueError: the model cannot read it, or not with such a text, or it is of no prompt.
    """
    if transcript is not None and not isinstance(transcript, str):
        raise TypeError(f"audio_prompt_text must be a string, got {type(transcript).__name__}")
    if transcript is None or not has_visible_text(transcript):
        return ""
    if not has_prompt:
        raise ValueError("audio_prompt_text is the transcript of an audio_prompt, but there is no audio_prompt")
    most = config.encoder.max_position_embeddings
    size = len(known_bytes(transcript.rstrip(), config.encoder.vocab_size, "audio_prompt_text"))
    if size + 1 + text_bytes > most:  # a space lies between them
        raise ValueError(
            f"audio_prompt_text has {size} bytes (a speaker tag counts as one), the model reads at most {most} "
            f"of it and the text together; use a shorter audio prompt or text"
        )
    return transcript


def check_says_something(text: str) -> None:
    """Raises ValueError: nothing can be seen in a text but speaker tags. A model makes sounds of its own of them."""
    check_visible(text)
    if not has_visible_text(_without_tags(text)):
        raise ValueError("text holds nothing but speaker tags: there is nothing to say")


def warn_of_scripts(
    texts: list[str], transcripts: list[str | None], config: DiaConfig, planned: Collection[int] = ()
) -> None:
    """Log what will probably not sound as it was meant: one warning per kind, whatever the number of scripts.

    Args:
        texts, transcripts: checked by `encode_script`.
        config: the model's. Lengths are a matter of the published Dia alone.
        planned: which scripts may have any length.
    """
    whole = " ".join([*texts, *(transcript for transcript in transcripts if transcript)])
    unknown = dict.fromkeys(tag for tag in TAG_LIKE.findall(whole) if tag not in TAGS)
    if unknown:
        logger.warning(
            "text holds %s, read letter by letter: the speaker tags are %s", ", ".join(unknown), " and ".join(TAGS)
        )
    if config.is_published_size:
        _warn_of_lengths([_without_tags(text) for index, text in enumerate(texts) if index not in planned])


def _warn_of_lengths(spoken: list[str]) -> None:
    seconds = [len(each) / CHARACTERS_PER_SECOND for each in spoken]
    unusual = [length for length in seconds if not SHORTEST_SECONDS <= length <= LONGEST_SECONDS]
    if unusual:
        logger.warning(
            "text of about %s seconds: Dia sounds unnatural under %d and hurries over %d seconds of speech",
            ", ".join(f"{length:.0f}" for length in unusual), SHORTEST_SECONDS, LONGEST_SECONDS,
        )  # fmt: skip


def _without_tags(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, "")
    return " ".join(text.split())
