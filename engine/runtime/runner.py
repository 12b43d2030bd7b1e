"""The slots of a model on its device: prefill, decode steps captured in CUDA graphs, the status of every slot.

A decode step costs a GPU less time than Python needs to launch its kernels, so several steps are captured as one graph.
A graph holds addresses: it belongs to one set of slots, whose tensors stay where they are. Where only the first slots
are in use, a graph of fewer slots runs on the first part of the same tensors.
"""

import logging
import time
from collections import deque
from collections.abc import Generator
from functools import partial
from typing import NamedTuple

import torch

from ..devices.cuda_graph import GraphPool
from ..devices.refusal import Refusal
from ..devices.slow_steps import SlowSteps
from ..kernels.advance import RUNNING
from ..kernels.tuning import text_graphs_are_on
from ..model.cache import PrefixCache
from ..model.delay import playable_codes
from ..model.dia import DiaModel
from ..model.shapes import decoder_weights
from ..model.state import DecodeState, copy_to
from ..model.text_graphs import TextGraphs
from .request import Request

logger = logging.getLogger(__name__)

DAMAGED = "its weights are damaged, or training went wrong"
NON_FINITE_CAUSES = {
    torch.float16: "float16 cannot hold some activations: use bfloat16 or float32",
    torch.bfloat16: DAMAGED,
    torch.float32: DAMAGED,
}

STEPS_PER_LAUNCH = (8, 4, 2, 1)
SLOT_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
DEFAULT_CPU_SLOTS = 8


class SlotStatus(NamedTuple):
    """State of a slot after a launch; the fields are those of `DecodeState`."""

    position: int
    countdown: int
    end_row: int
    broken: int = 0

    @property
    def stopped(self) -> bool:
        return self.countdown == 0

    @property
    def running(self) -> bool:
        """Whether the request still generates: neither EOS nor `max_tokens` has been reached."""
        return self.countdown == RUNNING


class ModelRunner:
    """Runs a model for up to `max_slots` requests at a time. The only one that touches the model's device.

    Attributes:
        model: what runs.
        max_slots: requests at a time.
        max_rows: decoder rows per slot.
        launches: how many there have been; the last one has this number.
    """

    def __init__(
        self, model: DiaModel, *, graph: bool = True, max_slots: int | None = None, max_rows: int | None = None
    ):
        """On a GPU memory for slots is allocated as it is used, at most half of what is free now unless `max_slots`
        says otherwise; `graph=False` launches the kernels of each step one by one."""
        self.model = model
        self.on_gpu = model.device.type == "cuda"
        self.captures = graph and self.on_gpu
        self.max_rows = max_rows or model.config.decoder.max_position_embeddings
        self.max_slots = max_slots or default_slots(self._free_bytes() if self.on_gpu else None, self.slot_bytes())
        self.launches = 0
        self._slow_steps = SlowSteps()
        self._state: DecodeState | None = None
        self._parts: dict[range, DecodeState] = {}  # some slots of the state
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}  # by slots and steps
        self._pool: GraphPool | None = None
        self._snapshots: deque[Snapshot] = deque()  # of launches whose status has not been read, in their order
        self._spare_snapshots: list[Snapshot] = []
        self._reads: dict[int, torch.cuda.Event] = {}  # by slot: when its codes have been gathered
        self._text_graphs = TextGraphs(model, self.captures) if self.on_gpu and text_graphs_are_on() else None
        self._prefixes = PrefixCache(self.slot_bytes())
        self._refusal = Refusal(logger)  # of memory for more slots

    @property
    def state(self) -> DecodeState:
        """The slots that there is memory for.

        Raises:
            RuntimeError: `ensure_slot` has not allocated any.
        """
        if self._state is None:
            raise RuntimeError("no slot has been allocated")
        return self._state

    @property
    def max_in_flight(self) -> int:
        """How many launches may be in flight: on a GPU two, so that it always has the next one queued."""
        return 2 if self.on_gpu else 1

    @property
    def prefill_budget(self) -> int:
        """Prefill work (in multiplications) that may run between two launches while requests decode: one block of
        prompt rows."""
        return self.model.prefill_rows * decoder_weights(self.model.config)

    def ensure_slot(self, slot: int) -> bool:
        """Allocate memory for a slot unless it has some. After a failure the next try is SECONDS_TO_RETRY later.

        Returns:
            whether the slot has memory.

        Raises:
            torch.OutOfMemoryError: there is no memory for any slot at all.
        """
        if slot < self._slots:
            return True
        if self._refusal.holds:
            return False
        try:
            self._grow(self._rounded_slots(slot + 1))
        except torch.OutOfMemoryError as error:
            if not self._slots:
                raise
            self._refusal.note("%s; further requests wait for a free slot", error)
            return False
        return True

    def prepare(self, slots: int) -> None:
        """Allocate and capture now what up to `slots` requests will use.

        Raises:
            torch.OutOfMemoryError: so many slots do not fit; it says how many do, and those can still be used.
        """
        most = self._rounded_slots(slots)
        if most > self._slots:
            self._grow(most)
        if self._text_graphs is not None:
            self._text_graphs.prepare()
        if self.captures:
            for count in sorted({*(count for count in SLOT_COUNTS if count < most), most}, reverse=True):
                self._ensure_captured(count)

    def prefill(self, slot: int, request: Request) -> Generator[int, None, None]:
        """Assign a free slot to a request and fill the slot's caches, see `DiaModel.text_pieces`. Then call `activate`.

        On a CPU the pieces may run in any thread, one at a time, concurrently with decode steps of other slots. The
        first `next` must be called in the thread that runs the steps.

        Yields:
            the multiplications of each piece, before it is run.
        """
        state, model = self.state, self.model
        if slot in self._reads:  # the grid is still read for the request that had the slot before
            torch.cuda.current_stream(model.device).wait_event(self._reads.pop(slot))
        state.start(slot, len(request.text_ids), request.prompt_codes, request.params, request.seed)
        text = torch.empty(request.text_ids.shape, dtype=torch.int64, device=model.device)
        copy_to(text, request.text_ids)
        prompt, known = request.prompt_codes, self._prefixes.find(request.prompt_codes)
        reader = model if self._text_graphs is None else self._text_graphs
        yield from reader.text_pieces(state, slot, text)
        yield from model.prompt_pieces(state, slot, len(text), len(prompt), known)

    def activate(self, slot: int, request: Request) -> None:
        """Include a request in decode steps from the next launch on. Its prefill must be done."""
        prompt = request.prompt_codes
        if self._prefixes.find(prompt) is None:
            self._prefixes.keep(prompt, self.model.prompt_cache(self.state, slot, len(prompt)))
        self.model.activate(self.state, slot, len(prompt))

    def decode(self, slots: range, most: int) -> int:
        """Launch decode steps for a range of slots.

        Args:
            slots: on a GPU rounded to the slots from 0 to a captured count.
            most: steps at most; a launch has 8, 4, 2 or 1 where graphs are captured, else 1.

        Returns:
            the number of steps launched.
        """
        if self.captures:
            slots = range(self._rounded_slots(slots.stop))
            self._ensure_captured(len(slots))
        steps = next(size for size in self._launch_sizes if size <= most)
        snapshot = self._spare_snapshots.pop() if self._spare_snapshots else Snapshot(self.state)
        started = time.perf_counter()
        self._launch(slots, steps)
        if not self.on_gpu and self.model.compiled_step is None:  # whose threads do not wait for each other
            self._slow_steps.record(time.perf_counter() - started, len(slots))
        self.launches += 1
        snapshot.take(self.launches)
        self._snapshots.append(snapshot)
        return steps

    def lend_threads(self, count: int) -> None:
        """Let subsequent steps use `count` additional threads. Has an effect with the compiled CPU step only."""
        if self.model.compiled_step is not None:
            self.model.compiled_step.spare_threads = count

    @property
    def in_flight(self) -> int:
        """Launches whose status has not been read."""
        return len(self._snapshots)

    def status_ready(self) -> bool:
        """Whether `read_status` would not wait."""
        return self._snapshots[0].ready()

    def read_status(self) -> tuple[int, list[SlotStatus]]:
        """Wait for the oldest launch in flight -> its number, and the status of every slot after it."""
        snapshot = self._snapshots.popleft()
        rows = snapshot.read()
        if snapshot.slots == self._slots:  # they have not grown since
            self._spare_snapshots.append(snapshot)
        return snapshot.launch, [SlotStatus(*fields) for fields in zip(*rows, strict=True)]

    def codes(self, slot: int, first: int, frames: int) -> torch.Tensor:
        """Codes [frames, C] int64 in [0, eos) of a slot, on the device, gathered on the current stream.

        Args:
            first: frame to begin with, those of the prompt included. All of them are complete by a status that was
                read, so that the current stream need not wait for the launches behind it.
        """
        config = self.model.config
        codes = playable_codes(self.state.grid[slot], config.delay_pattern, config.eos_token_id, first, frames)
        if codes.is_cuda:
            self._reads[slot] = torch.cuda.Event()
            self._reads[slot].record()
        return codes

    def release(self, slot: int) -> None:
        """Stop a slot, so that another request can have it."""
        self.state.release(slot)

    def non_finite_error(self, row: int) -> RuntimeError:
        """The error of a request whose slot is broken: the logits of decoder row `row` were NaN or infinite."""
        name = str(self.model.dtype).removeprefix("torch.")
        cause = NON_FINITE_CAUSES[self.model.dtype]
        return RuntimeError(
            f"the model's numbers are NaN or infinite at decoder row {row}, computed in {name}: {cause}"
        )

    def forget_launches(self) -> None:
        """Discard the status of launches in flight, after one has failed."""
        self._snapshots.clear()
        self._spare_snapshots.clear()

    @property
    def _launch_sizes(self) -> tuple[int, ...]:
        return STEPS_PER_LAUNCH if self.captures else (1,)

    @property
    def _slots(self) -> int:
        return 0 if self._state is None else self._state.slots

    def _rounded_slots(self, slots: int) -> int:
        """`slots` rounded up to a number of slots that is allocated and captured."""
        if not self.on_gpu:
            return self.max_slots  # memory that is not written takes none
        return min((count for count in (*SLOT_COUNTS, self.max_slots) if count >= slots), default=slots)

    def _grow(self, slots: int) -> None:
        """Reallocate the state for `slots` slots and move the existing ones into it.

        Raises:
            torch.OutOfMemoryError: it does not fit; the old state stays in use.
        """
        if self.on_gpu:
            self._make_room(slots)
        config, model = self.model.config, self.model
        text = config.encoder.max_position_embeddings
        try:
            grown = DecodeState.allocate(config, slots, self.max_rows, text, model.dtype, model.device)
        except torch.OutOfMemoryError:
            grown = None  # and out of here: the error's frames hold memory
        if grown is None:
            # What was tried does not fit, whatever the bytes say: fragments take some as well.
            raise self._out_of_memory(slots, min(self._free_bytes(), slots * self.slot_bytes() - 1))
        if self._state is not None:
            for event in self._reads.values():  # of the memory that is given up here
                torch.cuda.current_stream(model.device).wait_event(event)
            self._state.move_to(grown)
            if self._state.grid.is_cuda:
                torch.cuda.synchronize(model.device)  # codes are gathered on a stream that does not wait for this one
        else:
            self._state = grown
        self._refusal.end()
        self._graphs, self._pool, self._parts = {}, None, {}
        self._spare_snapshots.clear()

    def _make_room(self, slots: int) -> None:
        """Give up what is kept of prompts where so many slots need its memory.

        Raises:
            torch.OutOfMemoryError: they would not fit then either.
        """
        needed, room = slots * self.slot_bytes(), self._free_bytes()
        if room < needed <= room + self._prefixes.nbytes:
            self._prefixes.clear()
            room = self._free_bytes()
        if room < needed:
            raise self._out_of_memory(slots, room)

    def _out_of_memory(self, slots: int, room: int) -> torch.OutOfMemoryError:
        each = self.slot_bytes()
        fitting = max((count for count in SLOT_COUNTS if count <= room // each), default=0)
        return torch.OutOfMemoryError(
            f"{slots} requests at once need {slots * each / 1e9:.2f} GB of GPU memory beside the weights and "
            f"{room / 1e9:.2f} GB are free: at most {max(fitting, self._slots)} fit"
        )

    def slot_bytes(self) -> int:
        """Bytes of device memory per slot."""
        config = self.model.config
        text = config.encoder.max_position_embeddings
        return DecodeState.bytes_per_slot(config, self.max_rows, text, self.model.dtype)

    def _free_bytes(self) -> int:
        """Bytes of GPU memory that can still be allocated: free, or cached by torch's allocator."""
        device = self.model.device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept

    def _part(self, slots: range) -> DecodeState:
        if slots not in self._parts:
            self._parts[slots] = self.state.part(slots)
        return self._parts[slots]

    def _launch(self, slots: range, steps: int) -> None:
        if self.captures:
            self._graphs[len(slots), steps].replay()
        else:
            self._steps(self._part(slots), steps)

    def _steps(self, state: DecodeState, count: int) -> None:
        for _ in range(count):
            self.model.step(state)

    def _ensure_captured(self, slots: int) -> None:
        """Capture graphs of the first slots, all in one memory pool.

        All slots are stopped meanwhile: a step of a stopped slot leaves nothing behind that its next step would see.
        """
        if (slots, self._launch_sizes[-1]) in self._graphs:
            return
        self._pool = self._pool or GraphPool(self.model.device)
        countdown = self.state.countdown.clone()
        self.state.countdown.zero_()
        part = self._part(range(slots))
        try:
            for steps in self._launch_sizes:
                self._graphs[slots, steps] = self._pool.capture(partial(self._steps, part, steps))
        finally:
            self.state.countdown.copy_(countdown)


def default_slots(free: int | None, slot_bytes: int) -> int:
    """Number of slots of an engine without `max_slots`.

    Args:
        free: bytes of GPU memory beside model and codec, of which slots may use half; None on a CPU.
        slot_bytes: memory per slot.
    """
    return DEFAULT_CPU_SLOTS if free is None else max(1, min(SLOT_COUNTS[-1], free // 2 // slot_bytes))


class Snapshot:
    """The status of all slots after a launch, copied to the host asynchronously.

    Always copies all allocated slots: a prefix of them would not be contiguous.
    """

    def __init__(self, state: DecodeState):
        on_gpu = state.grid.is_cuda
        self.state, self.slots, self.launch = state, state.slots, 0
        self._copy = torch.empty(state.status.shape, dtype=torch.int64, device="cpu", pin_memory=on_gpu)
        self._done = torch.cuda.Event(blocking=True) if on_gpu else None  # a wait does not spin

    def take(self, launch: int) -> None:
        """Enqueue the copy on the current stream."""
        self.launch = launch
        self._copy.copy_(self.state.status, non_blocking=True)
        if self._done is not None:
            self._done.record()

    def ready(self) -> bool:
        return self._done is None or self._done.query()

    def read(self) -> list[list[int]]:
        """Wait for the copy; returns a list of values per field of `SlotStatus`."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy[:, : self.slots].tolist()
