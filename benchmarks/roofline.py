"""The least that a decode step must read, and how fast this machine could read it."""

import math
import time

import torch

from engine import Engine


def step_bytes(engine: Engine, batch: int, position: int, text: int) -> int:
    """Bytes that one step of `batch` requests must read, each at decoder row `position` over `text` bytes of script.

    Every decoder weight once in its own format, but of the embedding one row a channel, and of the cross-attention's
    keys and values nothing (they are computed once a request); then the caches as far as they are filled:
    self-attention's for both rows of a request, cross-attention's for the row with text.
    """
    decoder, size = engine.config.decoder, engine.dtype.itemsize
    weights = sum(
        weight.nbytes
        for name, weight in engine.weights.items()
        if name.startswith("decoder.") and "embedding" not in name and ".cross_attn.kv." not in name
    )
    embedding = batch * decoder.num_channels * decoder.hidden_size * size
    self_row = 2 * 2 * decoder.num_key_value_heads * decoder.head_dim * size
    cross_row = 2 * decoder.cross_num_key_value_heads * decoder.cross_head_dim * size
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
