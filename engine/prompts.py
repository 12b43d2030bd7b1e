"""What a user hands over as audio prompt, brought to codes [P, C]."""

from pathlib import Path

import numpy as np
import torch

from .audio import as_waveform, check_sample_rate, read_audio
from .codec import Codec
from .config import DiaConfig


def prompt_codes(prompt, config: DiaConfig, codec: Codec | None, max_frames: int) -> torch.Tensor:
    """Bring one audio prompt to codes.

    Args:
        prompt: None; a path to a sound file of any rate, mono or stereo; integer codes [P, C]; or a pair
            (waveform [samples] or [samples, channels] or [channels, samples] float, sample rate in Hz).
        config: the model's.
        codec: encodes sound; may be None if the prompt is not sound.
        max_frames: the most frames that leave room for generated ones.

    Returns:
        codes [P, C] int64 on the CPU; P = 0 for None.

    Raises:
        FileNotFoundError: no file at the path.
        TypeError: a prompt of another kind.
        ValueError: an unreadable, empty or too long prompt, or codes of the wrong shape or range.
    """
    if prompt is None:
        return torch.zeros((0, config.decoder.num_channels), dtype=torch.int64)
    if isinstance(prompt, (torch.Tensor, np.ndarray)):
        codes = _checked_codes(torch.as_tensor(prompt), config)
        _check_length(codes.shape[0], max_frames)
        return codes
    if isinstance(prompt, (str, Path)):
        waveform, sample_rate = read_audio(prompt)
    elif isinstance(prompt, tuple) and len(prompt) == 2:
        waveform, sample_rate = _mono(prompt[0]), prompt[1]
        check_sample_rate(sample_rate, "the audio prompt's sample rate")
    else:
        raise TypeError(
            f"an audio prompt is a path, integer codes [frames, channels] or a pair (waveform, sample_rate), "
            f"got {type(prompt).__name__}"
        )
    if codec is None:
        raise ValueError("an audio prompt in the form of sound needs the codec; load the engine with load_dac=True")
    # Encoding takes seconds, so a prompt that cannot fit is refused before it.
    _check_length(int(len(waveform) / sample_rate * codec.sample_rate / codec.hop_length), max_frames)
    codes = codec.encode(waveform, sample_rate).cpu()
    _check_length(codes.shape[0], max_frames)
    return codes


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
    codes = codes.to(device="cpu", dtype=torch.int64)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= limit:
        raise ValueError(f"audio prompt codes must be in [0, {limit}), got {low if low < 0 else high}")
    return codes


def _mono(waveform) -> np.ndarray:
    """A waveform as [samples] float32: the mean of its channels, which are the shorter axis of two."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu().numpy()
    if isinstance(waveform, np.ndarray) and waveform.ndim == 2 and np.issubdtype(waveform.dtype, np.floating):
        waveform = waveform.mean(axis=int(np.argmin(waveform.shape)))
    return as_waveform(waveform)


def _check_length(frames: int, max_frames: int) -> None:
    if frames > max_frames:
        raise ValueError(
            f"audio prompt has {frames} frames, max_tokens leaves room for {max_frames}; "
            f"use a shorter prompt or more max_tokens"
        )
