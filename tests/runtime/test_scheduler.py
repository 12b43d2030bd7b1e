"""The scheduler's slots: who gets one and when, over a runner that is only arithmetic; and who fails with whom."""

from collections import Counter

import pytest

from dia_engine.runtime.call import Call
from dia_engine.runtime.runner import SlotStatus
from dia_engine.runtime.scheduler import Scheduler
from tests.runtime.helpers import (
    MAX_DELAY,
    SIZES,
    ArithmeticRunner,
    add_streams,
    chunks_of,
    request,
    run,
    scheduler_over,
    second_of_three_fails,
)


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
    second_of_three_fails(scheduler, "its codec fails")


def test_a_request_whose_prefill_fails_fails_alone(monkeypatch):
    runner = ArithmeticRunner()
    scheduler, prefill = scheduler_over(runner), runner.prefill

    def failing(slot, request):
        yield 1
        if request.seed == 0:
            raise ValueError("its prefill fails")
        yield from prefill(slot, request)

    runner.prefill = failing
    calls = add_streams(scheduler, 2, frames=9)
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
