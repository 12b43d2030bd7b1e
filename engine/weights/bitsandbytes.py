"""Quantised weights in checkpoint files, as bitsandbytes names and writes them, and as transformers saves them.

    int8   NAME.weight int8 [N, K], NAME.SCB float32 [N], NAME.weight_format (0: by rows)
    NF4    NAME.weight uint8 [N K / 2, 1], NAME.weight.absmax, NAME.weight.quant_map, and a JSON text in
           NAME.weight.quant_state.bitsandbytes__nf4; with double quantisation absmax is 8-bit itself, by the tables
           NAME.weight.nested_absmax and NAME.weight.nested_quant_map

`StoredWeights` shows each as one tensor. Ours are written in the same way.
"""

import json
import math
from collections.abc import Mapping

import torch

from ..files.tensors import Checkpoint, Header
from ..kernels.quantized import BLOCK, Int8Weight, NF4Weight, Weight, levels_on

_STATE = ".quant_state.bitsandbytes__"
_BY_ROWS = 0


class StoredWeights:
    """The tensors of a checkpoint by name. The dtype in the header of a quantised one is the name of its format.

    Raises:
        ValueError: a quantised tensor that is damaged, or in a format other than int8 by rows and NF4 in blocks of 64.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self.title, self.duplicates = checkpoint.title, checkpoint.duplicates
        self.headers = dict(checkpoint.headers)
        self._states: dict[str, dict] = {}
        for name in checkpoint.headers:
            if name.endswith(".SCB"):
                self._join_int8(name.removesuffix("SCB"))
            elif _STATE in name:
                self._join_nf4(*name.split(_STATE))

    def read(self, name: str, dtype: torch.dtype) -> Weight:
        """A tensor in the memory of its file, to be gone before the next is read, or a quantised weight of its own.

        NF4 whose rows are no multiple of 64 has blocks that reach over the ends of rows, and comes in float32.

        Args:
            dtype: in which a quantised weight is to be multiplied.
        """
        kind = self.headers[name].dtype
        if kind == "int8":
            absmax = self._copy(f"{name.removesuffix('weight')}SCB").float()
            return Int8Weight(self._copy(name), absmax, dtype)
        return self._read_nf4(name, dtype) if kind == "nf4" else self._checkpoint.read(name)

    def _join_int8(self, module: str) -> None:
        name, scales = f"{module}weight", self.headers.pop(f"{module}SCB")
        header = self.headers.get(name)
        kind = self.headers.pop(f"{module}weight_format", None)
        if header is None or header.dtype != torch.int8 or (header.shape[0],) != scales.shape:
            raise ValueError(f"{self.title}: {module}SCB has no int8 weight of as many rows beside it")
        if kind is not None and int(self._checkpoint.read(f"{module}weight_format")) != _BY_ROWS:
            raise ValueError(f"{self.title}: {name} is int8 in an order made for one GPU; save it anew")
        self.headers[name] = Header(header.shape, "int8")

    def _join_nf4(self, name: str, kind: str) -> None:
        state_name = f"{name}{_STATE}{kind}"
        try:
            state = json.loads(bytes(self._copy(state_name).tolist()))
            shape, block = tuple(map(int, state["shape"])), int(state["blocksize"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.title}: {state_name} is damaged ({error})") from None
        if kind != "nf4" or block != BLOCK:
            found, fits = f"{kind} in blocks of {block}", f"nf4 in blocks of {BLOCK}"
            raise ValueError(f"{self.title}: {name} is {found}; only {fits} works")
        header = self.headers.get(name)
        size = header and math.prod(header.shape) * getattr(header.dtype, "itemsize", 0)
        absmax = self.headers.get(f"{name}.absmax")
        blocks = -(-math.prod(shape) // BLOCK)
        if size != -(-math.prod(shape) // 2) or absmax is None or math.prod(absmax.shape) != blocks:
            raise ValueError(f"{self.title}: {name} and its scales do not hold the {list(shape)} numbers they should")
        for suffix in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", state_name.removeprefix(f"{name}.")):
            self.headers.pop(f"{name}.{suffix}", None)
        self.headers[name] = Header(shape, "nf4")
        self._states[name] = state

    def _read_nf4(self, name: str, dtype: torch.dtype) -> Weight:
        shape, absmax = self.headers[name].shape, self._absmax(name)
        packed = self._copy(name).flatten().view(torch.uint8)
        if shape[1] % BLOCK == 0:
            return NF4Weight.from_neighbours(packed, absmax, shape, dtype)
        nibbles = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[: math.prod(shape)]
        values = levels_on("cpu")[nibbles.int()]
        return (values * absmax.repeat_interleave(BLOCK)[: len(values)]).view(shape)

    def _absmax(self, name: str) -> torch.Tensor:
        """The scales of a tensor's blocks [blocks] float32."""
        absmax = self._copy(f"{name}.absmax").flatten()
        if absmax.dtype != torch.uint8:
            return absmax.float()
        state, table = self._states[name], self._copy(f"{name}.nested_quant_map")
        scales = self._copy(f"{name}.nested_absmax").repeat_interleave(int(state["nested_blocksize"]))
        return table[absmax.int()] * scales[: len(absmax)] + float(state["nested_offset"])

    def _copy(self, name: str) -> torch.Tensor:
        if name not in self._checkpoint.headers:
            raise ValueError(f"{self.title}: {name} is missing")
        return self._checkpoint.read(name).clone()


def as_stored(weights: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
    """The tensors that a file holds for these weights; names of quantised ones end in `.weight`."""
    tensors = {}
    for name, weight in weights.items():
        if isinstance(weight, Int8Weight):
            module = name.removesuffix("weight")
            tensors[name], tensors[f"{module}SCB"] = weight.values, weight.absmax
            tensors[f"{module}weight_format"] = torch.tensor(_BY_ROWS, dtype=torch.uint8, device="cpu")
        elif isinstance(weight, NF4Weight):
            state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": _dtype_name(weight), "shape": list(weight.shape)}
            text = json.dumps(state).encode()
            tensors[name], tensors[f"{name}.absmax"] = weight.neighbours(), weight.absmax.flatten()
            tensors[f"{name}.quant_map"] = levels_on("cpu")
            tensors[f"{name}{_STATE}nf4"] = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
        else:
            tensors[name] = weight
    return tensors


def _dtype_name(weight: Weight) -> str:
    return str(weight.dtype).removeprefix("torch.")
