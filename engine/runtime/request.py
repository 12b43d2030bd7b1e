"""A request, and how a caller's arguments become requests: all checked before any work."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..codec import Codec
from ..messages import shown
from ..model.config import DiaConfig
from ..sampling_params import MAX_SEED, ResolvedSamplingParams, SamplingParams, check_seed, left_out
from ..text.script import encode_script, warn_of_scripts
from .prompts import AudioPrompt, ReadPrompt, encode_read, read_prompt


@dataclass(frozen=True)
class Request:
    """One script to speak.

    Attributes:
        text_ids: [S] int64 on the CPU.
        prompt: codes [P, C] int64 on the CPU, P = 0 for none; or a waveform [samples] float32 at the codec's rate, or
            one or the other of each speaker, which `encode_prompt` brings to codes before the request is admitted.
        params: how it is sampled.
        seed: in [0, 2^63).
    """

    text_ids: torch.Tensor
    prompt: ReadPrompt
    params: ResolvedSamplingParams
    seed: int

    @property
    def prompt_codes(self) -> torch.Tensor:
        """Codes [P, C].

        Raises:
            RuntimeError: the prompt is still a waveform.
        """
        if not isinstance(self.prompt, torch.Tensor):
            raise RuntimeError("the audio prompt of this request has not been encoded yet")
        return self.prompt

    def encode_prompt(self, codec: Codec | None) -> "Request":
        """The request with its prompt as codes, which takes seconds where it is a waveform.

        Raises:
            ValueError: it is a waveform, and there is no codec.
        """
        if isinstance(self.prompt, torch.Tensor):
            return self
        return replace(self, prompt=encode_read(self.prompt, codec))


def parse_requests(
    text: str | Sequence[str],
    sampling: Mapping[str, Any],
    *,
    audio_prompt: AudioPrompt | Sequence[AudioPrompt | None] | None = None,
    audio_prompt_text: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int | None] | None = None,
    sampling_params: SamplingParams | Sequence[SamplingParams | None] | None = None,
    config: DiaConfig,
    max_rows: int | None = None,
    defaults: Mapping[str, Any],
    codec: Callable[[], Codec | None],
    planned: Collection[int] = (),
) -> list[Request]:
    """Check everything that a caller passed to `Engine.generate`, without the work of encoding audio.

    Args:
        text: a script, or a list of them; the other arguments may then be lists of that length.
        sampling: fields of SamplingParams by name; those of a list of texts may be lists.
        sampling_params: instead of `sampling`.
        audio_prompt: see `prompts.read_prompt`; None for none.
        audio_prompt_text: transcript of the prompt, put before the text.
        seed: see `Engine.generate`.
        config, defaults: the model's.
        max_rows: decoder rows per slot; None for all that the model has.
        codec: gives the model's codec. Asked once there is an audio file or waveform to encode.
        planned: which scripts are generated in pieces; their requests have no text.

    Raises:
        FileNotFoundError, TypeError, ValueError: the first thing that is wrong, by name and value.
    """
    batch = isinstance(text, (list, tuple))
    texts: list[Any] = list(text) if batch else [text]
    if not texts:
        raise ValueError("text must hold at least one script, got an empty list")
    prompts = _one_each("audio_prompt", audio_prompt, texts, batch, pairs=True, shared=False)
    transcripts = _one_each("audio_prompt_text", audio_prompt_text, texts, batch, shared=False)
    seeds = _one_each("seed", seed, texts, batch)
    params = [each.resolve(defaults) for each in _params_per_text(sampling, sampling_params, texts, batch)]
    for index, given in enumerate(seeds):
        with item_named(index, isinstance(seed, (list, tuple))):
            seeds[index] = _random_seed() if given is None else check_seed(given)
    requests = []
    capacity = max_rows or config.decoder.max_position_embeddings
    for index, (script, transcript, prompt) in enumerate(zip(texts, transcripts, prompts, strict=True)):
        with item_named(index, batch):
            is_planned = index in planned
            ids = encode_script("x" if is_planned else script, transcript, prompt is not None, config)
            codes = read_prompt(prompt, config, codec, _max_prompt_frames(params[index], capacity, config))
            requests.append(Request(ids, codes, params[index], seeds[index]))
    warn_of_scripts(texts, transcripts, config, planned)
    return requests


def _params_per_text(
    sampling: Mapping[str, Any],
    whole: SamplingParams | Sequence[SamplingParams | None] | None,
    texts: Sequence[Any],
    batch: bool,
) -> list[SamplingParams]:
    """The parameters of each text, from single parameters by name, or from whole SamplingParams."""
    if whole is None:
        columns = {name: _one_each(name, value, texts, batch) for name, value in sampling.items()}
        numbered = any(isinstance(value, (list, tuple)) for value in sampling.values())
        params = []
        for index in range(len(texts)):
            with item_named(index, numbered):
                params.append(SamplingParams(**{name: column[index] for name, column in columns.items()}))
        return params
    for name, value in sampling.items():
        if value is not left_out(name):
            raise ValueError(f"{name} is one of sampling_params; give either one or the other")
    given = [SamplingParams() if each is None else each for each in _one_each("sampling_params", whole, texts, batch)]
    for each in given:
        if not isinstance(each, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams, got {shown(each)}")
    return given


def _max_prompt_frames(params: ResolvedSamplingParams, capacity: int, config: DiaConfig) -> int:
    """The most prompt frames that leave room for one frame of sound, or min_tokens of them."""
    rows = params.rows(capacity, 0, config.max_delay)
    return rows - (1 + config.max_delay + max(1, params.min_tokens))


def _one_each(
    name: str,
    value: Any,
    texts: Sequence[Any],
    batch: bool,
    shared: bool = True,
    pairs: bool = False,
) -> list[Any]:
    """One value per text. A list must have their length; a single value serves all if it may be shared.

    Where values may be `pairs`, a tuple is one value.
    """
    if isinstance(value, list) or (isinstance(value, tuple) and not pairs):
        if len(value) != len(texts):
            raise ValueError(f"{name} has {len(value)} entries for {len(texts)} texts; give one for each, or None")
        return list(value)
    if value is not None and batch and not shared:
        raise ValueError(f"{name} must be a list of {len(texts)} entries, as text is, got {type(value).__name__}")
    return [value] * len(texts)


@contextmanager
def item_named(index: int, batch: bool) -> Iterator[None]:
    """Errors inside say which item of a list they are about."""
    try:
        yield
    except (TypeError, ValueError, FileNotFoundError, PermissionError) as error:
        if not batch:
            raise
        kinds = (FileNotFoundError, PermissionError, TypeError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), ValueError)
        raise kind(f"item {index}: {error}") from error


def _random_seed() -> int:
    """A seed from torch's global generator, so that torch.manual_seed makes unseeded calls repeatable."""
    return int(torch.randint(MAX_SEED, (), device="cpu"))
