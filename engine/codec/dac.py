"""The codec as the engine uses it: load, encode, decode."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..devices.device import resolve_device, resolve_dtype
from ..devices.precision import full_float32
from ..devices.process import check_not_forked
from ..files.hub import DEFAULT_CODEC
from ..files.tensors import is_finite
from ..files.waveform import check_peak, check_sample_rate, resample
from .checkpoint import open_checkpoint
from .config import CodecConfig
from .network import Network


class Codec:
    """Descript Audio Codec: mono sound to T frames of C codes each, and back. Build it with `load` or `from_config`.

    `encoder` (waveform [1, 1, samples] to latent [1, hidden, T]), `quantizer` and `decoder` (latent to waveform
    [1, 1, samples]) are the three plain functions it is made of, without checks and without a wait for the device. On a
    CPU the decoder's float32 weights are packed, and its layers run all together or not at all: for another device or
    dtype load another codec.

    float32 means float32: `encode`, `decode` and `synthesize` turn off TF32, which torch allows cuDNN's convolutions by
    default, while they run. With its 10 bits the sound would be off by about 1e-3, and a window of it would differ from
    the whole by as much. Where speed matters more, half precision is the choice: `dtype`.
    """

    def __init__(self, config: CodecConfig, network: Network, dtype: torch.dtype):
        self.config = config
        self.dtype = dtype
        self.encoder, self.quantizer, self.decoder = network.encoder, network.quantizer, network.decoder

    @classmethod
    def load(
        cls,
        source: str | Path = DEFAULT_CODEC,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> "Codec":
        """Read a codec from the disk or the Hugging Face hub.

        Args:
            source: a folder in the layout of transformers' DacModel (config.json and safetensors), a weights.pth of
                descript-audio-codec or a folder that holds one, or a hub id. What exists on the disk goes first.
            device: where to compute; None is CUDA if there is any, else the CPU.
            dtype: of the convolutions, itself or its name; the quantizer always computes in float32.
            revision: branch, tag or commit on the hub.

        Raises:
            FileNotFoundError: no such file, folder or hub repository.
            ValueError: damaged file, not a DAC, tensors that do not fit the config (all listed), NaN or infinity in
                one, numbers that `dtype` cannot hold, unusable device.
        """
        device, dtype = resolve_device(device), resolve_dtype(dtype)
        checkpoint = open_checkpoint(source, revision)
        network = Network(checkpoint.config)
        network = _fill(network, checkpoint.state_dict(network), device, dtype)
        if dtype != torch.float32:
            for name, tensor in network.state_dict().items():
                if not is_finite(tensor):
                    raise ValueError(f"{source}: {dtype} cannot hold the numbers of {name}; use float32")
        return cls(checkpoint.config, network, dtype)

    @classmethod
    def from_config(
        cls,
        config: CodecConfig,
        seed: int = 0,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> "Codec":
        """A codec with random weights that depend on `config` and `seed` alone. It makes noise, at a sound level.

        Args:
            config: its sizes.
            seed: of the weights.
            device, dtype: as `load`.

        Raises:
            ValueError: an unusable device, or another dtype.
        """
        device, dtype = resolve_device(device), resolve_dtype(dtype)
        network = Network(config)
        return cls(config, _fill(network, _random_state(network, seed), device, dtype), dtype)

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def num_codebooks(self) -> int:
        """C, codes per frame."""
        return self.config.n_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes are in [0, codebook_size)."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the weights are and results appear."""
        return self.quantizer.table.device

    @torch.no_grad()
    def encode(self, waveform: np.ndarray | torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Sound to codes.

        Args:
            waveform: [samples] floating point in [-1, 1], mono; padded with silence to whole frames.
            sample_rate: of the waveform in Hz; resampled where it is not the codec's.

        Returns:
            codes [T, C] int64 on the codec's device, T = ceil(samples at the codec's rate / hop_length).

        Raises:
            TypeError: not a floating array, or a sample rate that is not an integer.
            ValueError: not one-dimensional, empty, NaN or infinite, or a peak far beyond 1.
            RuntimeError: the codec's own numbers are NaN or infinite, as float16's can become; or this is a forked
                process in which it cannot work.
        """
        check_not_forked(self.device)
        check_sample_rate(sample_rate)
        samples = resample(waveform, sample_rate, self.sample_rate)
        check_peak(samples)
        padded = torch.from_numpy(np.pad(samples, (0, -len(samples) % self.hop_length)))
        with torch.autocast(self.device.type, enabled=False), full_float32():
            latent = self.encoder(padded.to(self.device, self.dtype)[None, None])
            latent = latent.float()
            if not is_finite(latent):
                raise self._non_finite("latent of the prompt")
            return self.quantizer.encode(latent)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Codes to sound.

        Args:
            codes: [T, C] of any integer dtype, in [0, codebook_size).

        Returns:
            waveform [samples] float32 on the codec's device, in [-1, 1]. T x hop_length samples where all
            upsampling ratios are even (as in every published model); an odd ratio drops samples as the reference does.
            No frames make an empty waveform.

        Raises:
            TypeError: not an array or tensor of integers.
            ValueError: wrong shape, or a code out of range.
            RuntimeError: the codec's own numbers are NaN, as float16's can become; or this is a forked process in which
                it cannot work.
        """
        check_not_forked(self.device)
        codes = self._checked(codes)
        if not len(codes):
            return torch.zeros(0, device=self.device)
        waveform = self.synthesize(codes.to(self.device))
        self.check_samples(waveform)
        return waveform

    def synthesize(self, codes: torch.Tensor) -> torch.Tensor:
        """`decode` without checks and without a wait for the device.

        Args:
            codes: [T, C] int64 with T at least 1, in range and on the codec's device.

        Returns:
            waveform [samples] float32 on the codec's device.
        """
        with torch.autocast(self.device.type, enabled=False), full_float32():
            latent = self.quantizer.decode(codes)
            return self.decoder(latent.to(self.dtype))[0, 0].float()

    def check_samples(self, waveform: torch.Tensor | np.ndarray) -> None:
        """Check what `synthesize` gave. The last layer is a tanh: whatever breaks before it comes out as NaN.

        Args:
            waveform: [samples] floating point.

        Raises:
            RuntimeError: a sample is NaN.
        """
        if not math.isfinite(waveform.sum().item()):  # samples are in [-1, 1]: their sum is finite if they are numbers
            raise self._non_finite("sound")

    def _non_finite(self, what: str) -> RuntimeError:
        dtype = str(self.dtype).removeprefix("torch.")
        cause = (
            "float16 cannot hold some activations: use codec_dtype bfloat16 or float32"
            if self.dtype is torch.float16
            else "its weights are damaged, or it does not fit these codes"
        )
        return RuntimeError(f"the codec's numbers are NaN or infinite in the {what}, computed in {dtype}: {cause}")

    def _checked(self, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        if not isinstance(codes, (torch.Tensor, np.ndarray)):
            raise TypeError(f"codes must be a torch tensor or numpy array, got {type(codes).__name__}")
        if isinstance(codes, torch.Tensor):
            integers = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        else:
            integers = np.issubdtype(codes.dtype, np.integer)
        if not integers:
            raise TypeError(f"codes must be integers, got {codes.dtype}")
        if codes.ndim != 2 or codes.shape[1] != self.num_codebooks:
            raise ValueError(f"codes must have shape [frames, {self.num_codebooks}], got {list(codes.shape)}")
        codes = codes.long() if isinstance(codes, torch.Tensor) else torch.from_numpy(codes.astype(np.int64))
        invalid = (codes < 0) | (codes >= self.codebook_size)
        if invalid.any():
            frame, channel = invalid.nonzero()[0].tolist()
            raise ValueError(
                f"codes must be in [0, {self.codebook_size}), got {codes[frame, channel].item()} "
                f"at frame {frame}, codebook {channel}"
            )
        return codes


def _fill(network: Network, state: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Network:
    """Put float32 weights into an empty network and make it ready."""
    network.load_state_dict(state, assign=True)
    network.prepare()
    network.encoder.to(device, dtype)
    network.quantizer.to(device)
    network.decoder.to(device, dtype)
    network.decoder.pack()  # the encoder is used once per prompt, if at all
    return network


def _random_state(network: Network, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep a signal's size through the layers, drawn on the CPU so that no device changes them."""
    generator = torch.Generator("cpu").manual_seed(seed)
    state = {}
    for name, parameter in network.state_dict().items():
        if name.endswith("alpha"):
            state[name] = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            continue
        if name.endswith("bias"):
            scale = 0.02
        elif name.endswith("entries.weight"):
            scale = 1.0
        else:
            # What a residual unit adds must be small, or the sum grows with every unit.
            in_residual_unit = name.startswith(("encoder", "decoder")) and name.count(".") == 3
            scale = (0.3 if in_residual_unit else 1.0) / parameter[0].numel() ** 0.5
        state[name] = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
    last = [name for name in state if name.startswith("decoder")][-2:]  # weight and bias before the final tanh
    for name in last:
        state[name] *= 0.05  # full-scale noise hurts
    return state
