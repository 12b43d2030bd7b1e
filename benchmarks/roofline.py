"""The least that a decode step must read, and how fast this machine could read it."""

import time
from collections.abc import Callable, Mapping

import torch

from dia_engine.model.config import DiaConfig


def is_read_in_step(name: str) -> bool:
    """Whether a step reads a weight whole: the decoder's, but of the embedding one row a channel, and of the
    cross-attention's keys and values nothing (they are computed once a request)."""
    return name.startswith("decoder.") and "embedding" not in name and ".cross_attn.kv." not in name


def step_bytes(config: DiaConfig, sizes: Mapping[str, int], itemsize: int, batch: int, position: int, text: int) -> int:
    """Bytes that one step of `batch` requests must read, each at decoder row `position` over `text` bytes of script.

    Every weight of the step once in its own format, given by name as `sizes` in bytes; then the caches, `itemsize`
    bytes an element, as far as they are filled: self-attention's for both rows of a request, cross-attention's for the
    row with text.
    """
    decoder = config.decoder
    weights = sum(size for name, size in sizes.items() if is_read_in_step(name))
    embedding = batch * decoder.num_channels * decoder.hidden_size * itemsize
    self_row = 2 * 2 * decoder.num_key_value_heads * decoder.head_dim * itemsize
    cross_row = 2 * decoder.cross_num_key_value_heads * decoder.cross_head_dim * itemsize
    caches = batch * decoder.num_hidden_layers * (self_row * position + cross_row * text)
    return weights + embedding + caches


def copy_bandwidth(device: torch.device, repeats: int = 10) -> float:
    """Bytes a second that a copy on the device moves, reads and writes counted; the best of some repeats.

    On a GPU 2 GiB are copied, where the memory that is free allows, and timed there: the host's view of a shorter copy
    is too long by its launch.
    """
    cuda = device.type == "cuda"
    size = min(2**31, torch.cuda.mem_get_info(device)[0] // 4) if cuda else 2**29
    source = torch.ones(size // 4, device=device)
    target = torch.ones_like(source)
    seconds = _seconds_on_gpu if cuda else _seconds_on_cpu
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(repeats))


def _seconds_on_gpu(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _seconds_on_cpu(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bandwidth(device: torch.device) -> float | None:
    """Bytes a second of a GPU's memory by its clock and width, as in its data sheet; None where torch cannot tell."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "memory_clock_rate", None)
    bits = getattr(properties, "memory_bus_width", None)
    return 2 * 1e3 * kilohertz * bits / 8 if kilohertz and bits else None  # two transfers a clock


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has always finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
