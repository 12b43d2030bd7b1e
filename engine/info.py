"""What a model is, without loading it: its config, parameters and memory by part."""

import math
from pathlib import Path

import torch

from .capacity import Footprint, codec_bytes, footprint, free_memory, verdict
from .devices.device import resolve_device, resolve_dtype
from .devices.environment import described_environment
from .kernels.cpu.variants import description
from .kernels.quantized import FORMATS
from .model.config import DiaConfig
from .model.shapes import parameter_shapes
from .runtime.limits import Limits
from .weights.load import check_formats
from .weights.recipes import RECIPES, checked_recipe, chosen_formats
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


def describe(
    model: str | Path,
    revision: str | None,
    dtype: str,
    quant: str | None = None,
    *,
    device: str | None = None,
    max_rows: int | None = None,
) -> str:
    """The text of `dia-engine info`: layout, parameters, memory by part and of slots, quantized or in `dtype`, whether
    they fit, and the machine.

    Reads the headers of the model's files, which are fetched from the hub if they are not here yet.

    Args:
        device: whose free memory is looked at; None is a GPU if there is one, else the CPU.
        max_rows: decoder rows per slot; None is all of the model's.

    Raises:
        FileNotFoundError, ValueError: as `Engine.load`, weights that do not fit the config included.
    """
    chosen, place = resolve_dtype(dtype), resolve_device(device)
    recipe = None if quant is None else checked_recipe(quant)
    source = resolve_model(model, revision)
    config = source.config
    rows = Limits(max_rows=max_rows).rows(config)
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
    codec = codec_bytes(source.codec_config())

    def with_formats(formats: dict[str, str]) -> Footprint:
        return footprint(config, chosen, weights=total_bytes(config, chosen, formats), codec=codec, rows=rows)

    mine, free = with_formats(stored or formats), free_memory(place)
    # Planned only where they are asked for: a recipe may have something to warn of.
    plans = ((name, with_formats(chosen_formats(recipe, config))) for name, recipe in RECIPES.items() if not stored)
    others = ((name, plan) for name, plan in plans if plan.weights < mine.weights)
    table = _table(config, chosen, stored or formats)
    slots = mine.default_slots(free, place.type == "cuda")
    fits = verdict(mine, free, place, others)
    return "\n".join((*lines, "", *table, *_slots(mine, slots, dtype), "", *fits, "", *described_environment()))


def total_bytes(config: DiaConfig, dtype: torch.dtype, formats: dict[str, str]) -> int:
    """Bytes of all weights of a model."""
    shapes = parameter_shapes(config).items()
    return sum(weight_bytes(name, shape, dtype, formats.get(name)) for name, shape in shapes)


def _slots(plan: Footprint, slots: int, dtype: str) -> list[str]:
    rest = plan.slot - plan.self_cache - plan.cross_cache
    rows = (
        ("codec", plan.codec, "float32"),
        ("one slot", plan.slot, f"{plan.rows} rows at most, allocated before they are written"),
        ("  keys/values of rows", plan.self_cache, dtype),
        ("  keys/values of text", plan.cross_cache, dtype),
        ("  buffers and codes", rest, ""),
        (f"default slots, {slots}", slots * plan.slot, ""),
        ("prompts used again", plan.slot, "at most: their keys/values without text"),
    )
    return [f"{name:24}{'':>16}{size / 1e6:>12,.1f}   {remark}".rstrip() for name, size, remark in rows]


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
    return lines
