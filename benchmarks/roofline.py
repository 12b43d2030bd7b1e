"""The least that a decode step must read, and how fast this machine could read it."""

import math
import time
from collections.abc import Mapping

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


def copy_bandwidth(device: torch.device, megabytes: int = 512, repeats: int = 10) -> float:
    """Bytes a second that a copy on the device moves, reads and writes counted; the best of some repeats."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.ones_like(source)
    best = math.inf
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has always finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
