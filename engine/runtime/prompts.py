"""Audio prompts: what a user hands over, read and checked, then brought to codes.

Two steps, because encoding sound takes seconds: a mistake in the last prompt of a batch is found before the first is
encoded.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..codec import Codec
from ..files.audio import as_waveform, check_sample_rate, read_audio, resample
from ..model.config import DiaConfig


@dataclass(frozen=True)
class Sound:
    """A prompt that is still to be encoded: waveform [samples] float32 at the codec's rate."""

    waveform: np.ndarray


def read_prompt(prompt, config: DiaConfig, codec: Codec | None, max_frames: int) -> torch.Tensor | Sound:
    """Check one audio prompt and read its file.

    Args:
        prompt: None; a path to a sound file of any rate, mono or stereo; integer codes [P, C]; or a pair
            (waveform [samples] or [samples, channels] or [channels, samples] float, sample rate in Hz).
        config: the model's.
        codec: will encode sound; may be None if the prompt is not sound.
        max_frames: the most frames that leave room for generated ones.

    Returns:
        codes [P, C] int64 on the CPU, P = 0 for None; or Sound.

    Raises:
        FileNotFoundError: no file at the path.
        TypeError: a prompt of another kind.
        ValueError: an unreadable, empty or too long prompt, or codes of the wrong shape or range.
    """
    if prompt is None:
        return torch.zeros((0, config.decoder.num_channels), dtype=torch.int64, device="cpu")
    if isinstance(prompt, (torch.Tensor, np.ndarray)):
        codes = _checked_codes(torch.as_tensor(prompt, device="cpu"), config)
        _check_length(codes.shape[0], max_frames)
        return codes
    if isinstance(prompt, (str, Path)):
        waveform, rate = read_audio(prompt)
    elif isinstance(prompt, tuple) and len(prompt) == 2:
        if isinstance(prompt[1], (np.ndarray, torch.Tensor)):
            raise TypeError("an audio prompt's pair is (waveform, sample_rate), in this order")
        check_sample_rate(prompt[1], "the audio prompt's sample rate")
        waveform, rate = _mono(prompt[0]), prompt[1]
    else:
        raise TypeError(
            f"an audio prompt is a path, integer codes [frames, channels] or a pair (waveform, sample_rate), "
            f"got {type(prompt).__name__}"
        )
    if codec is None:
        raise ValueError("an audio prompt in the form of sound needs the codec; load the engine with load_dac=True")
    waveform = resample(waveform, rate, codec.sample_rate)
    _check_length(-(-len(waveform) // codec.hop_length), max_frames)
    return Sound(np.array(waveform))  # a copy: a caller may write over theirs before it is encoded


def encode_prompt(prompt: torch.Tensor | Sound, codec: Codec | None) -> torch.Tensor:
    """Codes [P, C] int64 on the CPU of a prompt from `read_prompt`."""
    return codec.encode(prompt.waveform, codec.sample_rate).cpu() if isinstance(prompt, Sound) else prompt


def _checked_codes(codes: torch.Tensor, config: DiaConfig) -> torch.Tensor:
    channels, limit = config.decoder.num_channels, config.eos_token_id
    if codes.dtype == torch.bool or codes.is_floating_point() or codes.is_complex():
        raise TypeError(
            f"audio prompt codes must be integers, got {codes.dtype}; for a waveform pass (waveform, sample_rate)"
        )
    if codes.ndim != 2 or codes.shape[1] != channels:
        raise ValueError(f"audio prompt codes must have shape [frames, {channels}], got {list(codes.shape)}")
    if codes.shape[0] == 0:
        raise ValueError("audio prompt codes must have at least one frame, got none; pass None for no prompt")
    codes = codes.to(torch.int64, copy=True)  # a caller may write over theirs before they are used
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= limit:
        raise ValueError(f"audio prompt codes must be in [0, {limit}), got {low if low < 0 else high}")
    return codes


def _mono(waveform) -> np.ndarray:
    """A waveform as [samples] float32: the mean of its channels, which are the shorter axis of two."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().float().cpu().numpy() if waveform.is_floating_point() else waveform.cpu().numpy()
    two_axes = isinstance(waveform, np.ndarray) and waveform.ndim == 2 and waveform.size
    if two_axes and np.issubdtype(waveform.dtype, np.floating):
        waveform = waveform.mean(axis=int(np.argmin(waveform.shape)))
    return as_waveform(waveform)


def _check_length(frames: int, max_frames: int) -> None:
    if frames > max_frames:
        raise ValueError(
            f"audio prompt has {frames} frames, max_tokens leaves room for {max_frames}; use a shorter prompt, or more "
            f"max_tokens where the model has them"
        )
