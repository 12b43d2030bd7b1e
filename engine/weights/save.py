"""Write our weights in transformers' layout, whole models and quantized copies, each folder at once."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ..devices.device import resolve_dtype
from ..files.hub import CONFIG, SAFETENSORS, SAFETENSORS_INDEX
from ..files.new_folder import check_new_folder, new_folder
from ..files.tensors import Header, require_fit, write_tensors
from ..kernels.cpu.onednn import PackedInt8Weight
from ..kernels.quantized import FORMATS, Weight
from ..messages import first_line
from ..model.config import DiaConfig
from ..model.shapes import parameter_shapes
from .bitsandbytes import to_bnb_tensors
from .layouts import TRANSFORMERS, tensor_table
from .recipes import checked_recipe
from .source import resolve_model

MAX_SHARD_BYTES = 5_000_000_000


def quantize_model(
    model: str | Path,
    folder: str | Path,
    quant: str | Mapping[str, str],
    *,
    dtype: str | torch.dtype = "bfloat16",
    revision: str | None = None,
) -> int:
    """Read a model, quantize it and write it to a folder with safetensors and a config.json that says what was done.

    Args:
        model, quant, revision: as `Engine.load`.
        folder: to be created; an empty one may exist.
        dtype: of the weights that are not quantized.

    Returns:
        Bytes of the weights.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: `folder` is a file or holds something, or cannot be made.
        FileNotFoundError, ValueError: as `Engine.load`, or the model is quantized already.
        OSError: the disk is full or fails; nothing is left of the folder.
    """
    recipe, dtype, target = checked_recipe(quant), resolve_dtype(dtype), check_new_folder(folder)
    source = resolve_model(model, revision)
    held = sorted(set(source.stored_formats.values()))
    if held:
        raise ValueError(f"{model} is quantized already, in {' and '.join(held)}; quantize the original")
    weights = dict(source.stream_weights(dtype=dtype, device="cpu", recipe=recipe))
    said = {"recipe": recipe, "source": str(model), "revision": revision}
    with new_folder(target) as partial, _naming_full_disks(target):
        _write_model(partial, weights, source.config, said, MAX_SHARD_BYTES)
        source.copy_companions(partial)
    return sum(weight.nbytes for weight in weights.values())


def save_weights(
    weights: Mapping[str, Weight | PackedInt8Weight],
    config: DiaConfig,
    folder: str | Path,
    *,
    quantized: Mapping[str, object] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and safetensors in transformers' layout; all of it appears at `folder` at once, or nothing.

    Args:
        weights: every tensor of `parameter_shapes(config)`, floating point or quantized, on any device.
        config: of this model.
        folder: to be created; an empty one may exist.
        quantized: what config.json is to say of the quantization.
        max_shard_bytes: above it the weights are split, with an index; a larger tensor gets a file of its own.

    Raises:
        FileExistsError: `folder` is a file or holds something.
        ValueError: the weights do not fit the config (all misfits listed), or max_shard_bytes < 1.
        OSError: the disk is full or fails; nothing is left of the folder.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    unpacked = {name: _unpacked(weight) for name, weight in weights.items()}
    given = {name: Header(tuple(weight.shape), weight.dtype) for name, weight in unpacked.items()}
    require_fit("these weights do not fit the config", given, parameter_shapes(config), formats=tuple(FORMATS))
    with new_folder(folder) as partial, _naming_full_disks(Path(folder)):
        _write_model(partial, unpacked, config, quantized, max_shard_bytes)


def _unpacked(weight: Weight | PackedInt8Weight) -> Weight:
    """As it was before it was packed for a CPU without compiled code."""
    return weight.unpack() if isinstance(weight, PackedInt8Weight) else weight


def transformers_tensors(weights: Mapping[str, Weight], config: DiaConfig) -> dict[str, Weight]:
    """Our weights by the names of transformers' model: views of the same memory, nothing is copied."""
    tensors: dict[str, Weight] = {}
    for name, pieces in tensor_table(config, TRANSFORMERS).items():
        parts = weights[name].split([piece.rows for piece in pieces])
        tensors |= {piece.name: part for piece, part in zip(pieces, parts, strict=True)}
    return tensors


def _write_model(
    folder: Path,
    weights: Mapping[str, Weight],
    config: DiaConfig,
    quantized: Mapping[str, object] | None,
    max_shard_bytes: int,
) -> None:
    stored = to_bnb_tensors(transformers_tensors(weights, config))
    tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
    description = {"torch_dtype": str(weights["decoder.head.weight"].dtype).removeprefix("torch.")}
    content: dict[str, object] = {**config.to_dict(), **description}
    if quantized is not None:
        content["quantization_config"] = {"quant_method": "dia-engine", **quantized}
    _write_json(folder / CONFIG, content)
    _write_shards(folder, _split(tensors, max_shard_bytes))


def _split(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """Consecutive groups of at most `limit` bytes, or of one tensor."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_shards(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    if len(shards) == 1:
        write_tensors(folder / SAFETENSORS, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    _write_json(folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _naming_full_disks(folder: Path) -> Iterator[None]:
    """Errors of the disk, each with the folder that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"could not write {folder}: {error.strerror or first_line(error)}") from None
