"""Many steps in one go: decode steps captured in CUDA graphs, and the loop that replays them until a batch has ended.

A step costs a GPU less time than Python needs to launch its kernels, so several steps are captured as one graph. A
graph holds addresses: it belongs to one set of slots, whose tensors stay where they are. Smaller batches use the first
slots of the same tensors, with a graph of their own.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..cuda_graph import captured
from ..model.dia import DiaModel
from ..model.state import DecodeState
from .turn import Turn

STEPS_PER_GRAPH = 8
SLOT_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


class Stepper:
    """Makes the steps of a model: captured on a GPU, one by one elsewhere or with `graph=False`.

    One batch at a time: `lock` is held by whoever uses a state from `state_for` until its codes are read.
    """

    def __init__(self, model: DiaModel, graph: bool = True):
        self.model = model
        self.captures = graph and model.device.type == "cuda"
        self.lock = Turn()
        self._state: DecodeState | None = None
        self._launch_sizes = (STEPS_PER_GRAPH, 1) if self.captures else (1,)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}  # by slots and steps

    def state_for(self, slots: int, rows: int, text: int) -> DecodeState:
        """A state of at least `slots` stopped slots with room for `rows` decoder rows and `text` bytes.

        With graphs it is always the same memory, sized for any request, and allocated and captured anew only when more
        slots are asked for than ever before.
        """
        if not self.captures:
            return DecodeState.allocate(self.model.config, slots, rows, text, self.model.dtype, self.model.device)
        # More than the largest of SLOT_COUNTS are captured as asked for, and serve smaller batches from then on.
        captured_slots = () if self._state is None else (self._state.slots,)
        count = min((count for count in (*SLOT_COUNTS, *captured_slots) if count >= slots), default=slots)
        if self._state is None or self._state.slots < count:
            self._capture(count)
        state = self._state.first(count)
        state.stop()
        return state

    def run(self, state: DecodeState, progress: Callable[[int], None] | None = None) -> None:
        """Step until every slot has stopped; `progress` is told the number of steps just launched."""
        for _ in self.looks(state, progress):
            pass

    def looks(
        self,
        state: DecodeState,
        progress: Callable[[int], None] | None = None,
        stops: Iterator[int] | None = None,
    ) -> Iterator["Look"]:
        """Step until every slot has stopped, with a look at the slots behind each launch.

        Args:
            state: whose slots run.
            progress: is told the number of steps just launched.
            stops: ascending numbers of steps, without end, each of which a launch must end at.

        Yields:
            looks in the order of the launches, each to be used before the next is asked for. `Look.wait` comes first.
        """
        looks = deque([Look(state), Look(state)] if state.grid.is_cuda else [Look(state)])
        made, launched, stop = 0, 0, 0
        while True:
            while stops is not None and stop <= made:
                stop = next(stops)
            steps = self._launch_size(stop - made if stops is not None else STEPS_PER_GRAPH)
            self._launch(state, steps)
            looks[-1].ask()
            made, launched = made + steps, launched + 1
            if progress is not None:
                progress(steps)
            # With two looks, one launch is always queued behind the one whose end is awaited: the GPU never waits.
            if launched >= len(looks):
                yield looks[0]
                looks[0].wait()
                if looks[0].all_stopped():
                    return
            looks.rotate(-1)

    def _launch_size(self, most: int) -> int:
        return next(size for size in self._launch_sizes if size <= most)

    def _launch(self, state: DecodeState, steps: int) -> None:
        if self.captures:
            self._graphs[state.slots, steps].replay()
        else:
            self._steps(state, steps)

    def _steps(self, state: DecodeState, count: int) -> None:
        for _ in range(count):
            self.model.step(state)

    def _capture(self, slots: int) -> None:
        """Allocate for `slots` and capture graphs for every count up to it, the largest first, in one memory pool.

        All slots are stopped meanwhile, so the warm-up and the capture leave nothing behind that a request would see.
        """
        config = self.model.config
        rows, text = config.decoder.max_position_embeddings, config.encoder.max_position_embeddings
        self._graphs, self._state = {}, None  # before the new memory is asked for
        state = DecodeState.allocate(config, slots, rows, text, self.model.dtype, self.model.device)
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.model.device)
        for count in sorted({count for count in (*SLOT_COUNTS, slots) if count <= slots}, reverse=True):
            part = state.first(count)
            for steps in self._launch_sizes:
                self._graphs[count, steps] = captured(lambda: self._steps(part, steps), pool, stream)
        self._state = state


class Look:
    """A look at the slots that does not hold up the GPU: copied to the host's memory behind the work so far.

    Attributes, as of the launch: position, countdown, end_row [B] int64 on the CPU, see `DecodeState`.
    """

    def __init__(self, state: DecodeState):
        self._fields = [state.position, state.countdown, state.end_row]
        on_gpu = state.grid.is_cuda
        self._copies = torch.empty((3, state.slots), dtype=torch.int64, device="cpu", pin_memory=on_gpu)
        self.position, self.countdown, self.end_row = self._copies
        self._done = torch.cuda.Event(blocking=True) if on_gpu else None  # a wait does not spin

    def ask(self) -> None:
        for copy, field in zip(self._copies, self._fields):
            copy.copy_(field, non_blocking=True)
        if self._done is not None:
            self._done.record()

    def ready(self) -> bool:
        return self._done is None or self._done.query()

    def wait(self) -> None:
        """Until the work before `ask` is done."""
        if self._done is not None:
            self._done.synchronize()

    def all_stopped(self) -> bool:
        return not self.countdown.any()
