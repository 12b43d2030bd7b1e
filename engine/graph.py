"""Many steps in one go: decode steps captured in CUDA graphs, and the loop that replays them until a batch has ended.

A step costs a GPU less time than Python needs to launch its kernels, so several steps are captured as one graph. A
graph holds addresses: it belongs to one set of slots, whose tensors stay where they are. Smaller batches use the first
slots of the same tensors, with a graph of their own.
"""

import gc
import threading
from collections import deque
from collections.abc import Callable

import torch

from .model import Dia
from .state import DecodeState

STEPS_PER_GRAPH = 8
WARM_UP_STEPS = 3
SLOT_COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Stepper:
    """Makes the steps of a model: captured on a GPU, one by one elsewhere or with `graph=False`.

    One batch at a time: `lock` is held by whoever uses a state from `state_for` until its codes are read.
    """

    def __init__(self, model: Dia, graph: bool = True):
        self.model = model
        self.captures = graph and model.device.type == "cuda"
        self.lock = threading.Lock()
        self._state: DecodeState | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def state_for(self, slots: int, rows: int, text: int) -> DecodeState:
        """A state of at least `slots` stopped slots with room for `rows` decoder rows and `text` bytes.

        With graphs it is always the same memory, sized for any request, and allocated and captured anew only when more
        slots are asked for than ever before.
        """
        if not self.captures:
            return DecodeState.allocate(self.model.config, slots, rows, text, self.model.dtype, self.model.device)
        count = next((count for count in SLOT_COUNTS if count >= slots), slots)
        if self._state is None or self._state.slots < count:
            self._capture(count)
        state = self._state.first(count)
        state.stop()
        return state

    def run(self, state: DecodeState, progress: Callable[[int], None] | None = None) -> None:
        """Step until every slot has stopped; `progress` is told the number of steps just made."""
        make_steps, steps = self._launcher(state)
        looks = deque([_Look(state), _Look(state)] if state.grid.is_cuda else [_Look(state)])
        launched = 0
        while True:
            make_steps()
            looks[-1].ask()
            launched += 1
            if progress is not None:
                progress(steps)
            # With two looks, one launch is always queued behind the one whose end is awaited: the GPU never waits.
            if launched >= len(looks) and looks[0].all_stopped():
                return
            looks.rotate(-1)

    def _launcher(self, state: DecodeState) -> tuple[Callable[[], None], int]:
        if self.captures:
            return self._graphs[state.slots].replay, STEPS_PER_GRAPH
        return lambda: self.model.step(state), 1

    def _capture(self, slots: int) -> None:
        """Allocate for `slots` and capture a graph for every count up to it, the largest first, in one memory pool.

        All slots are stopped meanwhile, so the warm-up and the capture leave nothing behind that a request would see.
        """
        config = self.model.config
        rows, text = config.decoder.max_position_embeddings, config.encoder.max_position_embeddings
        self._graphs, self._state = {}, None  # before the new memory is asked for
        state = DecodeState.allocate(config, slots, rows, text, self.model.dtype, self.model.device)
        pool = torch.cuda.graph_pool_handle()
        for count in sorted({count for count in (*SLOT_COUNTS, slots) if count <= slots}, reverse=True):
            self._graphs[count] = _captured(self.model, state.first(count), pool)
        self._state = state


class _Look:
    """A look at the stop flags that does not hold up the GPU: copied to the host's memory behind the work so far."""

    def __init__(self, state: DecodeState):
        self._countdown = state.countdown
        on_gpu = state.countdown.is_cuda
        self._copy = torch.empty(state.countdown.shape, dtype=state.countdown.dtype, pin_memory=on_gpu)
        self._done = torch.cuda.Event() if on_gpu else None

    def ask(self) -> None:
        self._copy.copy_(self._countdown, non_blocking=True)
        if self._done is not None:
            self._done.record()

    def all_stopped(self) -> bool:
        """As of `ask`; waits until the work before it is done."""
        if self._done is not None:
            self._done.synchronize()
        return not self._copy.any()


def _captured(model: Dia, state: DecodeState, pool) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):  # compiles the kernels
            model.step(state)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A collection during the capture may unload a kernel, which is not allowed then.
    collecting = gc.isenabled()
    gc.disable()
    try:
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            for _ in range(STEPS_PER_GRAPH):
                model.step(state)
    finally:
        if collecting:
            gc.enable()
    graph.replay()  # a capture executes nothing: this run finds out what does not replay
    torch.cuda.synchronize()
    return graph
