"""What is to be spoken, in the engine's terms."""

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
        text: the script, with speaker tags; or as it arrives.
        prompt: of the voice: codes [P, C], or (waveform, rate); None for none.
        transcript: of the prompt.
        given_seed: in [0, 2^63); None to draw one.
        seed: that one, or the drawn one.
        speed: 1.0 is the model's own.
        params: sampling parameters and chunk sizes, by the names of `Engine.stream`.

    Raises:
        TypeError, ValueError: a seed or a speed that cannot be.
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
        """The text, as far as it has come."""
        return self.text if isinstance(self.text, str) else self.text.so_far

    @property
    def arrives(self) -> bool:
        """Whether it was begun before all of its text had come."""
        return not isinstance(self.text, str)

    @property
    def can_try_again(self) -> bool:
        """Whether another seed may be drawn: nobody asked for this one, and the text is still there."""
        return self.given_seed is None and not self.arrives

    def with_another_seed(self) -> "Speech":
        """The same with another seed, if it is drawn."""
        return replace(self)

    def settled(self) -> "Speech":
        """The same, as a text that is known if all of it has come: it is spoken as over HTTP."""
        return (
            replace(self, text=self.script.strip()) if isinstance(self.text, ArrivingText) and self.text.ended else self
        )

    def check_params(self, engine: Engine) -> None:
        """Check what is wrong with any text.

        Raises:
            TypeError, ValueError: as `Engine.stream`.
        """
        engine.stream("[S1] Hello.", seed=self.seed, speed=self.speed, **self.params)

    def open(self, engine: Engine) -> AudioStream[np.ndarray]:
        """The stream of its audio, not begun. For text that arrives, in the event loop that it belongs to.

        Raises:
            TypeError, ValueError: as `Engine.stream`.
        """
        pause = self.params.get("pause", 0.0)
        text, transcript = self.text, self.transcript
        # A planned script takes care of it.
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
