"""What a model takes in memory and how many slots fit beside it, before anything is loaded."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from .codec import CodecConfig
from .codec.network import Network
from .messages import shown
from .model.config import DiaConfig
from .model.state import DecodeState
from .runtime.runner import default_slots


@dataclass(frozen=True)
class Footprint:
    """Bytes of an engine's parts, without what prefill and codec hold while they work.

    Attributes:
        weights: of the model.
        codec: of its weights, in float32; 0 where there is none.
        self_cache: keys and values of the rows of one slot, with and without text.
        cross_cache: keys and values of the text of one slot.
        slot: all of one slot, both caches included.
        rows: decoder rows per slot.
    """

    weights: int
    codec: int
    self_cache: int
    cross_cache: int
    slot: int
    rows: int

    def most_slots(self, free: int) -> int:
        """Slots that `free` bytes hold beside model and codec."""
        return max(0, (free - self.weights - self.codec) // self.slot)

    def default_slots(self, free: int, on_gpu: bool) -> int:
        """Number of slots of an engine without `max_slots`, given the free bytes of its device."""
        return default_slots(free - self.weights - self.codec if on_gpu else None, self.slot)


def footprint(config: DiaConfig, dtype: torch.dtype, *, weights: int, codec: int, rows: int) -> Footprint:
    """The memory of a model whose weights take so many bytes, in `dtype` with slots of `rows` rows."""
    text, decoder = config.encoder.max_position_embeddings, config.decoder
    per_position = 2 * decoder.num_hidden_layers * dtype.itemsize  # keys and values
    return Footprint(
        weights=weights,
        codec=codec,
        self_cache=per_position * 2 * rows * decoder.num_key_value_heads * decoder.head_dim,
        cross_cache=per_position * text * decoder.cross_num_key_value_heads * decoder.cross_head_dim,
        slot=DecodeState.bytes_per_slot(config, rows, text, dtype),
        rows=rows,
    )


def codec_bytes(config: CodecConfig) -> int:
    """Bytes of a codec's weights in float32."""
    return sum(tensor.nbytes for tensor in Network(config).state_dict().values())


def free_memory(device: torch.device) -> int:
    """Bytes that are free: of the GPU, or of the machine as Linux counts what is available.

    Raises:
        ValueError: a device of another kind.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        raise ValueError(f"the free memory of device {str(device)!r} is not known")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_slots(config: DiaConfig, dtype: torch.dtype, device: torch.device, *, slots: int | None, rows: int) -> None:
    """Check that full slots would fit an empty device: more of them are a mistake, however short the requests are.

    Args:
        slots: asked for; None is the default, which fits.
        rows: decoder rows per slot.

    Raises:
        ValueError: there are too many.
    """
    if slots is None:
        return
    each = DecodeState.bytes_per_slot(config, rows, config.encoder.max_position_embeddings, dtype)
    total = _total_memory(device)
    most = max(1, total // each)
    if slots > most:
        raise ValueError(
            f"max_slots must be at most {most}, got {shown(slots)}: {device} has {total / 1e9:.1f} GB of memory, and "
            f"each slot of {rows} rows takes up to {each / 1e6:.1f} MB"
        )


def _total_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def verdict(
    mine: Footprint, free: int, device: torch.device, others: Iterable[tuple[str, Footprint]] = ()
) -> Iterator[str]:
    """Whether a model fits, with how many slots, and which quantization (name, footprint) would, in lines."""
    on_gpu = device.type == "cuda"
    needed, most = mine.weights + mine.codec + mine.slot, mine.most_slots(free)
    where = f"{'' if on_gpu else 'memory of '}{device}, {free / 1e9:.2f} GB free"
    if most:
        slots = mine.default_slots(free, on_gpu)
        yield f"{'fits':12}{where}: at most {most} slots, {slots} by default"
        if slots > most:
            yield f"{'':12}all {slots} with full rows would not fit: load with max_slots={most}, or a smaller max_rows"
        return
    yield f"{'too large':12}{where}: with one slot it needs {needed / 1e9:.2f} GB"
    fitting = [f"{name} (at most {other.most_slots(free)} slots)" for name, other in others if other.most_slots(free)]
    yield f"{'':12}" + (f"fits with --quant {' or '.join(fitting)}" if fitting else "no --quant makes it fit")
