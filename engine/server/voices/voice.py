"""A voice: audio that goes before a script, with its transcript."""

import re
from dataclasses import dataclass, field

import torch

from ...messages import shown
from ..errors import ApiError

# Voices without a prompt: each request sounds as its seed decides.
NO_PROMPT = ("default", "s1", "s2")
VOICE_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
TAG = re.compile(r"\[S[12]\]")
MADE, UPLOADED = "premade", "cloned"


@dataclass(frozen=True)
class Voice:
    """A voice as it is listed.

    Attributes:
        id: also the name of its folder.
        name: free text.
        category: "premade", made from a seed, or "cloned", uploaded.
        created: seconds since 1970; 0 of a voice that has not been made yet.
        transcript: of its audio.
        seed: of a premade one.
    """

    id: str
    name: str
    category: str
    created: int = 0
    transcript: str = field(default="", repr=False)
    seed: int | None = None

    def check(self) -> None:
        """Check what a file says of it.

        Raises:
            TypeError: a value of another type.
            ValueError: nothing is said in it.
        """
        for each, kind in (("name", str), ("category", str), ("created", int), ("transcript", str)):
            if not isinstance(getattr(self, each), kind):
                raise TypeError(f"{each} must be {kind.__name__}, got {shown(getattr(self, each))}")
        if not self.transcript.strip():
            raise ValueError("transcript is empty")


@dataclass(frozen=True)
class Prompt:
    """What a voice puts before a script: codes [P, C] int64 and what is said in them."""

    codes: torch.Tensor
    transcript: str


def together(first: Prompt, second: Prompt) -> Prompt:
    """The prompt of a dialogue: one voice as [S1], then another as [S2].

    Raises:
        ApiError: 400, one of them has two speakers already.
    """
    said = [_spoken_by(tag, prompt.transcript) for tag, prompt in (("[S1]", first), ("[S2]", second))]
    return Prompt(torch.cat([first.codes, second.codes]), " ".join(said))


def _spoken_by(tag: str, transcript: str) -> str:
    tags = set(TAG.findall(transcript))
    if len(tags) > 1:
        raise ApiError(
            400, "a voice with two speakers in it cannot share a dialogue with another voice", param="voice_id"
        )
    return TAG.sub(tag, transcript) if tags else f"{tag} {transcript}"


def tagged(text: str) -> str:
    """A script with a speaker: one without any tag is the first speaker's."""
    return text if TAG.search(text) else f"[S1] {text.strip()}"


def continued(transcript: str, text: str) -> str:
    """A script as it goes on after a prompt's transcript: where the same speaker goes on, without a second tag, which
    the model takes for a change."""
    tags = TAG.findall(transcript)
    stripped = text.lstrip()
    if tags and stripped.startswith(tags[-1]) and stripped[4:].strip():
        return stripped[4:].lstrip()
    return text
