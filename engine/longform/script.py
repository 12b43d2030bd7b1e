"""A script that is spoken in pieces."""

import asyncio
from collections.abc import AsyncIterable, Callable, Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..audio.loudness import at_loudness
from ..codec import Codec
from ..runtime.request import Request
from .options import SpeechOptions
from .planning.source import PieceSource


@dataclass(frozen=True)
class Script:
    """What is asked for: a request, and how its text is spoken in pieces.

    Attributes:
        request: its text is not used.
        source: makes what gives the pieces.
        is_split: whether the text was planned.
        options: beside the sampling.
        parts: the text as it arrives; None if it is known.
    """

    request: Request
    source: Callable[[], PieceSource]
    is_split: bool
    options: SpeechOptions
    parts: "Iterable[str] | AsyncIterable[str] | None" = None
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def seed(self) -> int:
        """Of the whole script."""
        return self.request.seed

    def encode_prompt(self, codec: Codec | None) -> "Script":
        """With the audio prompt as codes; see `Request.encode_prompt`."""
        return replace(self, request=self.request.encode_prompt(codec))


def is_planned(item: Request | Script) -> bool:
    """Whether it is spoken in pieces."""
    return isinstance(item, Script) and item.is_split


def check_streamable(items: Collection[Request | Script]) -> None:
    """Raises ValueError: one asks for what only a whole sound can have."""
    if any(isinstance(item, Script) and item.options.loudness is not None for item in items):
        raise ValueError(
            "loudness is measured over a whole sound, and a stream gives out the beginning before there is an end: use "
            "generate, or leave loudness out"
        )


def at_asked_loudness(
    sounds: Collection[np.ndarray], items: Collection[Request | Script], sample_rate: int
) -> list[np.ndarray]:
    """The whole sounds [samples] of requests and scripts at the loudness that the scripts ask for."""
    found = []
    for index, (sound, item) in enumerate(zip(sounds, items, strict=True)):
        target = item.options.loudness if isinstance(item, Script) else None
        name = f"item {index}: " if len(items) > 1 else ""
        found.append(sound if target is None else at_loudness(sound, target, sample_rate, name))
    return found
