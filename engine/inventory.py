"""What a model is, without loading it: its config, parameters and memory by part."""

import math
from pathlib import Path

from .config import DiaConfig
from .hub import find_config, find_model
from .model import parameter_shapes
from .placement import checked_dtype
from .synthetic import is_synthetic, synthetic_config
from .weights import describe_files

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


def model_config(model: str | Path, revision: str | None = None) -> DiaConfig:
    """A model's config by the names that `Engine.load` takes; from the hub only config.json is fetched."""
    return synthetic_config(model) if is_synthetic(model) else DiaConfig.from_file(find_config(model, revision))


def parameters_by_part(config: DiaConfig) -> dict[str, tuple[int, int]]:
    """Part -> (parameters in the model's dtype, parameters in float32)."""
    counts = {part: [0, 0] for part in PARTS}
    for name, shape in parameter_shapes(config).items():
        part = next(part for part, piece in PARTS.items() if piece in name)
        counts[part][name.endswith("norm.weight")] += math.prod(shape)
    return {part: (plain, float32) for part, (plain, float32) in counts.items()}


def cache_bytes(config: DiaConfig, itemsize: int) -> int:
    """Bytes of the key/value caches of one request that uses every row and every byte of text."""
    decoder = config.decoder
    self_row = decoder.num_key_value_heads * decoder.head_dim * 2  # rows with and without text
    cross_row = decoder.cross_num_key_value_heads * decoder.cross_head_dim
    rows = self_row * decoder.max_position_embeddings + cross_row * config.encoder.max_position_embeddings
    return 2 * itemsize * decoder.num_hidden_layers * rows


def describe(model: str | Path, revision: str | None, dtype: str) -> str:
    """The text of `dia-engine info`: layout, parameters, and memory by part in `dtype`.

    Raises:
        FileNotFoundError, ValueError: as `Engine.load`, weights that do not fit the config included.
    """
    chosen = checked_dtype(dtype)
    config = model_config(model, revision)
    layout = "made up at load, random"
    if not is_synthetic(model):
        layout = describe_files(find_model(model, revision).weights, config)
    return "\n".join((f"model       {model}", f"weights     {layout}", *_sizes(config), "", *_table(config, chosen)))


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


def _table(config: DiaConfig, dtype) -> list[str]:
    rows = {
        part: (plain + float32, plain * dtype.itemsize + float32 * 4)
        for part, (plain, float32) in parameters_by_part(config).items()
    }
    rows["total"] = tuple(map(sum, zip(*rows.values())))
    lines = [f"{'part':24}{'parameters':>16}{'MB in ' + str(dtype).removeprefix('torch.'):>18}"]
    lines += [f"{part:24}{count:>16,}{size / 1e6:>18,.1f}" for part, (count, size) in rows.items()]
    caches = cache_bytes(config, dtype.itemsize)
    lines.append(f"{'caches of one request':24}{'':>16}{caches / 1e6:>18,.1f}   (at most)")
    return lines
