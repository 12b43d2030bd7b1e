"""Audio prompts: what a user hands over, read and checked.

Encoding comes later, because it takes seconds: a mistake in the last prompt of a batch is found before the first is
encoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ..codec import Codec
from ..files.audio import read_audio
from ..files.waveform import as_array, as_waveform, check_peak, check_sample_rate, resample, warn_if_cancelled
from ..model.config import DiaConfig

# A path to an audio file; codes [P, C]; or a waveform and its sample rate in Hz.
Sample: TypeAlias = str | Path | torch.Tensor | np.ndarray | tuple[np.ndarray | torch.Tensor, int]


@dataclass(frozen=True)
class SpeakerPrompts:
    """Samples of several speakers, one after the other."""

    samples: tuple[Sample, ...]


AudioPrompt: TypeAlias = Sample | SpeakerPrompts
# Read and checked: codes [P, C] int64 on the CPU; a waveform [samples] float32 at the codec's rate; or several of them.
ReadPrompt: TypeAlias = torch.Tensor | np.ndarray | tuple[torch.Tensor | np.ndarray, ...]


def read_prompt(
    prompt: AudioPrompt | None, config: DiaConfig, codec: Callable[[], Codec | None], max_frames: int
) -> ReadPrompt:
    """Check one audio prompt and read its file, or those of its speakers.

    Args, Raises: as `read_sample`; the frames of all speakers count together.
    """
    if not isinstance(prompt, SpeakerPrompts):
        return read_sample(prompt, config, codec, max_frames)
    read: list[torch.Tensor | np.ndarray] = []
    for sample in prompt.samples:
        if sample is None or isinstance(sample, SpeakerPrompts):
            raise TypeError(f"an audio prompt of each speaker is a path, codes or a pair, got {sample!r}")
        read.append(read_sample(sample, config, codec, max_frames))
    _check_length(sum(_frames(each, codec) for each in read), max_frames)
    return tuple(read)


def _frames(read: torch.Tensor | np.ndarray, codec: Callable[[], Codec | None]) -> int:
    return len(read) if isinstance(read, torch.Tensor) else -(-len(read) // require_codec(codec()).hop_length)


def encode_read(prompt: ReadPrompt, codec: Codec | None) -> torch.Tensor:
    """A prompt that was read as codes [P, C] int64 on the CPU, which takes seconds where it is a waveform.

    Raises:
        ValueError: it is a waveform, and there is no codec.
    """
    if isinstance(prompt, tuple):
        return torch.cat([encode_read(each, codec) for each in prompt])
    if isinstance(prompt, torch.Tensor):
        return prompt
    codec = require_codec(codec)
    return codec.encode(prompt, codec.sample_rate).cpu()


def read_sample(
    prompt: Sample | None, config: DiaConfig, codec: Callable[[], Codec | None], max_frames: int
) -> torch.Tensor | np.ndarray:
    """Check one sample of audio and read its file.

    Args:
        prompt: None; a path to an audio file of any rate, mono or stereo; integer codes [P, C]; or a pair
            (waveform [samples] or [samples, channels] or [channels, samples] float in [-1, 1], sample rate in Hz).
        config: the model's.
        codec: gives what will encode a waveform; None if there is no codec. Not called for codes.
        max_frames: the most frames that leave room for generated ones.

    Returns:
        codes [P, C] int64 on the CPU, P = 0 for None; or a waveform [samples] float32 at the codec's rate.

    Raises:
        FileNotFoundError: no file at the path.
        TypeError: a prompt of another kind.
        ValueError: an unreadable, empty or too long prompt, or codes of the wrong shape or range.
    """
    if prompt is None:
        return torch.zeros((0, config.decoder.num_channels), dtype=torch.int64, device="cpu")
    if isinstance(prompt, (torch.Tensor, np.ndarray)):
        codes = checked_codes(prompt, config, "audio prompt codes", "; for a waveform pass (waveform, sample_rate)")
        _check_length(len(codes), max_frames)
        return codes

    def check_length(samples: int, sample_rate: int) -> None:
        opened = require_codec(codec())
        resampled = round(samples * opened.sample_rate / sample_rate)
        _check_length(-(-resampled // opened.hop_length), max_frames)

    if isinstance(prompt, (str, Path)):
        waveform, rate = read_audio(prompt, check_length)
    elif isinstance(prompt, tuple) and len(prompt) == 2:
        if isinstance(prompt[1], (np.ndarray, torch.Tensor)):
            raise TypeError("an audio prompt's pair is (waveform, sample_rate), in this order")
        check_sample_rate(prompt[1], "the audio prompt's sample rate")
        waveform, rate = _mono(prompt[0]), prompt[1]
        check_length(len(waveform), rate)
    else:
        raise TypeError(
            f"an audio prompt is a path, integer codes [frames, channels] or a pair (waveform, sample_rate), "
            f"got {type(prompt).__name__}"
        )
    # A copy: a caller may write over theirs before it is encoded.
    return np.array(resample(waveform, rate, require_codec(codec()).sample_rate))


def require_codec(codec: Codec | None) -> Codec:
    """The codec that encodes a prompt given as audio.

    Raises:
        ValueError: there is none.
    """
    if codec is None:
        raise ValueError("an audio prompt in the form of sound needs the codec; load the engine with load_dac=True")
    return codec


def checked_codes(
    given: torch.Tensor | np.ndarray, config: DiaConfig, name: str = "codes", hint: str = ""
) -> torch.Tensor:
    """Codes that a caller gives -> [P, C] int64 on the CPU, a copy. `name` is what an error calls them, `hint` what it
    advises where they are not integers.

    Raises:
        TypeError: not integers.
        ValueError: the wrong shape, no frame, or a code out of range.
    """
    channels, limit = config.decoder.num_channels, config.eos_token_id
    codes = as_array(given, name)
    if codes.dtype.kind not in "iu":  # np.integer would take durations
        raise TypeError(f"{name} must be integers, got {given.dtype}{hint}")
    if codes.ndim != 2 or codes.shape[1] != channels:
        raise ValueError(f"{name} must have shape [frames, {channels}], got {list(codes.shape)}")
    if codes.shape[0] == 0:
        raise ValueError(f"{name} must have at least one frame, got none")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must be in [0, {limit}), got {low if low < 0 else high}")
    # Of any memory order and byte order; and a caller may write over theirs before they are used.
    return torch.from_numpy(np.array(codes, dtype=np.int64, order="C"))


def _mono(waveform: Any) -> np.ndarray:
    """A waveform as [samples] float32: the mean of its channels, which are the shorter axis of two."""
    channels = as_array(waveform, "waveform")
    if channels.ndim != 2 or not channels.size or not np.issubdtype(channels.dtype, np.floating):
        mono = as_waveform(channels)
    else:
        axis = int(np.argmin(channels.shape))
        mono = as_waveform(channels.mean(axis=axis))
        warn_if_cancelled(mono, float(np.square(channels, dtype=np.float64).mean(axis=axis).sum()), "audio prompt")
    check_peak(mono)
    return mono


def _check_length(frames: int, max_frames: int) -> None:
    if frames > max_frames:
        raise ValueError(
            f"audio prompt has {frames} frames, max_tokens leaves room for {max_frames}; use a shorter prompt, or more "
            f"max_tokens where the model has them"
        )
