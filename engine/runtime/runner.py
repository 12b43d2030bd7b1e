"""Many steps in one go: decode steps captured in CUDA graphs, and the loop that replays them until a batch has ended.

A step costs a GPU less time than Python needs to launch its kernels, so several steps are captured as one graph. A
graph holds addresses: it belongs to one set of slots, whose tensors stay where they are. Smaller batches use the first
slots of the same tensors, with a graph of their own.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..cuda_graph import captured
from ..model.config import DiaConfig
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
        self._pool = self._stream = None  # of the graphs

    def state_for(self, slots: int, rows: int, text: int) -> DecodeState:
        """A state of at least `slots` stopped slots with room for `rows` decoder rows and `text` bytes.

        With graphs it is always the same memory, sized for any request, and allocated anew only when more slots are
        asked for than ever before. A slot count is captured when it is first needed.

        Raises:
            torch.OutOfMemoryError: so many slots do not fit; it says how many do. Those can still be asked for.
        """
        if not self.captures:
            return DecodeState.allocate(self.model.config, slots, rows, text, self.model.dtype, self.model.device)
        count = self._count_for(slots)
        self._ensure(count, [count])
        state = self._state.first(count)
        state.stop()
        return state

    def prepare(self, slots: int) -> None:
        """Allocate and capture now what batches of up to `slots` requests will use. Without graphs there is nothing.

        Raises:
            torch.OutOfMemoryError: as `state_for`.
        """
        if self.captures:
            most = self._count_for(slots)
            self._ensure(most, sorted({*(count for count in SLOT_COUNTS if count < most), most}, reverse=True))

    def _count_for(self, slots: int) -> int:
        # More than the largest of SLOT_COUNTS are captured as asked for, and serve smaller batches from then on.
        captured_slots = () if self._state is None else (self._state.slots,)
        return min((count for count in (*SLOT_COUNTS, *captured_slots) if count >= slots), default=slots)

    def _ensure(self, most: int, counts: list[int]) -> None:
        """Memory for `most` slots, and graphs for `counts`."""
        grows = self._state is None or self._state.slots < most
        if grows:
            given_up = 0 if self._state is None else self._state.slots * self._slot_bytes()
            room = self._free_bytes() + given_up
            if most * self._slot_bytes() > room:
                raise self._out_of_memory(most, room)
        try:
            if grows:
                self._forget()
                self._allocate(most)
            for count in counts:
                if (count, self._launch_sizes[-1]) not in self._graphs:
                    self._capture(count)
            return
        except torch.OutOfMemoryError:
            pass  # and out of here: the error's frames hold memory
        self._forget()
        # What was tried does not fit, whatever the bytes say: graphs and fragments take some as well.
        raise self._out_of_memory(most, min(self._free_bytes(), most * self._slot_bytes() - 1))

    def _out_of_memory(self, slots: int, room: int) -> torch.OutOfMemoryError:
        each = self._slot_bytes()
        fitting = room // each
        if fitting < SLOT_COUNTS[-1]:
            fitting = max((count for count in SLOT_COUNTS if count <= fitting), default=0)
        return torch.OutOfMemoryError(
            f"{slots} requests at once need {slots * each / 1e9:.2f} GB of GPU memory beside the weights and "
            f"{room / 1e9:.2f} GB are free: at most {fitting} fit"
        )

    def _slot_bytes(self) -> int:
        config = self.model.config
        return DecodeState.bytes_per_slot(config, *_most_rows_and_text(config), self.model.dtype)

    def _free_bytes(self) -> int:
        """Bytes of GPU memory that could still be had: what is free, and what torch keeps for later."""
        device = self.model.device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept

    def _forget(self) -> None:
        """Give up the state and the graphs, which hold addresses in it."""
        self._graphs, self._state, self._pool = {}, None, None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

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

    def _allocate(self, slots: int) -> None:
        config, model = self.model.config, self.model
        self._state = DecodeState.allocate(config, slots, *_most_rows_and_text(config), model.dtype, model.device)

    def _capture(self, count: int) -> None:
        """Capture graphs of the first `count` slots, all in one memory pool.

        All slots are stopped meanwhile, so the warm-up and the capture leave nothing behind that a request would see.
        """
        if self._pool is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.model.device)
        self._state.stop()
        part = self._state.first(count)
        for steps in self._launch_sizes:
            self._graphs[count, steps] = captured(lambda: self._steps(part, steps), self._pool, self._stream)


def _most_rows_and_text(config: DiaConfig) -> tuple[int, int]:
    """Decoder rows and bytes of text of the largest request."""
    return config.decoder.max_position_embeddings, config.encoder.max_position_embeddings


class Look:
    """A look at the slots that does not hold up the GPU: copied to the host's memory behind the work so far.

    One copy of the fields of all slots that the memory holds: those of fewer slots do not lie together.

    Attributes, as of the launch: position, countdown, end_row, broken [B] int64 on the CPU, see `DecodeState`.
    """

    def __init__(self, state: DecodeState):
        on_gpu = state.grid.is_cuda
        self._status = state.status
        self._copy = torch.empty(state.status.shape, dtype=torch.int64, device="cpu", pin_memory=on_gpu)
        self.position, self.countdown, self.end_row, self.broken = self._copy[:, : state.slots]
        self._done = torch.cuda.Event(blocking=True) if on_gpu else None  # a wait does not spin

    def ask(self) -> None:
        self._copy.copy_(self._status, non_blocking=True)
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
