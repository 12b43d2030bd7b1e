"""A request for speech as arguments of `Engine.astream`."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...engine import Engine
from ...runtime.prompts import AudioPrompt
from ...runtime.stream import AudioStream
from ...sampling_params import check_seed
from ..voices.voice import continued
from .arriving import ArrivingText

MIN_SPEED, MAX_SPEED = 0.25, 4.0


@dataclass(frozen=True)
class Speech:
    """One script to speak.

    Attributes:
        text: the script with speaker tags, complete or arriving in parts.
        prompt: audio prompt of the voice: codes [P, C] int64, or (waveform [samples] float32, sample rate in Hz).
        transcript: transcript of the prompt.
        given_seed: the client's seed in [0, 2^63); None to draw one.
        seed: `given_seed`, or the seed that was drawn.
        speed: pace of the speech; 1.0 is the model's own.
        params: sampling parameters and chunk sizes, named as in `Engine.stream`.

    Raises:
        TypeError, ValueError: an invalid seed or speed.
    """

    text: str | ArrivingText = field(repr=False)
    prompt: AudioPrompt | None = field(default=None, repr=False)
    transcript: str | None = field(default=None, repr=False)
    given_seed: int | None = None
    speed: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        seed = secrets.randbelow(2**31) if self.given_seed is None else self.given_seed
        check_seed(seed)
        object.__setattr__(self, "seed", seed)
        if not (math.isfinite(self.speed) and MIN_SPEED <= self.speed <= MAX_SPEED):
            raise ValueError(f"speed must be in [{MIN_SPEED}, {MAX_SPEED}], got {self.speed}")

    @property
    def script(self) -> str:
        """The text received so far."""
        return self.text if isinstance(self.text, str) else self.text.so_far

    @property
    def arrives(self) -> bool:
        """Whether the text arrives in parts while it is spoken."""
        return not isinstance(self.text, str)

    @property
    def can_try_again(self) -> bool:
        """Whether generation can be retried with a new seed: the client chose none, and the text can be read again."""
        return self.given_seed is None and not self.arrives

    def with_another_seed(self) -> "Speech":
        """A copy with a newly drawn seed, or the same one if the client chose it."""
        return replace(self)

    def settled(self) -> "Speech":
        """A copy with the text as a plain string if it is complete: it is then spoken like that of an HTTP request."""
        return (
            replace(self, text=self.script.strip()) if isinstance(self.text, ArrivingText) and self.text.ended else self
        )

    def check_params(self, engine: Engine) -> None:
        """Check the parameters, apart from the text.

        Raises:
            TypeError, ValueError: as `Engine.stream`.
        """
        engine.stream("[S1] Hello.", seed=self.seed, speed=self.speed, **self.params)

    def open(self, engine: Engine) -> AudioStream[np.ndarray]:
        """The stream of the audio, not started. If the text arrives in parts, call this in its event loop.

        Raises:
            TypeError, ValueError: as `Engine.stream`.
        """
        pause = self.params.get("pause", 0.0)
        text, transcript = self.text, self.transcript
        # A planned script does this itself.
        if (
            isinstance(text, str)
            and transcript
            and not engine.plan(text, audio_prompt_text=transcript, pause=pause).is_split
        ):
            text = continued(transcript, text)
        stream: Any = engine.astream(
            text,
            audio_prompt=self.prompt,
            audio_prompt_text=transcript,
            seed=self.seed,
            speed=self.speed,
            **self.params,
        )
        return stream
