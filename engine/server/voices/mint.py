"""Premade voices: what a seed makes of a fixed line, made once and then the prompt of every request.

Without a prompt each request has another voice: an agent that speaks sentence by sentence would change it each time.
"""

import torch

from ...engine import Engine
from .voice import Prompt

# OpenAI's names, which its clients know, each with a seed.
NAMES = "alloy ash ballad coral echo fable onyx nova sage shimmer verse marin cedar".split()
SEEDS = {name: seed for seed, name in enumerate(NAMES, 1)}
DEFAULT = NAMES[0]
# About five seconds, as the model card asks of a prompt. A model of few words and 256 bytes of text has its own.
LINE = "[S1] This is the voice that I speak with, and I keep it from one sentence to the next one."
LINES = {"talker": "[S1] Hello, my little robot. I can count very well."}
TRIES, MIN_SECONDS, MAX_SECONDS = 4, 1.0, 10.0


def mint(engine: Engine, model: str, seed: int) -> Prompt:
    """The voice of a seed. A try that is too short or has no end gives way to the next.

    Raises:
        RuntimeError: the model generates no audio for it.
    """
    line = LINES.get(model, LINE)
    for attempt in range(TRIES):
        made = engine.generate(line, seed=seed + 1000 * attempt, max_tokens=_rows(engine), details=True)
        if made.finish_reason == "stop" and made.duration >= MIN_SECONDS:  # type: ignore[union-attr]
            break
    codes = made.codes  # type: ignore[union-attr]
    if not len(codes):
        raise RuntimeError(f"the model generated no audio for premade voice seed {seed}")
    return Prompt(torch.from_numpy(codes), line)


def fits(engine: Engine, codes: torch.Tensor) -> bool:
    """Whether an engine would make a premade voice of so many frames: one that was kept may be of a larger `max_rows`,
    and leave no room to speak."""
    return len(codes) + 1 + engine.config.max_delay <= _rows(engine)


def check_room(engine: Engine) -> None:
    """Check that a request has rows for a voice and something to speak.

    Raises:
        ValueError: it does not.
    """
    least = engine.config.max_delay + 3  # the first row, the delay, a frame of the voice and one to speak
    if engine.max_rows < least:
        raise ValueError(f"--max-rows must be at least {least} to speak with a voice, got {engine.max_rows}")


def _rows(engine: Engine) -> int:
    """Ten seconds, or half of what a request has, so that as much is left to speak."""
    codec = engine.codec
    frames = MAX_SECONDS * codec.sample_rate / codec.hop_length if codec is not None else 0
    return max(engine.config.max_delay + 2, min(engine.max_rows // 2, int(frames)))
