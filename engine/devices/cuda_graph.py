"""Work captured in CUDA graphs: a graph is launched in one call, where its kernels one by one would cost more time."""

import gc
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ..kernels.dispatch import disable_dependent_launches

logger = logging.getLogger(__name__)

GraphPool: TypeAlias = Any  # a handle of torch.cuda.graph_pool_handle, whose type is private

WARM_UP_RUNS = 3
_one_at_a_time = threading.Lock()  # torch can hold one capture in a process


def captured(work: Callable[[], None], pool: GraphPool, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of what `work` does, run a few times here: it must bear that.

    Args:
        work: device operations only, over tensors that stay where they are as long as the graph is used.
        pool: memory pool that graphs share which never run at the same time.
        stream: to warm up and capture on, the same for all of a pool, on the current device; the graph's kernels get
            its priority.

    A capture that fails with dependent launches, which some drivers refuse in a graph, is tried once more without: they
    stay off for the rest of the process, with one warning.

    Raises:
        torch.OutOfMemoryError: no room for the graph.
        RuntimeError: CUDA cannot capture this.
    """
    with _one_at_a_time:
        try:
            return _captured(work, pool, stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not disable_dependent_launches(stream.device):
                raise
            reason = str(error).partition("\n")[0]
        logger.warning("a capture failed (%s): dependent launches are off from here on, steps take longer", reason)
        return _captured(work, pool, stream)


def _captured(work: Callable[[], None], pool: GraphPool, side: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_RUNS):  # compiles kernels, chooses algorithms, allocates their workspaces
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # A collection during the capture may unload a kernel, which is not allowed then.
    collecting = gc.isenabled()
    gc.disable()
    try:
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            work()
    finally:
        if collecting:
            gc.enable()
    graph.replay()  # a capture executes nothing: this run finds out what does not replay
    torch.cuda.synchronize()
    return graph
