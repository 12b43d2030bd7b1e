"""What a caller of `generate` hands over, checked and brought to one request an item."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..codec import Codec
from ..model.config import DiaConfig
from ..model.tokenizer import encode_text
from ..sampling_params import MAX_SEED, GenerationOptions, check_seed
from .prompts import Sound, encode_prompt, read_prompt


@dataclass(frozen=True)
class Request:
    """One item: text ids [S] int64, prompt codes [P, C] int64 (P = 0 for none), both on the CPU, and a seed."""

    text: torch.Tensor
    prompt: torch.Tensor
    seed: int


@dataclass(frozen=True)
class Draft:
    """A request whose prompt may still be sound. It is checked: all that a caller passed is valid."""

    text: torch.Tensor
    prompt: torch.Tensor | Sound
    seed: int

    def finished(self, codec: Codec | None) -> Request:
        """The request, after the seconds that encoding takes."""
        return Request(self.text, encode_prompt(self.prompt, codec), self.seed)


def read_requests(
    text, audio_prompt, audio_prompt_text, seed, options: GenerationOptions, config: DiaConfig, codec: Codec | None
) -> list[Draft]:
    """Check everything that a caller passed, without the work of encoding sound.

    Args:
        text: a script, or a list of them; the other arguments may then be lists of that length.
        audio_prompt: see `prompts.read_prompt`; None for none.
        audio_prompt_text: transcript of the prompt, put before the text.
        seed: see `Engine.generate`.
        options: the knobs, which must leave room for the prompts.
        config, codec: the engine's.

    Raises:
        FileNotFoundError, TypeError, ValueError: the first thing that is wrong, by name and value.
    """
    batch = isinstance(text, (list, tuple))
    texts = list(text) if batch else [text]
    if not texts:
        raise ValueError("text must hold at least one script, got an empty list")
    prompts = _one_each("audio_prompt", audio_prompt, texts, batch, shared=False)
    transcripts = _one_each("audio_prompt_text", audio_prompt_text, texts, batch, shared=False)
    seeds = _one_each("seed", seed, texts, batch, shared=True)

    seeds = [_drawn_seed() if each is None else check_seed(each) for each in seeds]
    room = _prompt_room(options, config)
    drafts = []
    for index, (script, transcript, prompt, seed) in enumerate(zip(texts, transcripts, prompts, seeds)):
        with _named(index, batch):
            ids = encode_script(script, transcript, prompt is not None, config)
            drafts.append(Draft(ids, read_prompt(prompt, config, codec, room), seed))
    return drafts


def _prompt_room(options: GenerationOptions, config: DiaConfig) -> int:
    """The most prompt frames that leave room for one frame of sound."""
    rows = options.rows(config.decoder.max_position_embeddings, 0, config.max_delay)
    return rows - (1 + config.max_delay + 1)


def encode_script(text: str, transcript: str | None, has_prompt: bool, config: DiaConfig) -> torch.Tensor:
    """Ids [S] int64 of a script, with the transcript of its audio prompt before it.

    Raises:
        TypeError, ValueError: not a script that this model can read, or a transcript of no prompt.
    """
    limits = config.encoder.max_position_embeddings, config.encoder.vocab_size
    ids = encode_text(text, *limits)
    if transcript is None:
        return ids
    if not isinstance(transcript, str):
        raise TypeError(f"audio_prompt_text must be a string, got {type(transcript).__name__}")
    if not has_prompt:
        raise ValueError("audio_prompt_text is the transcript of an audio_prompt, but there is no audio_prompt")
    return encode_text(f"{transcript.rstrip()} {text}", *limits)


def _one_each(name: str, value, texts: Sequence, batch: bool, shared: bool) -> list:
    """One value for each text. A list must have their length; a single value serves all if it may be shared."""
    if isinstance(value, list):
        if len(value) != len(texts):
            raise ValueError(f"{name} has {len(value)} entries for {len(texts)} texts; give one for each, or None")
        return value
    if value is not None and batch and not shared:
        raise ValueError(f"{name} must be a list of {len(texts)} entries, as text is, got {type(value).__name__}")
    return [value] * len(texts)


@contextmanager
def _named(index: int, batch: bool):
    """Errors inside say which item of a list they are about."""
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        if not batch:
            raise
        raise type(error)(f"item {index}: {error}") from None


def _drawn_seed() -> int:
    """A seed from torch's global generator, so that torch.manual_seed makes unseeded calls repeatable."""
    return int(torch.randint(MAX_SEED, (), device="cpu"))
