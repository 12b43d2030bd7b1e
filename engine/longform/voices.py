"""Who speaks: names in a script mapped to the tags that the model knows, and a voice sample for each speaker, joined to
the one prompt that the model goes on from."""

import re
from collections.abc import Mapping
from typing import Any

from ..messages import listed, shown
from ..runtime.prompts import SpeakerPrompts
from ..text.script import TAGS

SPEAKERS = tuple(tag.strip("[]") for tag in TAGS)
_TAG = re.compile("|".join(map(re.escape, TAGS)))


def parse_speakers(text: str) -> dict[str, str]:
    """ "Ann=S1,Bob=S2" -> tag by name.

    Raises:
        ValueError: not such a list, or no such speaker.
    """
    found: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, speaker = (part.strip() for part in entry.partition("="))
        tag = f"[{speaker.upper()}]"
        if not (name and equals) or ":" in name:
            raise ValueError(f"speakers are given as Ann=S1,Bob=S2, got {shown(entry)}")
        if tag not in TAGS:
            raise ValueError(f"speaker {name} must be one of {', '.join(SPEAKERS)}, got {speaker or 'nothing'}")
        if name in found:
            raise ValueError(f"speaker {name} is given twice")
        found[name] = tag
    return found


def with_tags(script: str, speakers: dict[str, str]) -> str:
    """The script with a tag in place of each `Name:` at the beginning of a line.

    Raises:
        ValueError: a line begins with none of the names, and no name stands before it.
    """
    names = "|".join(map(re.escape, sorted(speakers, key=len, reverse=True)))
    label = re.compile(rf"^[ \t]*({names})[ \t]*:[ \t]*", re.MULTILINE)
    first = label.search(script)
    if first is None:
        raise ValueError(f"no line of the script begins with {' or '.join(f'{name}:' for name in speakers)}")
    if script[: first.start()].strip():
        raise ValueError(
            f"the script begins with {shown(script.strip()[:40])}, before any of the speakers that were given"
        )
    return label.sub(lambda match: f"{speakers[match.group(1)]} ", script)


def joined_prompt(prompt: Any, transcript: Any, script: Any) -> tuple[Any, Any]:
    """An audio prompt and its transcript, of which both or none are given by speaker: {"S1": ..., "S2": ...}.

    The speaker who begins the script comes first, so that where both have a sample no tag follows itself.

    Returns:
        one prompt and its transcript; what is not given by speaker as it is.

    Raises:
        TypeError, ValueError: one alone by speaker, other speakers, or a transcript that is missing or somebody else's.
    """
    if not (isinstance(prompt, Mapping) or isinstance(transcript, Mapping)):
        return prompt, transcript
    if not (isinstance(prompt, Mapping) and isinstance(transcript, Mapping)):
        raise TypeError("audio_prompt and audio_prompt_text must both be given by speaker, or neither")
    unknown = [name for name in (*prompt, *transcript) if name not in SPEAKERS]
    if unknown or not prompt:
        got = listed(sorted({shown(name) for name in unknown})) if unknown else "none"
        raise ValueError(f"the speakers of an audio_prompt are {' and '.join(SPEAKERS)}, got {got}")
    if set(prompt) != set(transcript):
        missing = sorted(set(prompt) ^ set(transcript))
        raise ValueError(f"audio_prompt and audio_prompt_text must have the same speakers; one lacks {listed(missing)}")
    first = _TAG.search(script) if isinstance(script, str) else None
    opening = first.group().strip("[]") if first else SPEAKERS[0]
    names = sorted(prompt, key=lambda name: (name != opening, name))
    said = " ".join(_said(name, transcript[name]) for name in names)
    return SpeakerPrompts(tuple(prompt[name] for name in names)), said


def _said(name: str, text: Any) -> str:
    """The transcript of a speaker's sample, with his tag before it alone."""
    if not isinstance(text, str):
        raise TypeError(f"audio_prompt_text of {name} must be a string, got {shown(text)}")
    others = sorted({tag for tag in _TAG.findall(text) if tag != f"[{name}]"})
    if others:
        raise ValueError(f"the sample of {name} must be of {name} alone, but its transcript has {listed(others)}")
    words = " ".join(_TAG.sub(" ", text).split())
    if not words:
        raise ValueError(f"audio_prompt_text of {name} must say what is said in the sample, got {shown(text)}")
    return f"[{name}] {words}"
