"""Quantized weights in checkpoint files, as bitsandbytes names and writes them, and as transformers saves them.

    int8   NAME.weight int8 [N, K], NAME.SCB float32 [N], NAME.weight_format (0: by rows)
    NF4    NAME.weight uint8 [N K / 2, 1], NAME.weight.absmax, NAME.weight.quant_map, and a JSON text in
           NAME.weight.quant_state.bitsandbytes__nf4; with double quantization absmax is 8-bit itself, by the tables
           NAME.weight.nested_absmax and NAME.weight.nested_quant_map

`BnbCheckpoint` shows each as one tensor. Ours are written in the same way.
"""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..devices.device import DTYPES
from ..files.tensors import Checkpoint, Header
from ..kernels.quantized import BLOCK, LEVELS, Int8Weight, NF4Weight, Weight, levels_on
from ..messages import first_line, shown

MAX_FLOAT32 = 3.4e38

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE_BYTES = 4096
_BY_ROWS = 0


class BnbCheckpoint:
    """The tensors of a checkpoint by name. The dtype in the header of a quantized one is the name of its format.

    Raises:
        ValueError: a quantized tensor whose parts are missing or damaged, that is quantized twice, or in a format other
            than int8 by rows and NF4 in blocks of 64.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self.title, self.duplicates = checkpoint.title, checkpoint.duplicates
        self.headers = dict(checkpoint.headers)
        self._states: dict[str, _NF4State] = {}
        for name in checkpoint.headers:
            if name.endswith(".SCB"):
                self._join_int8(name.removesuffix("SCB"))
            elif _STATE in name:
                self._join_nf4(name, *name.split(_STATE, 1))

    def read(self, name: str, dtype: torch.dtype) -> Weight:
        """A tensor in the memory of its file, to be gone before the next is read, or a quantized weight of its own.

        NF4 whose rows are no multiple of 64 has blocks that reach over the ends of rows, and comes in float32.

        Args:
            dtype: in which a quantized weight is to be multiplied.
        """
        kind = self.headers[name].dtype
        if kind == "int8":
            absmax = self._copy(f"{name.removesuffix('weight')}SCB").float()
            return Int8Weight(self._copy(name), absmax, dtype)
        return self._read_nf4(name, dtype) if kind == "nf4" else self._checkpoint.read(name)

    def _join_int8(self, module: str) -> None:
        name, scales = f"{module}weight", self.headers.pop(f"{module}SCB")
        header, kind = self.headers.get(name), self.headers.pop(f"{module}weight_format", None)
        if header is None or header.dtype != torch.int8 or len(header.shape) != 2 or header.shape[:1] != scales.shape:
            raise self._error(f"{module}SCB has no int8 weight of as many rows beside it")
        if scales.dtype not in DTYPES.values():
            raise self._error(f"{module}SCB is {scales.dtype}, not floating point")
        if kind is not None:
            if math.prod(kind.shape) != 1 or kind.dtype not in (torch.uint8, torch.int8, torch.int32, torch.int64):
                raise self._error(f"{module}weight_format is {kind.dtype} {list(kind.shape)}, not one integer")
            if int(self._checkpoint.read(f"{module}weight_format")) != _BY_ROWS:
                raise self._error(f"{name} is int8 in an order made for one GPU; save it anew")
        self.headers[name] = Header(header.shape, "int8")

    def _join_nf4(self, state_name: str, name: str, kind: str) -> None:
        if name in self._states:
            raise self._error(f"{name} has two quant_states, {state_name} is the second")
        state = self._read_state(state_name)
        if kind != "nf4" or state.block != BLOCK:
            found, fits = f"{shown(kind)[1:-1]} in blocks of {state.block}", f"nf4 in blocks of {BLOCK}"
            raise self._error(f"{name} is {found}; only {fits} works")
        header, absmax = self.headers.get(name), self.headers.get(f"{name}.absmax")
        size = header and math.prod(header.shape) * getattr(header.dtype, "itemsize", 0)
        if size != -(-math.prod(state.shape) // 2) or absmax is None or absmax.shape != (state.blocks,):
            raise self._error(f"{name} and its scales do not hold the {list(state.shape)} numbers they should")
        self._check_tables(name, absmax, state)
        for suffix in ("absmax", "quant_map", "nested_absmax", "nested_quant_map"):
            self.headers.pop(f"{name}.{suffix}", None)
        self.headers.pop(state_name)
        self.headers[name] = Header(state.shape, "nf4")
        self._states[name] = state

    def _check_tables(self, name: str, absmax: Header, state: "_NF4State") -> None:
        """Check the values of the 16 numbers, and where the scales are 8-bit numbers theirs."""
        self._check_table(f"{name}.quant_map", len(LEVELS))
        if not torch.allclose(self._copy(f"{name}.quant_map").float(), levels_on("cpu"), atol=1e-6):
            raise self._error(f"{name}.quant_map has other values than NF4's")
        if absmax.dtype == torch.uint8:
            if state.nested_block is None:
                raise self._error(f"{name}.absmax is in 8 bits, and its quant_state has no nested_blocksize")
            self._check_table(f"{name}.nested_quant_map", 256)
            self._check_table(f"{name}.nested_absmax", -(-state.blocks // state.nested_block))
        elif absmax.dtype not in DTYPES.values():
            raise self._error(f"{name}.absmax is {absmax.dtype}, not uint8 or floating point")

    def _read_state(self, name: str) -> "_NF4State":
        header = self.headers[name]
        if header.dtype != torch.uint8 or len(header.shape) != 1 or header.shape[0] > _MAX_STATE_BYTES:
            raise self._error(f"{name} is {header.dtype} {list(header.shape)}, not a JSON text in bytes")
        try:
            return _NF4State.parse(bytes(self._copy(name).tolist()))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._error(f"{name} is damaged ({first_line(error)})") from None

    def _check_table(self, name: str, length: int) -> None:
        header = self.headers.get(name)
        if header is None:
            raise self._error(f"{name} is missing")
        if header.dtype not in DTYPES.values() or header.shape != (length,):
            raise self._error(f"{name} is {header.dtype} {list(header.shape)}, not floating point [{length}]")

    def _read_nf4(self, name: str, dtype: torch.dtype) -> Weight:
        shape, absmax = self.headers[name].shape, self._absmax(name)
        packed = self._copy(name).flatten().view(torch.uint8)
        if shape[1] % BLOCK == 0:
            return NF4Weight.from_neighbors(packed, absmax, shape, dtype)
        nibbles = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[: math.prod(shape)]
        values = levels_on("cpu")[nibbles.int()]
        return (values * absmax.repeat_interleave(BLOCK)[: len(values)]).view(shape)

    def _absmax(self, name: str) -> torch.Tensor:
        """The scales of a tensor's blocks [blocks] float32."""
        absmax = self._copy(f"{name}.absmax")
        state = self._states[name]
        if absmax.dtype != torch.uint8 or state.nested_block is None:
            return absmax.float()
        table = self._copy(f"{name}.nested_quant_map").float()
        length = min(state.nested_block, len(absmax))
        scales = self._copy(f"{name}.nested_absmax").float().repeat_interleave(length)
        return table[absmax.int()] * scales[: len(absmax)] + state.nested_offset

    def _copy(self, name: str) -> torch.Tensor:
        return self._checkpoint.read(name).clone()

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self.title}: {what}")


class _NF4State(NamedTuple):
    """What bitsandbytes says of an NF4 weight. `nested_block` is None where its scales are not quantized themselves."""

    shape: tuple[int, int]
    block: int
    nested_block: int | None
    nested_offset: float

    @property
    def blocks(self) -> int:
        return -(-math.prod(self.shape) // BLOCK)

    @classmethod
    def parse(cls, text: bytes) -> "_NF4State":
        """Raises:
        ValueError, KeyError, TypeError: damaged; the message says what.
        """
        state = json.loads(text)
        if not isinstance(state, dict):
            raise ValueError(f"a JSON object is expected, got {shown(state)}")
        shape, offset = state["shape"], state.get("nested_offset", 0.0)
        if not isinstance(shape, list) or len(shape) != 2:
            raise ValueError(f"shape must have two sizes, got {shown(shape)}")
        sizes = {"shape": shape[0], "shape ": shape[1], "blocksize": state["blocksize"]}
        nested = state.get("nested_blocksize")
        for key, size in (sizes if nested is None else {**sizes, "nested_blocksize": nested}).items():
            if type(size) is not int or not 0 < size < 2**31:
                raise ValueError(f"{key.strip()} must be a positive integer, got {shown(size)}")
        if type(offset) not in (int, float) or not abs(offset) < MAX_FLOAT32:
            raise ValueError(f"nested_offset must be a finite number, got {shown(offset)}")
        return cls((shape[0], shape[1]), state["blocksize"], nested, float(offset))


def to_bnb_tensors(weights: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
    """The tensors that a file holds for these weights; names of quantized ones end in `.weight`."""
    tensors = {}
    for name, weight in weights.items():
        if isinstance(weight, Int8Weight):
            module = name.removesuffix("weight")
            tensors[name], tensors[f"{module}SCB"] = weight.values, weight.absmax
            tensors[f"{module}weight_format"] = torch.tensor(_BY_ROWS, dtype=torch.uint8, device="cpu")
        elif isinstance(weight, NF4Weight):
            state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": _dtype_name(weight), "shape": list(weight.shape)}
            text = json.dumps(state).encode()
            tensors[name], tensors[f"{name}.absmax"] = weight.neighbors(), weight.absmax.flatten()
            tensors[f"{name}.quant_map"] = levels_on("cpu")
            tensors[f"{name}{_STATE}nf4"] = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
        else:
            tensors[name] = weight
    return tensors


def _dtype_name(weight: Weight) -> str:
    return str(weight.dtype).removeprefix("torch.")
