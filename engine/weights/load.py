"""Load a checkpoint of either published layout into our fused weights, and write our weights back."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..files.tensors import Checkpoint, Header
from ..kernels.quantized import FORMATS, Weight, plain
from ..model.config import DiaConfig
from ..model.dia import parameter_shapes
from .bitsandbytes import StoredWeights, as_stored
from .layouts import HARMLESS_NAMES, NARI, TRANSFORMERS, Layout, Piece, tensor_table
from .recipes import Recipe, chosen_formats, is_matrix

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_LISTED = 10


def load_weights(
    files: Sequence[Path],
    config: DiaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    recipe: Recipe | None = None,
) -> dict[str, Weight]:
    """Read a checkpoint of either layout.

    Args:
        files: all files of one checkpoint, safetensors (`*.safetensors`) or torch (`*.pth`, `*.bin`).
        config: the model that they must fit.
        dtype: float16, bfloat16 or float32; names that end in `norm.weight` are float32 in any case.
        device: where the weights go.
        recipe: what to quantise, each weight from the numbers in the file. What the files hold quantised stays so.

    Returns:
        The weights by the names and in the shapes and order of `parameter_shapes(config)`.

    Host memory: the weights that go there, one tensor of the checkpoint, and less than a gigabyte. A file written with
    `_use_new_zipfile_serialization=False` cannot be mapped and is held whole.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: a file is damaged or holds more than tensors, or names, shapes or dtypes do not fit the config
            (all of them listed, before any data is read), or `dtype` is none of the three, or the files hold
            quantised weights of other formats than the recipe asks for.
    """
    return dict(stream_weights(files, config, dtype=dtype, device=device, recipe=recipe))


def stream_weights(
    files: Sequence[Path],
    config: DiaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    recipe: Recipe | None = None,
) -> Iterator[tuple[str, Weight]]:
    """The items of `load_weights` one by one, each complete and owned by the caller. Everything is checked before this
    returns; arguments and errors as there."""
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
    formats = chosen_formats(recipe, config) if recipe else {}
    checkpoint = StoredWeights(Checkpoint(files))
    _, table = _fitting_layout(checkpoint, config)
    stored = _stored_formats(checkpoint, table)
    if recipe is not None and stored:
        check_formats(checkpoint.title, stored, formats)
        formats = {}
    return _stream(checkpoint, table, config, stored, formats, dtype, device)


def describe_files(files: Sequence[Path], config: DiaConfig) -> str:
    """A checkpoint's layout and dtypes in words, from the files' headers: "nari-labs layout, float32, 1 file".

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
    """
    checkpoint = StoredWeights(Checkpoint(files))
    layout, _ = _fitting_layout(checkpoint, config)
    stored = {header.dtype for header in checkpoint.headers.values()}
    dtypes = " and ".join(str(dtype).removeprefix("torch.") for dtype in (*FORMATS, *WEIGHT_DTYPES) if dtype in stored)
    return f"{layout.title} layout, {dtypes}, {len(files)} file{'s' if len(files) > 1 else ''}"


def stored_formats(files: Sequence[Path], config: DiaConfig) -> dict[str, str]:
    """Name of each weight that a checkpoint holds quantised -> its format, from the files' headers.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
    """
    checkpoint = StoredWeights(Checkpoint(files))
    _, table = _fitting_layout(checkpoint, config)
    return _stored_formats(checkpoint, table)


def check_formats(title: str, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to quantise what is quantised in other formats than those wanted, both by name of the weight.

    Raises:
        ValueError: they differ.
    """
    if stored != wanted:
        held = " and ".join(sorted(set(stored.values())))
        raise ValueError(
            f"{title} is quantised already, in {held}; load it without quant, or quantise the original anew"
        )


def save_weights(
    weights: Mapping[str, Weight],
    config: DiaConfig,
    folder: str | Path,
    *,
    quantized: Mapping[str, object] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json and safetensors in transformers' layout; all of it appears at `folder` at once, or nothing.

    Args:
        weights: every tensor of `parameter_shapes(config)`, floating point or quantised, on any device.
        config: of this model.
        folder: to be created; an empty one may exist.
        quantized: what config.json is to say of the quantisation.
        max_shard_bytes: above it the weights are split, with an index; a larger tensor gets a file of its own.

    Raises:
        FileExistsError: `folder` is a file or holds something.
        ValueError: the weights do not fit the config (all misfits listed), or max_shard_bytes < 1.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    _check_targets(weights, config)
    stored = as_stored(transformers_tensors(weights, config))
    tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
    description = {"torch_dtype": str(weights["decoder.head.weight"].dtype).removeprefix("torch.")}
    if quantized is not None:
        description["quantization_config"] = {"quant_method": "dia-engine", **quantized}
    with _folder_at_once(Path(folder)) as partial:
        _write_json(partial / "config.json", {**config.to_dict(), **description})
        _write_shards(partial, _split(tensors, max_shard_bytes))


def transformers_tensors(weights: Mapping[str, Weight], config: DiaConfig) -> dict[str, Weight]:
    """Our weights by the names of transformers' model: views of the same memory, nothing is copied."""
    tensors = {}
    for name, pieces in tensor_table(config, TRANSFORMERS).items():
        parts = weights[name].split([piece.rows for piece in pieces])
        tensors |= {piece.name: part for piece, part in zip(pieces, parts)}
    return tensors


def _stream(
    checkpoint: StoredWeights,
    table: dict[str, list[Piece]],
    config: DiaConfig,
    stored: Mapping[str, str],
    formats: Mapping[str, str],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Iterator[tuple[str, Weight]]:
    for name, shape in parameter_shapes(config).items():
        # The helpers' frames end before the caller goes on, so that nothing here keeps a weight or a mapping alive.
        if name in stored:
            yield name, _joined(checkpoint, table[name], FORMATS[stored[name]], dtype, device)
        elif name in formats:
            yield name, _quantized(checkpoint, table[name], FORMATS[formats[name]], dtype, device)
        else:
            wanted = torch.float32 if name.endswith("norm.weight") else dtype
            yield name, _assembled(checkpoint, table[name], torch.empty(shape, dtype=wanted, device=device))


def _stored_formats(checkpoint: StoredWeights, table: dict[str, list[Piece]]) -> dict[str, str]:
    formats = {name: _format(checkpoint, pieces) for name, pieces in table.items() if is_matrix(name)}
    return {name: format for name, format in formats.items() if format}


def _format(checkpoint: StoredWeights, pieces: list[Piece]) -> str | None:
    """The one format in which all pieces are stored and can stay, or None."""
    headers = [checkpoint.headers[piece.name] for piece in pieces]
    (kind, *others) = {header.dtype for header in headers}
    if others or kind not in FORMATS or any(piece.inputs_first for piece in pieces):
        return None
    return kind if all(FORMATS[kind].fits(header.shape[1]) for header in headers) else None


def _joined(checkpoint: StoredWeights, pieces: list[Piece], kind, dtype: torch.dtype, device) -> Weight:
    return kind.join([checkpoint.read(piece.name, dtype) for piece in pieces], device)


def _quantized(checkpoint: StoredWeights, pieces: list[Piece], kind, dtype: torch.dtype, device) -> Weight:
    """Piece by piece: the whole matrix is never held before it is quantised."""
    parts = []
    for piece in pieces:
        stored = plain(checkpoint.read(piece.name, torch.float32)).to(device)
        parts.append(kind.quantize(piece.as_rows(stored).contiguous(), dtype))
        del stored  # before the next is read
    return parts[0] if len(parts) == 1 else kind.join(parts, device)


def _assembled(checkpoint: StoredWeights, pieces: list[Piece], target: torch.Tensor) -> torch.Tensor:
    for piece, rows in zip(pieces, target.split([piece.rows for piece in pieces])):
        _fill(rows, piece, plain(checkpoint.read(piece.name, target.dtype)))
    return target


def _fill(rows: torch.Tensor, piece: Piece, stored: torch.Tensor) -> None:
    stored = stored.to(rows.device)  # first, so that a GPU does the rounding and transposing
    if piece.inputs_first:
        stored = stored.to(rows.dtype)  # torch transposes 2.5 times as fast on a CPU where it need not convert
    rows.copy_(piece.as_rows(stored))


def _fitting_layout(checkpoint: StoredWeights, config: DiaConfig) -> tuple[Layout, dict[str, list[Piece]]]:
    """The layout that the checkpoint's names belong to and its table, once every tensor is known to fit."""
    layout, table, shapes = _matching_layout(checkpoint, config)
    stored = {name: header for name, header in checkpoint.headers.items() if name not in HARMLESS_NAMES}
    problems = {**_misfits(stored, shapes), "duplicate": checkpoint.duplicates}
    _raise_problems(f"{checkpoint.title} ({layout.title} layout) does not fit the config", problems)
    return layout, table


def _matching_layout(
    checkpoint: StoredWeights, config: DiaConfig
) -> tuple[Layout, dict[str, list[Piece]], dict[str, tuple[int, ...]]]:
    """The layout with most names in common, its table, and the shapes of the tensors in it."""
    candidates = []
    for layout in (TRANSFORMERS, NARI):
        table = tensor_table(config, layout)
        shapes = {piece.name: piece.shape for pieces in table.values() for piece in pieces}
        candidates.append((len(shapes.keys() & checkpoint.headers.keys()), layout, table, shapes))
    common, *best = max(candidates, key=lambda candidate: candidate[0])
    if not common:
        held = _listing(list(checkpoint.headers))
        raise ValueError(f"{checkpoint.title}: no weights of a Dia model; it holds {held}")
    return tuple(best)


def _check_targets(weights: Mapping[str, Weight], config: DiaConfig) -> None:
    given = {name: Header(tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
    _raise_problems("these weights do not fit the config", _misfits(given, parameter_shapes(config)))


def _misfits(found: Mapping[str, Header], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """What is wrong with the found tensors, by kind."""
    common = [(name, found[name], shape) for name, shape in wanted.items() if name in found]
    return {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "misshapen": [
            f"{name} {list(header.shape)} instead of {list(shape)}"
            for name, header, shape in common
            if header.shape != shape
        ],
        "not in float16, bfloat16 or float32": [
            f"{name} ({header.dtype})" for name, header, _ in common if header.dtype not in (*FORMATS, *WEIGHT_DTYPES)
        ],
    }


def _raise_problems(summary: str, problems: dict[str, list[str]]) -> None:
    lines = [f"{len(names)} {kind}: {_listing(names)}" for kind, names in problems.items() if names]
    if lines:
        raise ValueError("\n  ".join([f"{summary}:", *lines]))


def _listing(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _split(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """Consecutive groups of at most `limit` bytes, or of one tensor."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_shards(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / file, shard)
        weight_map |= {name: file for name in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})  # transformers wants to be told the framework
    path.chmod(mode)  # safetensors 0.8 leaves files that only their owner can read


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_new_folder(folder: Path) -> None:
    """Refuse to write over anything, or where nothing can be.

    Raises:
        FileExistsError: a file, or a folder that holds something.
        NotADirectoryError, PermissionError: what it would lie in is a file, or may not be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{folder} cannot be created: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be created: no permission to write in {above}")


@contextmanager
def _folder_at_once(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` at the end, and is removed after any failure."""
    folder = folder.expanduser().absolute()
    check_new_folder(folder)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise type(error)(f"{folder} cannot be created: {error.strerror}") from None
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
