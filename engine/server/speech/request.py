"""What is to be spoken, in the engine's terms."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engine import Engine
from ...runtime.prompts import AudioPrompt
from ...runtime.stream import AudioStream
from ...sampling_params import check_seed

MIN_SPEED, MAX_SPEED = 0.25, 4.0


@dataclass(frozen=True)
class Speech:
    """One script to speak.

    Attributes:
        text: the script, with speaker tags.
        prompt: of the voice: codes [P, C], or (waveform, rate); None for none.
        transcript: of the prompt.
        seed: in [0, 2^63).
        speed: 1.0 is the model's own.
        params: sampling parameters and chunk sizes, by the names of `Engine.stream`.

    Raises:
        TypeError, ValueError: a seed or a speed that cannot be.
    """

    text: str = field(repr=False)
    prompt: AudioPrompt | None = field(default=None, repr=False)
    transcript: str | None = field(default=None, repr=False)
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))
    speed: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not (math.isfinite(self.speed) and MIN_SPEED <= self.speed <= MAX_SPEED):
            raise ValueError(f"speed must be in [{MIN_SPEED}, {MAX_SPEED}], got {self.speed}")

    def open(self, engine: Engine) -> AudioStream[np.ndarray]:
        """The stream of its audio, not begun.

        Raises:
            TypeError, ValueError: as `Engine.stream`.
        """
        if self.speed != 1.0:
            raise ValueError(f"speed must be 1.0 with this engine, got {self.speed}")
        stream: Any = engine.stream(
            self.text,
            audio_prompt=self.prompt,
            audio_prompt_text=self.transcript,
            seed=self.seed,
            **self.params,
        )
        return stream
