"""Work captured in CUDA graphs: a graph is launched in one call, where its kernels one by one would cost more time."""

import gc
import logging
import threading
from collections.abc import Callable

import torch

from ..kernels.dispatch import disable_dependent_launches
from ..messages import first_line

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 3
LACKS_MEMORY = ("out of memory", "ALLOC_FAILED")  # the second is cuBLAS' and cuDNN's
_one_at_a_time = threading.Lock()  # torch can hold one capture in a process


def lacks_memory(error: RuntimeError) -> bool:
    """Whether the GPU's memory did not suffice. Only torch's own allocator has an error of its own for that."""
    return any(sign in str(error) for sign in LACKS_MEMORY)


class GraphPool:
    """Captures graphs that never run at the same time, and so share the memory of what they compute.

    On a stream of its own. What is done with other streams meanwhile does not disturb a capture: when pinned memory is
    given back in any thread, torch records an event on the streams that it was used on.
    """

    def __init__(self, device: torch.device, *, priority: int = 0, dependent_launches: bool = True):
        """
        Args:
            device: the current one wherever graphs are captured.
            priority: of the graphs' kernels; lower numbers go first.
            dependent_launches: whether the kernels may be launched so, see `dispatch.launches_are_dependent`.
        """
        self._device, self._dependent_launches = device, dependent_launches
        self._stream = torch.cuda.Stream(device, priority=priority)
        self._memory = torch.cuda.graph_pool_handle()
        self._broken: list[torch.cuda.CUDAGraph] = []  # torch's allocator still refers to them

    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of what `work` does, run a few times here: it must bear that.

        Args:
            work: device operations only, over tensors that stay where they are as long as the graph is used.

        A capture that fails with dependent launches, which some drivers refuse in a graph, is tried once more without:
        they stay off for the rest of the process, with one warning.

        Raises:
            torch.OutOfMemoryError: no room for the graph.
            RuntimeError: CUDA cannot capture this.
        """
        with _one_at_a_time:
            try:
                return self._capture(work)
            except RuntimeError as error:
                if lacks_memory(error) or not self._dependent_launches:
                    raise
                if not disable_dependent_launches(self._device):
                    raise
                reason = first_line(error)
            logger.warning("a capture failed (%s): dependent launches are off from here on, steps take longer", reason)
            return self._capture(work)

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream()
        self._warm_up(work, current)
        graph = torch.cuda.CUDAGraph()
        # A collection during the capture may unload a kernel, which is not allowed then.
        collecting = gc.isenabled()
        gc.disable()
        try:
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # torch does not come to that where CUDA gives the capture up
            if not lacks_memory(error):
                self._memory = torch.cuda.graph_pool_handle()  # to torch's allocator the other is still in a capture
                self._broken.append(graph)
            raise
        finally:
            if collecting:
                gc.enable()
        graph.replay()  # a capture executes nothing: this run finds out what does not replay
        torch.cuda.synchronize()
        return graph

    def _warm_up(self, work: Callable[[], None], current: torch.cuda.Stream) -> None:
        """Compile kernels, choose algorithms, allocate their workspaces."""
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):
                    work()
        finally:
            current.wait_stream(self._stream)
