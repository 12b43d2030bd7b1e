"""What a model is, without loading it: its config, parameters and memory by part."""

import math
from pathlib import Path

import torch

from .device import resolve_dtype
from .kernels.cpu.variants import description
from .kernels.quantized import FORMATS
from .model.config import DiaConfig
from .model.dia import parameter_shapes
from .weights.load import check_formats
from .weights.recipes import checked_recipe, chosen_formats
from .weights.source import resolve_model

# part -> what its weights' names hold; the first that fits counts.
PARTS = {
    "encoder": "encoder.",
    "decoder embedding": "decoder.embedding.",
    "decoder self-attention": ".self_attn.",
    "decoder cross-attention": ".cross_attn.",
    "decoder MLP": ".mlp.",
    "decoder norms": "norm.",
    "decoder head": "decoder.head.",
}


def part_of(name: str) -> str:
    """The part that a weight belongs to."""
    return next(part for part, piece in PARTS.items() if piece in name)


def weight_bytes(name: str, shape: tuple[int, ...], dtype: torch.dtype, format: str | None = None) -> int:
    """Bytes of a weight, quantized or in `dtype`; norms are float32."""
    if format is not None:
        return FORMATS[format].bytes_of(*shape)
    return math.prod(shape) * (4 if name.endswith("norm.weight") else dtype.itemsize)


def cache_bytes(config: DiaConfig, itemsize: int) -> int:
    """Bytes of the key/value caches of one request that uses every row and every byte of text."""
    decoder = config.decoder
    self_row = decoder.num_key_value_heads * decoder.head_dim * 2  # rows with and without text
    cross_row = decoder.cross_num_key_value_heads * decoder.cross_head_dim
    rows = self_row * decoder.max_position_embeddings + cross_row * config.encoder.max_position_embeddings
    return 2 * itemsize * decoder.num_hidden_layers * rows


def describe(model: str | Path, revision: str | None, dtype: str, quant: str | None = None) -> str:
    """The text of `dia-engine info`: layout, parameters, and memory by part, quantized or in `dtype`.

    Reads the headers of the model's files, which are fetched from the hub if they are not here yet.

    Raises:
        FileNotFoundError, ValueError: as `Engine.load`, weights that do not fit the config included.
    """
    chosen = resolve_dtype(dtype)
    recipe = None if quant is None else checked_recipe(quant)
    source = resolve_model(model, revision)
    config = source.config
    formats = {} if recipe is None else chosen_formats(recipe, config)
    stored = source.stored_formats
    if recipe is not None and stored:
        check_formats(str(model), stored, formats)
    lines = [
        f"model       {model}",
        f"weights     {source.description}",
        *_sizes(config),
        f"CPU step    {description()}",
    ]
    if recipe is not None:
        lines.append(f"quantized   {', '.join(f'{pattern} in {format}' for pattern, format in recipe.items())}")
    return "\n".join((*lines, "", *_table(config, chosen, stored or formats)))


def _sizes(config: DiaConfig) -> list[str]:
    encoder, decoder = config.encoder, config.decoder
    return [
        f"text        up to {encoder.max_position_embeddings} bytes",
        f"sound       up to {decoder.max_position_embeddings} rows, {decoder.num_channels} channels of "
        f"{config.eos_token_id} codes, delay {list(config.delay_pattern)}",
        f"encoder     {encoder.num_hidden_layers} layers of width {encoder.hidden_size}",
        f"decoder     {decoder.num_hidden_layers} layers of width {decoder.hidden_size}, "
        f"{decoder.num_attention_heads} query and {decoder.num_key_value_heads} key/value heads",
    ]


def _table(config: DiaConfig, dtype: torch.dtype, formats: dict[str, str]) -> list[str]:
    plain = str(dtype).removeprefix("torch.")
    counts, sizes = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    kinds: dict[str, set[str]] = {part: set() for part in PARTS}
    for name, shape in parameter_shapes(config).items():
        part, format = part_of(name), formats.get(name)
        counts[part] += math.prod(shape)
        sizes[part] += weight_bytes(name, shape, dtype, format)
        kinds[part].add(format or ("float32" if name.endswith("norm.weight") else plain))
    counts["total"], sizes["total"], kinds["total"] = sum(counts.values()), sum(sizes.values()), set()
    lines = [f"{'part':24}{'parameters':>16}{'MB':>12}   in"]
    for part, count in counts.items():
        lines.append(f"{part:24}{count:>16,}{sizes[part] / 1e6:>12,.1f}   {', '.join(sorted(kinds[part]))}".rstrip())
    caches = cache_bytes(config, dtype.itemsize)
    lines.append(f"{'caches of one request':24}{'':>16}{caches / 1e6:>12,.1f}   {plain}, at most")
    return lines
