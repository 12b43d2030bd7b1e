"""What a model's name means, resolved once: files on the hub or in a folder, the packaged model, or random weights.

A model's folder may hold more than the model:

    config.json, model.safetensors    the model
    codec/                            its codec, instead of descript/dac_44khz
    generation_config.json            "dia_engine": {"temperature": 0.8, ...}, names and values as `generate` has;
                                      in it "long_form": {"piece_bytes": 160, ...}, see LongFormSettings

transformers' own keys of generation_config.json are left alone: those of the published model differ from the reference.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import torch

from ..codec import Codec, CodecConfig
from ..codec.checkpoint import open_checkpoint
from ..files.hub import DEFAULT_CODEC, GENERATION_CONFIG, fetch_folder, find_config, find_weights
from ..files.paths import read_json, require_file, user_path
from ..kernels.quantized import Weight
from ..longform_settings import LongFormSettings
from ..messages import listed, shown
from ..model.config import DiaConfig
from ..sampling_params import ResolvedSamplingParams, defaults_within
from .load import DiaCheckpoint
from .recipes import Recipe
from .synthetic import PREFIX, stream_random_weights, synthetic_codec, synthetic_codec_config, synthetic_config

TALKER = "talker"
TALKER_FOLDER = Path(__file__).parents[1] / "assets" / "talker"

_CODEC_FOLDER, _DEFAULTS_KEY, _LONG_FORM_KEY = "codec", "dia_engine", "long_form"


class ModelSource(ABC):
    """Where a model comes from.

    Attributes:
        config: its sizes and special ids.
        defaults: its own defaults for generation, by the names of `generate`.
        long_form: how long scripts are planned.
    """

    config: DiaConfig
    defaults: dict[str, float | int | None]
    long_form: LongFormSettings

    @property
    @abstractmethod
    def description(self) -> str:
        """Layout and dtypes of the weights in words."""

    @property
    @abstractmethod
    def stored_formats(self) -> dict[str, str]:
        """Name of each weight that is stored quantized -> its format."""

    @abstractmethod
    def stream_weights(
        self, *, dtype: torch.dtype, device: torch.device | str, recipe: Recipe | None = None
    ) -> Iterator[tuple[str, Weight]]:
        """The weights one by one, checked before this returns; see `DiaCheckpoint.stream`."""

    @abstractmethod
    def load_codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        """The codec that belongs to the model."""

    def open_codec(
        self, codec: str | Path | Codec | None, device: torch.device, dtype: torch.dtype | None = None
    ) -> Codec:
        """The codec to use, in float32 unless told: a loaded one, the one named, or for None that of `load_codec`.

        Raises:
            FileNotFoundError, ValueError: as `Codec.load`, or a codec that does not fit the model.
        """
        if isinstance(codec, Codec):
            if dtype not in (None, codec.dtype):
                raise ValueError(f"codec_dtype is {dtype}, but the loaded codec that was given is in {codec.dtype}")
            if codec.device.type == "cuda" and codec.device != _with_index(device):
                raise ValueError(f"the loaded codec that was given is on {codec.device}, the model on {device}")
        elif codec is None:
            codec = self.load_codec(device=device, dtype=dtype or torch.float32)
        else:
            codec = Codec.load(codec, device=device, dtype=dtype or torch.float32)
        channels, codes = self.config.decoder.num_channels, self.config.eos_token_id
        if codec.num_codebooks != channels or codec.codebook_size < codes:
            raise ValueError(
                f"the codec has {codec.num_codebooks} codebooks of {codec.codebook_size}, the model speaks {channels} "
                f"channels of {codes} codes; name the codec that belongs to the model"
            )
        return codec

    @abstractmethod
    def codec_config(self) -> CodecConfig:
        """The sizes of the codec that `load_codec` gives, without its weights; nothing is fetched.

        Raises:
            FileNotFoundError, ValueError: as `Codec.load`.
        """

    @abstractmethod
    def copy_companions(self, target: Path) -> None:
        """Copy into a folder what lies beside the model: its codec and its defaults."""


def _with_index(device: torch.device) -> torch.device:
    """The name that a device's tensors have."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class FileSource(ModelSource):
    """A model in files. Its weights are looked for, and fetched from the hub, when they are first asked for."""

    def __init__(self, model: str | Path, config: Path, weights: list[Path] | None = None):
        """Read the config and the defaults beside it.

        Args:
            model: hub id, folder or file.
            config: its config.json.
            weights: its weights; None finds those that belong to the config.

        Raises:
            FileNotFoundError, ValueError: as `DiaConfig.from_file` and `load_generation_config`.
        """
        self.config = DiaConfig.from_file(config)
        defaults, long_form = load_generation_config(config.parent)
        self.defaults = defaults_within(defaults, self.config.decoder.max_position_embeddings)
        self.long_form = long_form or default_long_form(self.config)
        self._model, self._config_path, self._weights = model, config, weights

    @cached_property
    def checkpoint(self) -> DiaCheckpoint:
        """The weights, whose headers are checked against the config.

        Raises:
            FileNotFoundError, ValueError: as `find_model` and `DiaCheckpoint`.
        """
        return DiaCheckpoint(self._weights or find_weights(self._model, self._config_path), self.config)

    @property
    def description(self) -> str:
        return self.checkpoint.description

    @property
    def stored_formats(self) -> dict[str, str]:
        return self.checkpoint.formats

    def stream_weights(
        self, *, dtype: torch.dtype, device: torch.device | str, recipe: Recipe | None = None
    ) -> Iterator[tuple[str, Weight]]:
        return self.checkpoint.stream(dtype=dtype, device=device, recipe=recipe)

    def load_codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return Codec.load(self._codec_folder or DEFAULT_CODEC, device=device, dtype=dtype)

    def codec_config(self) -> CodecConfig:
        codec = self._codec_folder
        return CodecConfig() if codec is None else open_checkpoint(codec).config  # DEFAULT_CODEC's are the defaults

    def copy_companions(self, target: Path) -> None:
        codec, generation = self._codec_folder, self._config_path.parent / GENERATION_CONFIG
        try:
            if codec is not None:
                shutil.copytree(codec, target / _CODEC_FOLDER)
            if generation.is_file():
                shutil.copy(generation, target / GENERATION_CONFIG)
        except shutil.Error as error:  # a list of (from, to, why)
            source, _, why = error.args[0][0]
            raise OSError(f"{source} cannot be copied: {why}") from None

    @cached_property
    def _codec_folder(self) -> Path | None:
        fetch_folder(self._model, self._config_path, _CODEC_FOLDER)
        folders = [self._config_path.parent, *(path.parent for path in (self._weights or [])[:1])]
        return next(filter(None, map(find_bundled_codec, folders)), None)


class SyntheticSource(ModelSource):
    """Random weights, made without files."""

    description = "random, made when the model is loaded"

    def __init__(self, name: str, revision: str | None = None):
        """Raises:
        ValueError: no such synthetic model, or a revision of one.
        """
        self._name, self.config, self.defaults = name, synthetic_config(name, revision), {}
        self.long_form = default_long_form(self.config)

    @property
    def stored_formats(self) -> dict[str, str]:
        return {}

    def stream_weights(
        self, *, dtype: torch.dtype, device: torch.device | str, recipe: Recipe | None = None
    ) -> Iterator[tuple[str, Weight]]:
        return stream_random_weights(self.config, dtype=dtype, device=device, recipe=recipe)

    def load_codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return synthetic_codec(self.config, self._name, device, dtype)

    def codec_config(self) -> CodecConfig:
        return synthetic_codec_config(self.config, self._name)

    def copy_companions(self, target: Path) -> None:
        """There is nothing beside it."""


def resolve_model(model: str | Path, revision: str | None = None) -> ModelSource:
    """Find what a model's name means, and read its config and defaults. No weights are looked for yet.

    Args:
        model: hub id, local folder, "talker" for the model that comes with the engine, or "synthetic:NAME".
        revision: of the hub repository.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `files.hub.find_config`, or a bad config or bad defaults.
    """
    if isinstance(model, str) and model.startswith(PREFIX):
        return SyntheticSource(model, revision)
    if isinstance(model, str) and model == TALKER:
        if revision is not None:
            raise ValueError(f"revision {revision!r} has no meaning for {model}, which comes with the engine")
        return FileSource(TALKER_FOLDER, find_config(TALKER_FOLDER))
    return FileSource(model, find_config(model, revision))


def resolve_files(config: str | Path, checkpoint: str | Path) -> ModelSource:
    """A model whose config.json and only weight file are named one by one; a codec and defaults may lie beside them.

    Raises:
        FileNotFoundError, TypeError, ValueError: one of them is no path, absent or unusable.
    """
    for name, path in (("config_path", config), ("checkpoint_path", checkpoint)):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{name} must be a string or a path, got {shown(path)}")
    weights = user_path(checkpoint)
    require_file(weights, "checkpoint file")
    return FileSource(checkpoint, user_path(config), [weights])


def find_bundled_codec(folder: Path) -> Path | None:
    """The codec in a model's own folder, complete or not, or None if there is none."""
    codec = folder / _CODEC_FOLDER
    return codec if os.path.lexists(codec) else None


def default_long_form(config: DiaConfig) -> LongFormSettings:
    """For a model that says nothing of long scripts."""
    return LongFormSettings(closing_tag=config.is_published_size)


def load_generation_defaults(folder: Path) -> dict[str, float | int | None]:
    """The first of what `load_generation_config` gives."""
    return load_generation_config(folder)[0]


def load_generation_config(folder: Path) -> tuple[dict[str, float | int | None], LongFormSettings | None]:
    """The defaults for generation and for long scripts in a model's own folder; none if there are none.

    Raises:
        FileNotFoundError: generation_config.json is a broken link.
        ValueError: the file is damaged, or names or values are not those of `generate`.
    """
    path = folder / GENERATION_CONFIG
    if not os.path.lexists(path):
        return {}, None
    content = read_json(path, GENERATION_CONFIG)
    try:
        defaults = content.get(_DEFAULTS_KEY, {}) if isinstance(content, dict) else None
        if not isinstance(defaults, dict):
            raise ValueError(f"{_DEFAULTS_KEY} must be a JSON object, got {shown(defaults)}")
        long_form = defaults.pop(_LONG_FORM_KEY, None)
        settings = None if long_form is None else LongFormSettings.from_config(long_form)
        names = [field.name for field in fields(ResolvedSamplingParams)]
        unknown = sorted(set(defaults) - set(names))
        if unknown:
            raise ValueError(f"{_DEFAULTS_KEY} knows {', '.join(names)}, got {listed(unknown)}")
        ResolvedSamplingParams(**defaults)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None
    return defaults, settings
