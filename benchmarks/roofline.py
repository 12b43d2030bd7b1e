"""The least that a decode step must read, and how fast this machine could read it."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from dia_engine.kernels.cpu.build import library
from dia_engine.kernels.cpu.matmul import thread_count
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


# Bytes a second of the memory, as the data sheets have it, by the whole name that torch gives: a "Laptop GPU" or a
# "SUPER" behind it is another card.
DATA_SHEET_BANDWIDTH = {
    "NVIDIA H200": 4800e9,
    "NVIDIA H100 80GB HBM3": 3352e9,
    "NVIDIA H100 NVL": 3938e9,
    "NVIDIA H100 PCIe": 2039e9,
    "NVIDIA A100-SXM4-80GB": 2039e9,
    "NVIDIA A100 80GB PCIe": 1935e9,
    "NVIDIA A100-SXM4-40GB": 1555e9,
    "NVIDIA A100-PCIE-40GB": 1555e9,
    "NVIDIA L40S": 864e9,
    "NVIDIA L4": 300e9,
    "NVIDIA A10G": 600e9,
    "NVIDIA RTX A6000": 768e9,
    "NVIDIA RTX A4000": 448e9,
    "NVIDIA GeForce RTX 5090": 1792e9,
    "NVIDIA GeForce RTX 4090": 1008e9,
    "NVIDIA GeForce RTX 3090": 936e9,
    "Tesla T4": 320e9,
}


def data_sheet_bandwidth(device: torch.device) -> float | None:
    """Bytes a second that a GPU's memory can move: the data sheet's, else from its clock and width; None if neither is
    known, and for a CPU."""
    if device.type != "cuda":
        return None
    known = DATA_SHEET_BANDWIDTH.get(torch.cuda.get_device_name(device))
    if known is not None:
        return known
    properties = torch.cuda.get_device_properties(device)
    kilohertz, bits = (getattr(properties, field, 0) for field in ("memory_clock_rate", "memory_bus_width"))
    return 2 * kilohertz * 1e3 * bits / 8 or None  # both edges of the clock carry data


def copy_bandwidth(device: torch.device, bytes_moved: int | None = None, repeats: int = 10) -> float:
    """Bytes a second that a copy on the device moves, reads and writes counted; the best of some repeats.

    Args:
        bytes_moved: by one copy, 4 GB on a GPU or half of its free memory, 1 GB on a CPU: a short copy would be timed
            with its launch.
    """
    on_gpu = device.type == "cuda"
    if bytes_moved is None:
        bytes_moved = min(4 * 10**9, torch.cuda.mem_get_info(device)[0] // 2) if on_gpu else 2**30
    source = torch.ones(bytes_moved // 8, device=device)
    target = torch.ones_like(source)
    seconds = _seconds_on_gpu if on_gpu else _seconds
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(repeats))


def read_bandwidth(bytes_read: int = 2**30, repeats: int = 8) -> float | None:
    """Bytes a second that the threads of the compiled step read from a CPU's memory; the best of some repeats. None
    where there is no compiled step."""
    functions = library()
    if functions is None:
        return None
    memory = torch.ones(bytes_read // 8, dtype=torch.int64)  # written, so that each page is there
    read = partial(functions.read_memory, memory.data_ptr(), memory.nbytes, thread_count())
    return memory.nbytes / min(_seconds(read) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _seconds_on_gpu(work: Callable[[], object]) -> float:
    """By the GPU's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def bandwidth_in_words(measured: float, device: torch.device) -> str:
    """Such as "3012 GB/s copied, 90 % of the data sheet's 3352"."""
    sheet = data_sheet_bandwidth(device)
    share = f", {measured / sheet:.0%} of the data sheet's {sheet / 1e9:.0f}" if sheet else ""
    return f"{measured / 1e9:.0f} GB/s copied{share}"


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has always finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
