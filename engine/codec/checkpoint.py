"""Codecs in files: find and open one, and turn its tensors into ours: names, weight norm, and a strict check.

Our stacks are flat (layers.py), so a layout is the list of its layer names in the order of the signal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files.hub import CODEC, CONFIG, SAFETENSORS, SAFETENSORS_INDEX, download, local_path, require_shards
from ..files.paths import read_json, require_file
from ..files.tensors import Checkpoint, require_finite, require_fit
from ..files.torch_file import TensorView, TorchFile
from .config import CodecConfig
from .layers import ResidualUnit
from .network import Network

PACKAGE_FILE = "weights.pth"
HUB_PATTERNS = [CONFIG, "*.safetensors", "*.safetensors.index.json"]
# Two generations of torch's weight norm: (length, direction).
WEIGHT_NORM_SPELLINGS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class StackNames:
    """Names in the encoder or the decoder: the first layer, the five layers of each block, the two last layers.

    {block} counts the blocks from 0, {position} from 1; {end} is the number of blocks + 1, {last} that + 1.
    """

    first: str
    block: tuple[str, ...]
    end: tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """Names of the layers in a published file."""

    unit: tuple[str, str, str, str]  # in a residual unit: snake, dilated convolution, snake, pointwise convolution
    encoder: StackNames
    decoder: StackNames


TRANSFORMERS = Layout(
    unit=("snake1", "conv1", "snake2", "conv2"),
    encoder=StackNames(
        first="encoder.conv1",
        block=(
            "encoder.block.{block}.res_unit1",
            "encoder.block.{block}.res_unit2",
            "encoder.block.{block}.res_unit3",
            "encoder.block.{block}.snake1",
            "encoder.block.{block}.conv1",
        ),
        end=("encoder.snake1", "encoder.conv2"),
    ),
    decoder=StackNames(
        first="decoder.conv1",
        block=(
            "decoder.block.{block}.snake1",
            "decoder.block.{block}.conv_t1",
            "decoder.block.{block}.res_unit1",
            "decoder.block.{block}.res_unit2",
            "decoder.block.{block}.res_unit3",
        ),
        end=("decoder.snake1", "decoder.conv2"),
    ),
)

# The package's stacks are plain sequences, so its names are numbers.
PACKAGE = Layout(
    unit=("block.0", "block.1", "block.2", "block.3"),
    encoder=StackNames(
        first="encoder.block.0",
        block=tuple(f"encoder.block.{{position}}.block.{part}" for part in range(5)),
        end=("encoder.block.{end}", "encoder.block.{last}"),
    ),
    decoder=StackNames(
        first="decoder.model.0",
        block=tuple(f"decoder.model.{{position}}.block.{part}" for part in range(5)),
        end=("decoder.model.{end}", "decoder.model.{last}"),
    ),
)


@dataclass(frozen=True)
class CodecCheckpoint:
    """A codec in files, of which the config and the tensors' headers are read."""

    config: CodecConfig
    layout: Layout
    tensors: Checkpoint

    def state_dict(self, network: Network) -> dict[str, torch.Tensor]:
        """Pick, check and fold the tensors for our network.

        Args:
            network: {"encoder", "quantizer", "decoder"}; only names and shapes are read, so it may be on "meta".

        Returns:
            state dict of `network`: float32 copies with the weight norm folded in.

        Raises:
            ValueError: tensors that are missing, unexpected, of the wrong shape or dtype (one message, before any data
                is read), or NaN or infinity in one.
        """
        stored = self._stored_names(network)
        wanted = {name: shape for names in stored.values() for name, shape in names.items()}
        title = self.tensors.title
        require_fit(
            f"{title} does not fit the codec's config", self.tensors.headers, wanted, duplicates=self.tensors.duplicates
        )
        return {ours: self._folded(list(names)) for ours, names in stored.items()}

    def _stored_names(self, network: Network) -> dict[str, dict[str, tuple[int, ...]]]:
        """Our name of each parameter -> names and shapes of the tensors in the file that make it up."""
        names = layer_names(network, self.layout)
        stored = {}
        for ours, parameter in network.state_dict().items():
            layer, leaf = ours.rsplit(".", 1)
            stored[ours] = _stored_as(f"{names[layer]}.", leaf, tuple(parameter.shape), self.tensors.headers)
        return stored

    def _folded(self, names: list[str]) -> torch.Tensor:
        """A plain float32 weight. Always a copy: a file is mapped into memory and may change under us."""
        parts = [self.tensors.read(name).to(torch.float32, copy=True) for name in names]
        weight = parts[0]
        if len(parts) == 2:
            length, direction = parts
            weight = direction * (length / direction.norm(dim=tuple(range(1, direction.ndim)), keepdim=True))
        require_finite(" and ".join(names), weight, self.tensors.title)
        return weight


def open_checkpoint(source: str | Path, revision: str | None = None) -> CodecCheckpoint:
    """Open a codec in a local folder or file, or from the Hugging Face hub.

    Raises:
        FileNotFoundError: nothing there, or the hub cannot give it; the message says what to do.
        TypeError: not a string or path.
        ValueError: damaged, not a codec, or a revision asked of something local.
    """
    path = local_path(source, CODEC, revision)
    if path is None:
        path = download(str(source), CODEC, revision, HUB_PATTERNS)
    if path.suffix == ".safetensors" and not path.is_dir():
        raise ValueError(f"{path}: pass the folder that holds this file and its {CONFIG}")
    return _open_folder(path) if path.is_dir() else _open_package(path)


def _open_folder(folder: Path) -> CodecCheckpoint:
    if (folder / SAFETENSORS).is_symlink() or (folder / SAFETENSORS).is_file():
        return _open_transformers(folder, [folder / SAFETENSORS])
    if (folder / SAFETENSORS_INDEX).is_file():
        return _open_transformers(folder, require_shards(folder / SAFETENSORS_INDEX))
    if (folder / PACKAGE_FILE).is_symlink() or (folder / PACKAGE_FILE).is_file():
        return _open_package(folder / PACKAGE_FILE)
    raise FileNotFoundError(
        f"no codec in {folder}: expected {CONFIG} with {SAFETENSORS} (or {SAFETENSORS_INDEX}), or {PACKAGE_FILE}"
    )


def _open_transformers(folder: Path, weights: list[Path]) -> CodecCheckpoint:
    config = _parsed(folder / CONFIG, CodecConfig.from_transformers, read_json(folder / CONFIG))
    return CodecCheckpoint(config, TRANSFORMERS, Checkpoint(weights))


def _open_package(path: Path) -> CodecCheckpoint:
    """Open a weights.pth of descript-audio-codec: {"state_dict": ..., "metadata": {"kwargs": ...}}."""
    require_file(path, "weight file")
    content = TorchFile(path).content
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not _is_tensor_mapping(tensors) or not isinstance(metadata, dict) or "kwargs" not in metadata:
        raise ValueError(f"{path} is not a weights.pth of descript-audio-codec: it lacks state_dict or metadata.kwargs")
    config = _parsed(path, CodecConfig.from_package, metadata["kwargs"])
    return CodecCheckpoint(config, PACKAGE, Checkpoint([path], lambda content: content["state_dict"]))


def _parsed(path: Path, parse: Callable[[Any], CodecConfig], content: Any) -> CodecConfig:
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _is_tensor_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, (TensorView, torch.Tensor)) for name, tensor in value.items()
    )


def layer_names(network: Network, layout: Layout) -> dict[str, str]:
    """Our name of each layer that has weights -> its name in the layout."""
    names: dict[str, str] = {}
    stacks = (("encoder", network.encoder, layout.encoder), ("decoder", network.decoder, layout.decoder))
    for stack, modules, stack_names in stacks:
        layers = [layer for layer in modules if not isinstance(layer, nn.Tanh)]
        for position, (layer, theirs) in enumerate(zip(layers, _in_order(stack_names, len(layers)), strict=True)):
            if isinstance(layer, ResidualUnit):
                names |= {f"{stack}.{position}.{part}": f"{theirs}.{name}" for part, name in enumerate(layout.unit)}
            else:
                names[f"{stack}.{position}"] = theirs
    for index in range(len(network.quantizer)):
        for ours, theirs in (("project_in", "in_proj"), ("project_out", "out_proj"), ("entries", "codebook")):
            names[f"quantizer.{index}.{ours}"] = f"quantizer.quantizers.{index}.{theirs}"
    return names


def _in_order(names: StackNames, layers: int) -> list[str]:
    """The names of a stack of so many layers, in the order of the signal."""
    blocks = (layers - 1 - len(names.end)) // len(names.block)
    inner = [name.format(block=block, position=block + 1) for block in range(blocks) for name in names.block]
    return [names.first, *inner, *(name.format(end=blocks + 1, last=blocks + 2) for name in names.end)]


def _stored_as(prefix: str, leaf: str, shape: tuple[int, ...], found: Mapping) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that a file keeps a parameter in: one, or two where it has weight norm."""
    if leaf == "weight" and f"{prefix}weight" not in found:
        for length, direction in WEIGHT_NORM_SPELLINGS:
            if f"{prefix}{length}" in found or f"{prefix}{direction}" in found:
                return {f"{prefix}{length}": (shape[0],) + (1,) * (len(shape) - 1), f"{prefix}{direction}": shape}
    return {f"{prefix}{leaf}": shape}
