"""The scheduler: who runs when, over a runner that is only arithmetic; and the main promise over the real one, that a
request gives the same codes alone and in any company."""

import functools
from collections import Counter, deque
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dia_engine import Engine
from dia_engine.codec.windowed import CodeWindows
from dia_engine.codec.workers import DecodeWorkers
from dia_engine.kernels.advance import RUNNING
from dia_engine.runtime.call import Call
from dia_engine.runtime.chunking import ChunkSizes, Window
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import ModelRunner, SlotStatus
from dia_engine.runtime.scheduler import Scheduler, Sequence, _deadline
from dia_engine.sampling_params import ResolvedSamplingParams

MAX_DELAY = 3
SIZES = ChunkSizes(4, 2)


def request(frames: int, seed: int = 0) -> Request:
    """A request that ends after so many frames."""
    params = ResolvedSamplingParams(max_tokens=frames + 1 + MAX_DELAY)
    return Request(torch.zeros(1, dtype=torch.int64), torch.zeros((0, 2), dtype=torch.int64), params, seed)


class ArithmeticRunner:
    """A runner whose slots count their rows. `depth` 2 is that of a GPU: a status is read one launch late."""

    max_rows = 1000
    prefill_budget = 10

    def __init__(self, max_slots: int = 2, depth: int = 1, sizes=(1,)):
        self.max_slots, self.depth, self.sizes = max_slots, depth, sizes
        self.launches, self.log = 0, []
        self.slots = [SlotStatus(0, 0, 0)] * max_slots
        self.ends, self.seeds = [0] * max_slots, [0] * max_slots
        self.flight = deque()

    def fits(self, slot):
        return True

    def prefill(self, slot, request):
        for _ in range(3):
            yield 4
        self.slots[slot] = SlotStatus(0, RUNNING, 0)
        self.ends[slot], self.seeds[slot] = request.params.max_tokens - 1 - MAX_DELAY, request.seed
        self.log.append(("start", slot))

    def decode(self, slots, most):
        steps = next(size for size in self.sizes if size <= most)
        for _ in range(steps):
            self.slots = [self._next(status, end) for status, end in zip(self.slots, self.ends, strict=True)]
        self.launches += 1
        self.log.append(("launch", slots, steps))
        self.flight.append((self.launches, list(self.slots)))
        return steps

    @staticmethod
    def _next(status, end):
        if status.countdown == 0:
            return status
        row = status.position + 1
        if status.countdown == RUNNING and row > end:
            status = SlotStatus(status.position, MAX_DELAY + 1, row)
        countdown = status.countdown - (status.countdown > 0)
        return SlotStatus(status.position + (countdown != 0), countdown, status.end_row)

    @property
    def in_flight(self):
        return len(self.flight)

    def status_ready(self):
        return True

    def lend_threads(self, count):
        self.lent = count

    def read_status(self):
        return self.flight.popleft()

    def codes(self, slot, first, frames):
        return torch.arange(first, first + frames)[:, None] + 1000 * self.seeds[slot]

    def release(self, slot):
        self.slots[slot] = SlotStatus(0, 0, 0)
        self.log.append(("release", slot))

    def forget_launches(self):
        self.flight.clear()


def scheduler_over(runner) -> Scheduler:
    return Scheduler(runner, CodeWindows(torch.device("cpu")), max_delay=MAX_DELAY, frames_per_second=86)


def run(scheduler: Scheduler) -> None:
    for _ in range(10_000):
        if not scheduler.unfinished:
            return
        scheduler.step()
    pytest.fail("it does not end")


def chunks_of(call: Call, index: int = 0) -> np.ndarray:
    return np.concatenate([chunk.audio[:, 0] for chunk in call if chunk.index == index])


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("sizes", [(1,), (8, 4, 2, 1)])
def test_every_request_gets_its_own_frames(depth, sizes):
    scheduler = scheduler_over(ArithmeticRunner(3, depth, sizes))
    calls = [Call(1, streaming=index % 2 == 0) for index in range(9)]
    for index, call in enumerate(calls):
        scheduler.add(request(frames=1 + 5 * index % 23, seed=index), 0, call, SIZES)
        scheduler.step()
    run(scheduler)
    for index, call in enumerate(calls):
        frames = 1 + 5 * index % 23
        assert chunks_of(call).tolist() == [1000 * index + frame for frame in range(frames)]
        (result,) = call.results
        assert (result.frames, result.finish_reason, result.seed) == (frames, "length", index)
        assert result.codes[:, 0].tolist() == [1000 * index + frame for frame in range(frames)]
    assert scheduler.ended == 9 and scheduler.runner.slots == [SlotStatus(0, 0, 0)] * 3


def test_first_come_first_served_and_the_lowest_slot_first():
    runner = ArithmeticRunner(max_slots=2)
    scheduler = scheduler_over(runner)
    order = []
    for index, frames in enumerate((9, 3, 5)):
        call = Call(1, streaming=True)
        call.finish = lambda _, generation: order.append(generation.seed)
        scheduler.add(request(frames, seed=index), 0, call, SIZES)
    run(scheduler)
    starts = [slot for kind, slot, *_ in runner.log if kind == "start"]
    assert starts == [0, 1, 1] and order == [1, 0, 2]
    assert max(launch[1] for launch in runner.log if launch[0] == "launch") == 2


class Occupancy:
    """Notes, whenever a request gets a slot and at each launch, the slots that each group of calls has, and the groups
    that wait for one."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler, self.given, self.launched = scheduler, [], []
        prefill, decode = scheduler.runner.prefill, scheduler.runner.decode

        def noting_prefill(slot, request):
            self.given.append((request.seed, *self.now()))
            return prefill(slot, request)

        def noting_decode(slots, most):
            self.launched.append((*self.now(), len(scheduler.finishing)))
            return decode(slots, most)

        scheduler.runner.prefill, scheduler.runner.decode = noting_prefill, noting_decode

    def now(self) -> tuple[Counter, set]:
        scheduler = self.scheduler
        taken = Counter(each.call.group for each in [*scheduler.prefilling, *scheduler.running.values()])
        return taken, {each.call.group or each.call for each in scheduler.waiting}


def add_pieces(scheduler: Scheduler, script: object, count: int) -> None:
    """The pieces of a script, all of which wait."""
    for index in range(count):
        scheduler.add(request(6 + index % 3, seed=index), 0, Call(1, streaming=False, group=script), SIZES)


@pytest.mark.parametrize("slots", range(1, 10))
def test_a_script_gets_no_slot_beyond_its_share_while_others_wait(slots):
    """Half of the slots, rounded up. It has the rest where nobody else waits."""
    scheduler, script, share = scheduler_over(ArithmeticRunner(max_slots=slots)), "script", (slots + 1) // 2
    occupancy = Occupancy(scheduler)
    add_pieces(scheduler, script, 9 * slots)
    scheduler.step()
    assert len(scheduler.prefilling) + len(scheduler.running) == slots, "nobody else waits"
    for index in range(3 * slots):
        scheduler.add(request(9, seed=100 + index), 0, Call(1, streaming=False), SIZES)
    run(scheduler)
    contested = [(seed, taken[script]) for seed, taken, waiting in occupancy.given if waiting - {script}]
    assert all(before < share for seed, before in contested if seed < 100)
    assert {seed < 100 for seed, _ in contested} == {True, False}, "both got some of the contested slots"
    for taken, waiting, finishing in occupancy.launched:
        used = sum(taken.values()) == slots or not waiting or finishing >= slots
        assert used, "a slot is unused while somebody waits and the codec keeps up"


@pytest.mark.parametrize("slots", range(1, 10))
def test_two_scripts_leave_no_slot_unused(slots):
    scheduler = scheduler_over(ArithmeticRunner(max_slots=slots))
    occupancy = Occupancy(scheduler)
    for script in ("first", "second"):
        add_pieces(scheduler, script, 3 * slots)
    run(scheduler)
    assert occupancy.launched[0][0] == Counter(first=(slots + 1) // 2, second=slots // 2)
    for taken, waiting, finishing in occupancy.launched:
        assert sum(taken.values()) == slots or not waiting or finishing >= slots


def test_a_request_joins_at_the_next_launch_and_its_slot_is_free_at_the_launch_after_its_end():
    runner = ArithmeticRunner(max_slots=1)
    scheduler = scheduler_over(runner)
    for frames in (2, 2):
        scheduler.add(request(frames), 0, Call(1, streaming=True), SIZES)
    run(scheduler)
    kinds = [entry[0] for entry in runner.log]
    rows = 2 + 1 + MAX_DELAY
    assert kinds == ["start", *["launch"] * rows, "release"] * 2


@pytest.mark.parametrize("depth", [1, 2])
def test_an_aborted_call_costs_no_further_launch(depth):
    runner = ArithmeticRunner(max_slots=2, depth=depth)
    scheduler = scheduler_over(runner)
    calls = [Call(1, streaming=True) for _ in range(3)]
    for call in calls:
        scheduler.add(request(frames=50), 0, call, SIZES)
    for _ in range(10):
        scheduler.step()
    calls[0].abort()
    calls[2].abort()  # while it waits
    launches = runner.launches
    scheduler.step()
    assert ("release", 0) in runner.log and runner.launches == launches + 1 and scheduler.ended == 2
    assert list(calls[0]) == [] and calls[0].results == [None]
    run(scheduler)
    assert chunks_of(calls[1]).tolist() == list(range(50))


def test_prefill_of_a_new_request_stays_within_its_budget_between_two_launches():
    runner = ArithmeticRunner(max_slots=4)
    scheduler = scheduler_over(runner)
    for _ in range(4):
        scheduler.add(request(frames=60), 0, Call(1, streaming=True), SIZES)
    run(scheduler)
    first_launch = runner.log.index(("launch", 1, 1))
    assert runner.log[:first_launch] == [("start", 0)], "nobody runs yet: at once"
    starts = [index for index, entry in enumerate(runner.log) if entry[0] == "start"]
    launches = [sum(entry[0] == "launch" for entry in runner.log[:index]) for index in starts]
    assert launches == [0, 2, 3, 4], "a prefill of three pieces of 4 has a budget of 10: one launch within each"


class Broken:
    """What a request's codec makes of its windows: an error for one seed."""

    def __init__(self, windows, seed):
        self.windows, self.seed = windows, seed

    def __getattr__(self, name):
        return getattr(self.windows, name)

    def decode(self, codes, first, last):
        if int(codes[0, 0]) // 1000 == self.seed:
            raise ValueError("its codec fails")
        return self.windows.decode(codes, first, last)


def test_a_request_whose_window_fails_fails_alone():
    scheduler = scheduler_over(ArithmeticRunner())
    scheduler.decoder = Broken(scheduler.decoder, seed=1)
    calls = [Call(1, streaming=True) for _ in range(3)]
    for seed, call in enumerate(calls):
        scheduler.add(request(9, seed), 0, call, SIZES)
    run(scheduler)
    with pytest.raises(ValueError, match="its codec fails"):
        list(calls[1])
    assert len(chunks_of(calls[0])) == len(chunks_of(calls[2])) == 9


def test_a_request_whose_prefill_fails_fails_alone(monkeypatch):
    runner = ArithmeticRunner()
    scheduler, prefill = scheduler_over(runner), runner.prefill

    def failing(slot, request):
        yield 1
        if request.seed == 0:
            raise ValueError("its prefill fails")
        yield from prefill(slot, request)

    runner.prefill = failing
    calls = [Call(1, streaming=True) for _ in range(2)]
    for seed, call in enumerate(calls):
        scheduler.add(request(9, seed), 0, call, SIZES)
    run(scheduler)
    with pytest.raises(ValueError, match="its prefill fails"):
        list(calls[0])
    assert len(chunks_of(calls[1])) == 9


def test_a_launch_that_fails_fails_all_that_run_and_none_that_waits(monkeypatch):
    runner = ArithmeticRunner(max_slots=2)
    scheduler, decode = scheduler_over(runner), runner.decode
    calls = [Call(1, streaming=True) for _ in range(3)]
    for call in calls:
        scheduler.add(request(9), 0, call, SIZES)
    runner.decode = lambda *_: 1 / 0
    while len(scheduler.running) < 2 and scheduler.ended < 2:
        scheduler.step()
    runner.decode = decode
    run(scheduler)
    with pytest.raises(ZeroDivisionError):
        list(calls[0])
    assert len(chunks_of(calls[2])) == 9


def test_windows_of_streams_ahead_of_their_players_give_way_to_a_first_chunk():
    scheduler = scheduler_over(ArithmeticRunner(max_slots=2))
    order = []
    decode = scheduler.decoder.decode
    scheduler.decoder.decode = lambda codes, *part: (order.append(int(codes[0, 0]) // 1000), decode(codes, *part))[1]
    ahead, new, bulk = Call(1, streaming=True), Call(1, streaming=True), Call(1, streaming=False)
    scheduler.add(request(400, seed=0), 0, ahead, ChunkSizes(60, 60))
    while not order:
        scheduler.step()
    scheduler.add(request(70, seed=1), 0, new, ChunkSizes(60, 60))
    while 1 not in order:
        scheduler.step()
    assert order == [0, 1], "0.7 s of audio are ahead: its second window waits"
    new.abort()
    scheduler.add(request(9, seed=2), 0, bulk, SIZES)
    run(scheduler)
    assert chunks_of(ahead).tolist() == list(range(400)) and len(chunks_of(bulk)) == 9


def test_a_codec_that_holds_up_the_steps_decodes_one_window_that_can_wait_between_two_launches():
    """A request that comes in between waits for one, not for those of all."""
    runner = ArithmeticRunner(max_slots=3)
    runner.prefill_budget = 1000  # they run from the same launch on, so that their windows are complete at the same one
    scheduler = scheduler_over(runner)
    calls = [Call(1, streaming=False) for _ in range(3)]
    decode = scheduler.decoder.decode
    scheduler.decoder.decode = lambda *window: (runner.log.append(("window",)), decode(*window))[1]
    for seed, call in enumerate(calls):
        scheduler.add(request(20, seed=seed), 0, call, ChunkSizes(10, 10))
    run(scheduler)
    names = [entry[0] for entry in runner.log if entry[0] in ("launch", "window")]
    last_launch = len(names) - names[::-1].index("launch")
    assert names.count("window") == 6 and ("window", "window") not in pairwise(names[:last_launch])
    assert [chunks_of(call).tolist() for call in calls] == [list(range(1000 * i, 1000 * i + 20)) for i in range(3)]


def test_a_codec_that_holds_up_the_steps_emits_each_chunk_before_it_decodes_the_next():
    runner = ArithmeticRunner(max_slots=3)
    runner.prefill_budget = 1000
    scheduler = scheduler_over(runner)
    calls = [Call(1, streaming=True) for _ in range(3)]
    order, decode = [], scheduler.decoder.decode
    scheduler.decoder.decode = lambda *window: (order.append("window"), decode(*window))[1]
    for seed, call in enumerate(calls):
        call.emit = lambda *_: order.append("chunk")
        scheduler.add(request(5, seed=seed), 0, call, ChunkSizes(10, 10))
    run(scheduler)
    assert order == ["window", "chunk"] * 3


# Windows in threads of their own


class Hand(DecodeWorkers):
    """Workers that do nothing by themselves: a test decodes pieces with `help`, when it likes."""

    def _start_thread(self):
        pass


def scheduler_by_hand(runner, workers: int = 9) -> Scheduler:
    return Scheduler(
        runner, CodeWindows(torch.device("cpu")), max_delay=MAX_DELAY, frames_per_second=86,
        workers=Hand(workers, nullcontext),
    )  # fmt: skip


def finish_steps(scheduler: Scheduler) -> None:
    """Step until only windows are left. None of them is decoded before `help` is the workers' own again."""
    scheduler.workers.help = lambda **_: False
    while scheduler.running or not scheduler.finishing:
        scheduler.step()


def test_steps_go_on_while_windows_are_decoded_and_chunks_come_in_order():
    scheduler = scheduler_by_hand(ArithmeticRunner(max_slots=2))
    calls = [Call(1, streaming=True) for _ in range(2)]
    for seed, call in enumerate(calls):
        scheduler.add(request(30, seed), 0, call, SIZES)
    finish_steps(scheduler)
    assert len(scheduler.finishing) == 2 and scheduler._free == [0, 1], "all steps are done, the slots are free"
    assert all(call._items.empty() for call in calls), "and no window"
    del scheduler.workers.help
    run(scheduler)
    for seed, call in enumerate(calls):
        assert chunks_of(call).tolist() == [1000 * seed + frame for frame in range(30)]


def test_while_several_listeners_wait_the_steps_thread_helps_with_first_windows_between_steps():
    runner = ArithmeticRunner(max_slots=3)
    runner.prefill_budget = 1000
    scheduler = scheduler_by_hand(runner, workers=1)
    calls = [Call(1, streaming=True) for _ in range(3)]
    for seed, call in enumerate(calls):
        call.emit = lambda *_: runner.log.append(("chunk",))
        scheduler.add(request(40, seed), 0, call, ChunkSizes(30, 4))
    while runner.log.count(("chunk",)) < 2:
        scheduler.step()
        assert scheduler.running, "before the steps have come to their end"
    for _ in range(5):
        scheduler.step()
    assert runner.log.count(("chunk",)) == 2, "the worker has one in hand"
    run(scheduler)


def test_from_four_requests_on_steps_use_the_cores_that_have_no_window_to_decode():
    runner = ArithmeticRunner(max_slots=4)
    runner.prefill_budget = 1000
    scheduler = scheduler_by_hand(runner, workers=3)
    lent = []
    for seed in range(4):
        scheduler.add(request(20, seed), 0, Call(1, streaming=True), ChunkSizes(12, 12))
        scheduler.step()
        lent.append(runner.lent)
    assert lent == [0, 0, 0, 3]
    while not scheduler.running[0].pending:
        scheduler.step()
    scheduler.step()
    assert runner.lent == 2, "one of them decodes the first request's window"
    run(scheduler)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_new_streams_first_window_goes_before_all_others(streaming):
    scheduler = scheduler_by_hand(ArithmeticRunner(max_slots=2))
    others, new = Call(1, streaming=streaming), Call(1, streaming=True)
    scheduler.add(request(60, seed=1), 0, others, ChunkSizes(4, 4))
    finish_steps(scheduler)
    scheduler.add(request(60, seed=2), 0, new, ChunkSizes(4, 4))
    while not scheduler.running or not next(iter(scheduler.running.values())).pending:
        scheduler.step()
    del scheduler.workers.help
    if streaming:  # whose own first window came before
        for _ in range(2):
            assert scheduler.workers.help()
    assert [scheduler.workers.help() for _ in range(2)] == [True, True]
    scheduler._emit()
    assert next(new).audio[:, 0].tolist() == [2000, 2001, 2002, 2003]
    run(scheduler)
    assert len(chunks_of(others)) == 60 and len(chunks_of(new)) == 56


def test_windows_of_streams_go_by_when_their_players_run_dry_and_bulk_waits_two_seconds_at_most():
    window, early = Window(0, 9, 4, 8, ends=False), Window(0, 9, 0, 4, ends=False)

    def deadline(streaming: bool, first_emitted: float, window: Window, since: float) -> float:
        sequence = Sequence(request(9), 0, Call(1, streaming=streaming), None, None, first_emitted=first_emitted)
        return _deadline(sequence, window, since, frames_per_second=8)

    assert deadline(True, 0.0, early, since=100.0) < deadline(True, 10.0, window, since=11.0)
    assert deadline(True, 10.0, window, since=10.2) == 10.5, "4 frames of 1/8 s"
    assert deadline(True, 11.0, window, since=10.2) > deadline(True, 10.0, window, since=10.3)
    assert deadline(False, 0.0, window, since=10.2) == 12.2 and deadline(False, 0.0, early, since=10.2) == 12.2
    assert deadline(True, 20.0, window, since=10.2) == 12.2


def test_an_aborted_call_takes_its_windows_along():
    scheduler = scheduler_by_hand(ArithmeticRunner(max_slots=2))
    calls = [Call(1, streaming=True) for _ in range(2)]
    for seed, call in enumerate(calls):
        scheduler.add(request(30, seed), 0, call, SIZES)
    finish_steps(scheduler)
    jobs = [job for job, _ in scheduler.finishing[0].pending]
    calls[0].abort()
    scheduler.step()
    assert scheduler.ended == 1 and jobs and all(job.ready() for job in jobs), "cancelled"
    del scheduler.workers.help
    run(scheduler)
    assert len(chunks_of(calls[1])) == 30


def test_a_request_whose_window_fails_in_a_worker_fails_alone():
    scheduler = scheduler_by_hand(ArithmeticRunner())
    pieces = scheduler.decoder.pieces

    def failing(codes, first, last):
        if int(codes[0, 0]) // 1000 == 1:
            raise ValueError("its codec fails")
        return (yield from pieces(codes, first, last))

    scheduler.decoder.pieces = failing
    calls = [Call(1, streaming=True) for _ in range(3)]
    for seed, call in enumerate(calls):
        scheduler.add(request(9, seed), 0, call, SIZES)
    run(scheduler)
    with pytest.raises(ValueError, match="its codec fails"):
        list(calls[1])
    assert len(chunks_of(calls[0])) == len(chunks_of(calls[2])) == 9


def test_no_more_requests_than_slots_wait_for_the_codec():
    """Or steps, which are faster, would pile windows up without bound."""
    scheduler = scheduler_by_hand(ArithmeticRunner(max_slots=2))
    scheduler.workers.help = lambda **_: False
    calls = [Call(1, streaming=False) for _ in range(9)]
    for seed, call in enumerate(calls):
        scheduler.add(request(5, seed), 0, call, SIZES)
    most = 0
    for _ in range(200):
        scheduler.step()
        most = max(most, len(scheduler.finishing))
    assert 2 <= most <= 4 and scheduler.waiting, "those that had slots when the others ended come in addition"
    del scheduler.workers.help
    run(scheduler)
    assert [len(chunks_of(call)) for call in calls] == [5] * 9


def test_after_a_failure_of_the_device_no_window_is_decoded():
    scheduler = scheduler_by_hand(ArithmeticRunner())
    scheduler.workers.help = lambda **_: False
    call = Call(1, streaming=True)
    scheduler.add(request(9), 0, call, SIZES)
    while not scheduler.finishing:
        scheduler.step()
    jobs = [job for job, _ in scheduler.finishing[0].pending]
    scheduler.fail_all(RuntimeError("the device has failed"))
    assert jobs and all(job.ready() for job in jobs)
    with pytest.raises(RuntimeError, match="the device has failed"):
        list(call)


# The main promise


@dataclass(frozen=True)
class Arrival:
    """A request that comes at a turn of the scheduler, and perhaps leaves at a later one."""

    turn: int
    kind: int
    leaves_after: int | None
    streaming: bool


KINDS = 6
arrivals = st.lists(
    st.builds(
        Arrival,
        turn=st.integers(0, 40),
        kind=st.integers(0, KINDS - 1),
        leaves_after=st.one_of(st.none(), st.integers(0, 30)),
        streaming=st.booleans(),
    ),
    min_size=2,
    max_size=8,
)
FORMATS = [("float32", None), ("bfloat16", None), ("float16", None), ("float32", "int8"), ("bfloat16", "int8"),
           ("float32", "nf4"), ("bfloat16", "nf4")]  # fmt: skip


@functools.cache
def tiny(dtype: str, quant: str | None) -> Engine:
    return Engine.load("synthetic:tiny", dtype=dtype, quant=quant, device="cpu", load_dac=False)


@functools.cache
def kind_of_request(kind: int) -> Request:
    """Requests of different texts, prompts, lengths and parameters."""
    generator = torch.Generator().manual_seed(kind)
    text = torch.randint(1, 250, (3 + 17 * kind,), generator=generator)
    prompt = torch.randint(1024, (30 * (kind % 3), 9), generator=generator)
    params = ResolvedSamplingParams(
        max_tokens=20 + 7 * kind + len(prompt),
        temperature=[0.0, 1.2, 0.7][kind % 3],
        cfg_filter_top_k=[45, None][kind % 2],
    )
    return Request(text, prompt, params, seed=kind)


def codes_in_company(engine: Engine, schedule: list[Arrival], max_slots: int) -> dict[int, np.ndarray]:
    """Codes by the arrival's number, of those that stay to their end."""
    scheduler = Scheduler(
        ModelRunner(engine.model, max_slots=max_slots), CodeWindows(engine.device), max_delay=15, frames_per_second=86
    )
    calls: dict[int, Call] = {}
    turn = 0
    while scheduler.unfinished or len(calls) < len(schedule):
        for number, arrival in enumerate(schedule):
            if arrival.turn == turn:
                calls[number] = Call(1, streaming=arrival.streaming)
                scheduler.add(kind_of_request(arrival.kind), 0, calls[number], ChunkSizes(9, 4))
            elif arrival.leaves_after is not None and turn == arrival.turn + arrival.leaves_after:
                calls[number].abort()
        scheduler.step()
        turn += 1
    found = {}
    for number, call in calls.items():
        chunks = [chunk.audio for chunk in call]
        (result,) = call.results
        if result is not None:
            assert np.array_equal(np.concatenate(chunks), result.codes)
            found[number] = result.codes
    return found


@functools.cache
def codes_alone(dtype: str, quant: str | None, kind: int) -> np.ndarray:
    return codes_in_company(tiny(dtype, quant), [Arrival(0, kind, None, True)], max_slots=1)[0]


def check_any_company(dtype: str, quant: str | None, schedule: list[Arrival], max_slots: int) -> None:
    for number, codes in codes_in_company(tiny(dtype, quant), schedule, max_slots).items():
        assert np.array_equal(codes, codes_alone(dtype, quant, schedule[number].kind))


relaxed = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize(("dtype", "quant"), FORMATS)
@relaxed(max_examples=3)
@given(schedule=arrivals, max_slots=st.integers(1, 5))
def test_the_same_codes_in_any_company(dtype, quant, schedule, max_slots):
    check_any_company(dtype, quant, schedule, max_slots)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "quant"), FORMATS)
@relaxed(max_examples=100)
@given(schedule=arrivals, max_slots=st.integers(1, 8))
def test_the_same_codes_in_any_of_many_companies(dtype, quant, schedule, max_slots):
    check_any_company(dtype, quant, schedule, max_slots)
