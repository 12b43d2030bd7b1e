"""Sizes of a codec, as transformers' config.json or the metadata of descript-audio-codec's weights.pth state them."""

import math
from dataclasses import dataclass, fields
from typing import Any

from ..files.waveform import MAX_SAMPLE_RATE
from ..messages import shown

# Far above any codec, and low enough that the network is built, without weights, in no time.
MAX_SIZE = 131_072
MAX_SIZES = {"n_codebooks": 256, "sampling_rate": MAX_SAMPLE_RATE, "codebook_size": 1_048_576}
MAX_RATIOS, MAX_RATIO, MAX_HOP = 16, 4096, 1_048_576

# What transformers' DacConfig takes for a key that a config.json does not name.
TRANSFORMERS_DEFAULTS = {
    "encoder_hidden_size": 64,
    "decoder_hidden_size": 1536,
    "downsampling_ratios": (2, 4, 8, 8),
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "sampling_rate": 16000,
}

# Our name -> (name, default) of descript-audio-codec's DAC(...).
PACKAGE_ARGUMENTS = {
    "encoder_hidden_size": ("encoder_dim", 64),
    "decoder_hidden_size": ("decoder_dim", 1536),
    "downsampling_ratios": ("encoder_rates", (2, 4, 8, 8)),
    "upsampling_ratios": ("decoder_rates", (8, 8, 4, 2)),
    "n_codebooks": ("n_codebooks", 9),
    "codebook_size": ("codebook_size", 1024),
    "codebook_dim": ("codebook_dim", 8),
    "sampling_rate": ("sample_rate", 44100),
}


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of a codec. Field names are those of transformers' DacConfig, defaults those of descript/dac_44khz.

    The encoder doubles its width with each downsampling ratio, the decoder halves its own with each upsampling ratio;
    `hidden_size` is the width of the latent between them.

    Raises:
        ValueError: a size that no codec can have; the message names it.
    """

    encoder_hidden_size: int = 64
    decoder_hidden_size: int = 1536
    hidden_size: int = 1024
    downsampling_ratios: tuple[int, ...] = (2, 4, 8, 8)
    upsampling_ratios: tuple[int, ...] = (8, 8, 4, 2)
    n_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    sampling_rate: int = 44100

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_ratios"):
                _check_ratios(item.name, value)
            elif not _is_positive_integer(value):
                raise ValueError(f"codec config: {item.name} must be a positive integer, got {shown(value)}")
            elif value > MAX_SIZES.get(item.name, MAX_SIZE):
                most = MAX_SIZES.get(item.name, MAX_SIZE)
                raise ValueError(f"codec config: {item.name} must be at most {most}, got {shown(value)}")
        if math.prod(self.downsampling_ratios) != math.prod(self.upsampling_ratios):
            raise ValueError(
                f"codec config: downsampling_ratios {list(self.downsampling_ratios)} and upsampling_ratios "
                f"{list(self.upsampling_ratios)} must have the same product"
            )
        if self.hop_length > MAX_HOP:
            raise ValueError(f"codec config: a frame must have at most {MAX_HOP} samples, got {shown(self.hop_length)}")
        if self.decoder_hidden_size >> len(self.upsampling_ratios) == 0:
            raise ValueError(
                f"codec config: decoder_hidden_size {self.decoder_hidden_size} cannot be halved "
                f"{len(self.upsampling_ratios)} times"
            )

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.downsampling_ratios)

    @classmethod
    def from_transformers(cls, raw: Any) -> "CodecConfig":
        """Read the content of the config.json of a transformers DacModel.

        Raises:
            ValueError: not the config of a DAC, or one that contradicts itself.
        """
        if not isinstance(raw, dict):
            raise ValueError(f"codec config: expected a JSON object, got {type(raw).__name__}")
        if raw.get("model_type") != "dac":
            raise ValueError(f"codec config: model_type must be 'dac', got {shown(raw.get('model_type'))}")
        values = {name: raw.get(name, default) for name, default in TRANSFORMERS_DEFAULTS.items()}
        down = values["downsampling_ratios"] = _as_ratios("downsampling_ratios", values["downsampling_ratios"])
        values["upsampling_ratios"] = _as_ratios("upsampling_ratios", raw.get("upsampling_ratios", down[::-1]))
        values["hidden_size"] = raw.get("hidden_size", _derived_width(values["encoder_hidden_size"], down))
        config = cls(**values)
        if raw.get("hop_length", config.hop_length) != config.hop_length:
            raise ValueError(
                f"codec config: hop_length {shown(raw['hop_length'])} is not the product of "
                f"downsampling_ratios {list(down)}"
            )
        return config

    @classmethod
    def from_package(cls, arguments: Any) -> "CodecConfig":
        """Read `metadata["kwargs"]` of a weights.pth of descript-audio-codec.

        Raises:
            ValueError: not the arguments of a DAC, or codebooks of different widths, which no published model has.
        """
        if not isinstance(arguments, dict):
            raise ValueError(f"codec config: expected metadata.kwargs to be a dict, got {type(arguments).__name__}")
        if "encoder_dim" not in arguments and "encoder_rates" not in arguments:
            raise ValueError(
                f"codec config: metadata.kwargs are not those of a DAC, got {shown(sorted(map(str, arguments)))}"
            )
        values = {ours: arguments.get(theirs, default) for ours, (theirs, default) in PACKAGE_ARGUMENTS.items()}
        for name in ("downsampling_ratios", "upsampling_ratios"):
            values[name] = _as_ratios(name, values[name])
        if isinstance(values["codebook_dim"], (list, tuple)):  # the package allows one width for each codebook
            widths = values["codebook_dim"]
            plain = all(map(_is_positive_integer, widths))  # else a comparison may take forever: tuples of tuples
            if not plain or len(widths) != values["n_codebooks"] or len(set(widths)) > 1:
                raise ValueError(f"codec config: codebook_dim must be one for all codebooks, got {shown(list(widths))}")
            values["codebook_dim"] = widths[0]
        width = arguments.get("latent_dim")
        derived = _derived_width(values["encoder_hidden_size"], values["downsampling_ratios"])
        return cls(hidden_size=derived if width is None else width, **values)


def _as_ratios(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"codec config: {name} must be a list of integers, got {shown(value)}")
    return tuple(value)


def _check_ratios(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not value or not all(map(_is_positive_integer, value)):
        held = shown(list(value) if isinstance(value, tuple) else value)
        raise ValueError(f"codec config: {name} must hold one or more positive integers, got {held}")
    if len(value) > MAX_RATIOS or max(value) > MAX_RATIO:
        raise ValueError(
            f"codec config: {name} must hold at most {MAX_RATIOS} integers of at most {MAX_RATIO}, "
            f"got {shown(list(value))}"
        )


def _is_positive_integer(value: Any) -> bool:
    return type(value) is int and value > 0


def _derived_width(encoder_hidden_size: Any, ratios: tuple[int, ...]) -> Any:
    """Latent width where none is stated: that of the encoder's last layer. A wrong type is left to the check."""
    known = type(encoder_hidden_size) is int and len(ratios) <= MAX_RATIOS
    return encoder_hidden_size << len(ratios) if known else encoder_hidden_size
