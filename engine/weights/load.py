"""Read a checkpoint of either published layout into our fused weights."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..devices.device import DTYPES
from ..files.tensors import Checkpoint, require_finite, require_fit
from ..kernels.cpu.pages import empty_weight
from ..kernels.quantized import FORMATS, QuantWeight, Weight, as_dense
from ..messages import listed
from ..model.config import DiaConfig
from ..model.shapes import parameter_shapes
from .bitsandbytes import BnbCheckpoint
from .layouts import IGNORED_NAMES, NARI, TRANSFORMERS, Layout, Piece, tensor_table
from .recipes import Recipe, chosen_formats, is_matrix

# Below this many parameters a CPU step is bound by calls, not by memory, and float32 costs nothing.
SMALL_MODEL = 100_000_000
MAX_FLOAT16 = 65504.0

Table = dict[str, list[Piece]]


def default_dtype(config: DiaConfig, device: torch.device) -> torch.dtype:
    """The dtype that is fastest without harm on a device; see `Engine.load`."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if sum(math.prod(shape) for shape in parameter_shapes(config).values()) < SMALL_MODEL:
        return torch.float32
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_weights(
    files: Sequence[Path],
    config: DiaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    recipe: Recipe | None = None,
) -> dict[str, Weight]:
    """Read a checkpoint of either layout: a `DiaCheckpoint`, streamed and gathered. Arguments and errors as there.

    Returns:
        The weights by the names and in the shapes and order of `parameter_shapes(config)`.
    """
    _check_dtype(dtype)  # before any file is opened
    return dict(DiaCheckpoint(files, config).stream(dtype=dtype, device=device, recipe=recipe))


class DiaCheckpoint:
    """The weights of a Dia model in files, of which the headers are read and found to fit the config.

    Attributes:
        layout: whose names the files have.
        formats: name of each weight that the files hold quantized -> its format.

    Host memory while streaming: the weights that go there, one tensor of the checkpoint, and less than a gigabyte. A
    file in torch's format before 1.6 cannot be mapped and is held whole.
    """

    def __init__(self, files: Sequence[Path], config: DiaConfig):
        """Read the headers.

        Args:
            files: all files of one checkpoint, safetensors (`*.safetensors`) or torch (`*.pth`, `*.bin`).
            config: the model that they must fit.

        Raises:
            FileNotFoundError: a file is absent.
            ValueError: a file is damaged or holds more than tensors, or names, shapes or dtypes do not fit the config;
                all of them are listed, before any data is read.
        """
        self._config, self._count = config, len(files)
        self._stored = BnbCheckpoint(Checkpoint(files))
        self.layout, self._table = _fitting_layout(self._stored, config)
        formats = {name: _format(self._stored, pieces) for name, pieces in self._table.items() if is_matrix(name)}
        self.formats = {name: format for name, format in formats.items() if format}

    @property
    def description(self) -> str:
        """Layout and dtypes in words: "nari-labs layout, float32, 1 file"."""
        held = {str(header.dtype).removeprefix("torch.") for header in self._stored.headers.values()}
        dtypes = " and ".join(dtype for dtype in (*FORMATS, *sorted(DTYPES)) if dtype in held)
        return f"{self.layout.title} layout, {dtypes}, {self._count} file{'s' if self._count > 1 else ''}"

    def stream(
        self, *, dtype: torch.dtype, device: torch.device | str, recipe: Recipe | None = None
    ) -> Iterator[tuple[str, Weight]]:
        """The weights one by one in the order of `parameter_shapes`, each complete and owned by the caller.

        Args:
            dtype: float16, bfloat16 or float32; names that end in `norm.weight` are float32 in any case.
            device: where the weights go.
            recipe: what to quantize, each weight from the numbers in the file. What the files hold quantized stays so.

        Raises:
            ValueError: at once: another dtype, a recipe that fits nothing, or files that hold quantized weights of
                other formats than the recipe asks for. While streaming: NaN or infinity in a weight, or numbers
                that float16 cannot hold.
        """
        _check_dtype(dtype)
        formats = chosen_formats(recipe, self._config) if recipe else {}
        if recipe is not None and self.formats:
            check_formats(self._stored.title, self.formats, formats)
            formats = {}
        return self._stream(formats, dtype, device)

    def _stream(
        self, formats: Mapping[str, str], dtype: torch.dtype, device: torch.device | str
    ) -> Iterator[tuple[str, Weight]]:
        for name, shape in parameter_shapes(self._config).items():
            pieces = self._table[name]
            # The helpers' frames end before the caller goes on, so that nothing here keeps a weight or a mapping alive.
            if name in self.formats:
                yield name, _joined(self._stored, pieces, FORMATS[self.formats[name]], dtype, device)
            elif name in formats:
                yield name, _quantized(self._stored, pieces, FORMATS[formats[name]], dtype, device)
            else:
                wanted = torch.float32 if name.endswith("norm.weight") else dtype
                yield name, _assembled(self._stored, pieces, empty_weight(shape, wanted, device))


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}")


def check_formats(title: str, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to quantize what is quantized in other formats than those wanted, both by name of the weight.

    Raises:
        ValueError: they differ.
    """
    if stored != wanted:
        held = " and ".join(sorted(set(stored.values())))
        raise ValueError(
            f"{title} is quantized already, in {held}; load it without quant, or quantize the original anew"
        )


def _format(checkpoint: BnbCheckpoint, pieces: list[Piece]) -> str | None:
    """The one format in which all pieces are stored and can stay, or None."""
    headers = [checkpoint.headers[piece.name] for piece in pieces]
    (kind, *others) = {header.dtype for header in headers}
    if others or not isinstance(kind, str) or kind not in FORMATS or any(piece.inputs_first for piece in pieces):
        return None
    return kind if all(FORMATS[kind].fits(header.shape[1]) for header in headers) else None


def _joined(
    checkpoint: BnbCheckpoint,
    pieces: list[Piece],
    kind: type[QuantWeight],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Weight:
    parts: list[Any] = [checkpoint.read(piece.name, dtype) for piece in pieces]  # of this kind
    joined = kind.join(parts, device)
    _check_numbers(checkpoint, pieces, joined.absmax, dtype)
    return joined


def _quantized(
    checkpoint: BnbCheckpoint,
    pieces: list[Piece],
    kind: type[QuantWeight],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Weight:
    """Piece by piece: the whole matrix is never held before it is quantized."""
    parts: list[Any] = []  # of this kind
    for piece in pieces:
        stored = as_dense(checkpoint.read(piece.name, torch.float32)).to(device)
        parts.append(kind.quantize(piece.as_rows(stored).contiguous(), dtype))
        del stored  # before the next is read
        _check_numbers(checkpoint, [piece], parts[-1].absmax, dtype)
    return parts[0] if len(parts) == 1 else kind.join(parts, device)


def _assembled(checkpoint: BnbCheckpoint, pieces: list[Piece], target: torch.Tensor) -> torch.Tensor:
    for piece, rows in zip(pieces, target.split([piece.rows for piece in pieces]), strict=True):
        _fill(rows, piece, as_dense(checkpoint.read(piece.name, target.dtype)))
    _check_numbers(checkpoint, pieces, target, target.dtype)
    return target


def _fill(rows: torch.Tensor, piece: Piece, stored: torch.Tensor) -> None:
    stored = stored.to(rows.device)  # first, so that a GPU does the rounding and transposing
    if piece.inputs_first:
        stored = stored.to(rows.dtype)  # torch transposes 2.5 times as fast on a CPU where it need not convert
    rows.copy_(piece.as_rows(stored))


def _check_numbers(checkpoint: BnbCheckpoint, pieces: list[Piece], numbers: torch.Tensor, dtype: torch.dtype) -> None:
    """Check weights that were made of these pieces, or the largest values of their blocks.

    Raises:
        ValueError: NaN or infinity, in the file or because `dtype` cannot hold the numbers.
    """
    least, greatest = (bound.item() for bound in torch.aminmax(numbers))  # one pass without a copy, and NaN comes out
    largest = max(-least, greatest)
    if math.isfinite(least) and math.isfinite(greatest) and not (dtype == torch.float16 and largest > MAX_FLOAT16):
        return
    for piece in pieces:
        require_finite(piece.name, as_dense(checkpoint.read(piece.name, torch.float32)), checkpoint.title)
    names, what = " and ".join(piece.name for piece in pieces), str(dtype).removeprefix("torch.")
    raise ValueError(f"{checkpoint.title}: {what} cannot hold the numbers of {names}; use bfloat16 or float32")


def _fitting_layout(checkpoint: BnbCheckpoint, config: DiaConfig) -> tuple[Layout, Table]:
    """The layout that the checkpoint's names belong to and its table, once every tensor is known to fit."""
    adapter = [name for name in checkpoint.headers if ".lora_" in name]
    if adapter:
        raise ValueError(
            f"{checkpoint.title}: holds a LoRA adapter ({listed(adapter[:1])}, ...); merge it into the model first"
        )
    layout, prefix, table = _matching_layout(checkpoint, config)
    ignored = {prefix + name for name in IGNORED_NAMES}
    stored = {name: header for name, header in checkpoint.headers.items() if name not in ignored}
    under = f", under the prefix {prefix}" if prefix else ""
    require_fit(
        f"{checkpoint.title} ({layout.title} layout{under}) does not fit the config",
        stored,
        _shapes(table),
        formats=tuple(FORMATS),
        duplicates=checkpoint.duplicates,
    )
    return layout, table


def _matching_layout(checkpoint: BnbCheckpoint, config: DiaConfig) -> tuple[Layout, str, Table]:
    """The layout and the prefix before its names that give most names in common, and the table under that prefix."""
    found = checkpoint.headers.keys()
    candidates = [
        (layout, prefix, _prefixed(tensor_table(config, layout), prefix))
        for prefix in _prefixes(list(found))
        for layout in (TRANSFORMERS, NARI)
    ]
    best = max(candidates, key=lambda candidate: len(_shapes(candidate[2]).keys() & found))
    if not _shapes(best[2]).keys() & found:
        raise ValueError(f"{checkpoint.title}: no weights of a Dia model; it holds {listed(list(found))}")
    return best


def _prefixes(names: list[str]) -> list[str]:
    """What may stand before a model's own names: nothing, or the first words that all names share."""
    words = os.path.commonprefix(names).split(".")[:-1][:3]  # noqa: RUF071 (letters are meant)
    return ["".join(f"{word}." for word in words[:count]) for count in range(len(words) + 1)]


def _prefixed(table: Table, prefix: str) -> Table:
    return {name: [piece._replace(name=prefix + piece.name) for piece in pieces] for name, pieces in table.items()}


def _shapes(table: Table) -> dict[str, tuple[int, ...]]:
    return {piece.name: piece.shape for pieces in table.values() for piece in pieces}
