"""From the tensors of a published file to ours: names, weight norm, and one strict report.

Our stacks are flat (layers.py), so a layout is the list of its layer names in the order of the signal.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .layers import ResidualUnit

SHOWN_IN_REPORT = 10
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
    block: tuple[str, str, str, str, str]
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


def adapt_tensors(network: nn.ModuleDict, layout: Layout, tensors: Mapping, source: str) -> dict[str, torch.Tensor]:
    """Pick, check and fold the tensors of a file for our network.

    Args:
        network: {"encoder", "quantizer", "decoder"}; only names and shapes are read, so it may be on "meta".
        layout: the names in the file.
        tensors: name -> tensor of any floating dtype.
        source: what to call the file in a message.

    Returns:
        state dict of `network`: float32 copies with the weight norm folded in.

    Raises:
        ValueError: tensors that are missing, unexpected, of the wrong shape or not floating point; one message.
    """
    names = layer_names(network, layout)
    state, used, missing, unfit = {}, set(), [], []
    for ours, parameter in network.state_dict().items():
        layer, leaf = ours.rsplit(".", 1)
        wanted = _stored_as(f"{names[layer]}.", leaf, tuple(parameter.shape), tensors)
        used.update(wanted)
        absent = [name for name in wanted if name not in tensors]
        wrong = [_misfit(name, tensors[name], shape) for name, shape in wanted.items() if name not in absent]
        missing += absent
        unfit += filter(None, wrong)
        if not absent and not any(wrong):
            state[ours] = _fold(*(tensors[name] for name in wanted))
    unexpected = [name for name in tensors if name not in used]
    if missing or unexpected or unfit:
        raise ValueError(f"{source}: the weights do not fit the codec's config; {_report(missing, unexpected, unfit)}")
    return state


def layer_names(network: nn.ModuleDict, layout: Layout) -> dict[str, str]:
    """Our name of each layer that has weights -> its name in the layout."""
    names = {}
    for stack, stack_names in (("encoder", layout.encoder), ("decoder", layout.decoder)):
        layers = [layer for layer in network[stack] if not isinstance(layer, nn.Tanh)]
        for position, (layer, theirs) in enumerate(zip(layers, _in_order(stack_names, len(layers)), strict=True)):
            if isinstance(layer, ResidualUnit):
                names |= {f"{stack}.{position}.{part}": f"{theirs}.{name}" for part, name in enumerate(layout.unit)}
            else:
                names[f"{stack}.{position}"] = theirs
    for index in range(len(network["quantizer"])):
        for ours, theirs in (("project_in", "in_proj"), ("project_out", "out_proj"), ("entries", "codebook")):
            names[f"quantizer.{index}.{ours}"] = f"quantizer.quantizers.{index}.{theirs}"
    return names


def _in_order(names: StackNames, layers: int) -> list[str]:
    """The names of a stack of so many layers, in the order of the signal."""
    blocks = (layers - 1 - len(names.end)) // len(names.block)
    inner = [name.format(block=block, position=block + 1) for block in range(blocks) for name in names.block]
    return [names.first, *inner, *(name.format(end=blocks + 1, last=blocks + 2) for name in names.end)]


def _stored_as(prefix: str, leaf: str, shape: tuple[int, ...], tensors: Mapping) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that a file keeps a parameter in: one, or two where it has weight norm."""
    if leaf == "weight" and f"{prefix}weight" not in tensors:
        for length, direction in WEIGHT_NORM_SPELLINGS:
            if f"{prefix}{length}" in tensors or f"{prefix}{direction}" in tensors:
                return {f"{prefix}{length}": (shape[0],) + (1,) * (len(shape) - 1), f"{prefix}{direction}": shape}
    return {f"{prefix}{leaf}": shape}


def _misfit(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> str | None:
    if tuple(tensor.shape) != shape:
        return f"{name} is {list(tensor.shape)}, not {list(shape)}"
    if not tensor.is_floating_point():
        return f"{name} is {tensor.dtype}, not floating point"
    return None


def _fold(*parts: torch.Tensor) -> torch.Tensor:
    """A plain float32 weight. Always a copy: a file is mapped into memory and may change under us."""
    if len(parts) == 1:
        return parts[0].to(torch.float32, copy=True)
    length, direction = (part.float() for part in parts)
    return direction * (length / direction.norm(dim=tuple(range(1, direction.ndim)), keepdim=True))


def _report(missing: list[str], unexpected: list[str], unfit: list[str]) -> str:
    parts = []
    for title, items in (("missing", missing), ("unexpected", unexpected), ("wrong", unfit)):
        if items:
            more = f" and {len(items) - SHOWN_IN_REPORT} more" if len(items) > SHOWN_IN_REPORT else ""
            parts.append(f"{title} ({len(items)}): {', '.join(items[:SHOWN_IN_REPORT])}{more}")
    return "; ".join(parts)
