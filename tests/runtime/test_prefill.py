"""Prefills that are handed to workers, over a runner that is only arithmetic: who runs them, and in what order."""

import threading
from contextlib import nullcontext

import pytest

from dia_engine.devices.workers import Workers
from dia_engine.runtime.call import Call
from tests.runtime.helpers import (
    HANGS,
    SIZES,
    ArithmeticRunner,
    add_streams,
    chunks_of,
    request,
    run,
    scheduler_by_hand,
    scheduler_with_workers,
    second_of_three_fails,
)


def started(runner) -> list[int]:
    """The slots that requests have begun to run in, in that order."""
    return [slot for kind, slot, *_ in runner.log if kind == "start"]


def test_steps_of_others_go_on_beside_a_prefill():
    runner = ArithmeticRunner(max_slots=2)
    scheduler = scheduler_by_hand(runner)
    calls = add_streams(scheduler, 1, frames=30)
    while not scheduler.running:
        scheduler.step()
    assert not scheduler.workers._jobs, "with nothing else to do the scheduler prefills by itself"
    calls += add_streams(scheduler, 1, frames=30)
    launches = runner.launches
    for _ in range(5):
        scheduler.step()
    assert runner.launches == launches + 5 and started(runner) == [0]
    while scheduler.workers.help():
        pass
    scheduler.step()
    assert started(runner) == [0, 1] and scheduler.running[1].first_launch == runner.launches
    run(scheduler)
    assert [len(chunks_of(call)) for call in calls] == [30, 30]


def test_of_several_that_come_together_the_scheduler_runs_the_first_and_helps_with_more_than_workers_take():
    runner = ArithmeticRunner(max_slots=3)
    scheduler = scheduler_by_hand(runner, workers=1)
    calls = add_streams(scheduler, 3, frames=50)
    scheduler.step()
    first, *others = scheduler.prefilling
    assert not first.prefill.is_handed_over and all(each.prefill.is_handed_over for each in others)
    while len(started(runner)) < 2:
        scheduler.step()
    assert started(runner) == [0, 1], "two were waiting for one worker"
    launches = runner.launches
    for _ in range(9):
        scheduler.step()
    assert runner.launches == launches + 9 and started(runner) == [0, 1], "the worker has the last one in hand"
    run(scheduler)
    assert [len(chunks_of(call)) for call in calls] == [50] * 3


def test_what_arrives_while_a_prefill_is_run_does_not_wait_for_its_end():
    runner = ArithmeticRunner(max_slots=2)
    scheduler = scheduler_by_hand(runner)
    calls = add_streams(scheduler, 1, frames=5)
    scheduler.step()
    assert scheduler.prefilling and not scheduler.running, "more than the budget is left of it"
    calls += add_streams(scheduler, 1, frames=5)
    scheduler.step()
    assert len(scheduler.workers._jobs) == 1
    run(scheduler)
    assert [len(chunks_of(call)) for call in calls] == [5, 5]


def test_new_streams_are_prefilled_before_requests_of_which_nothing_is_heard_until_their_end():
    scheduler = scheduler_by_hand(ArithmeticRunner(max_slots=4))
    for seed, streaming in enumerate((True, False, True, True)):
        scheduler.add(request(9, seed), 0, Call(1, streaming=streaming), SIZES)
    scheduler.step()
    in_order = [job.urgency for job in sorted(scheduler.workers._jobs)]
    _, second, third, fourth = scheduler.prefilling
    assert [urgency.seconds for urgency in in_order] == [third.arrived, fourth.arrived, second.arrived]
    run(scheduler)


def test_a_slot_is_free_when_the_piece_in_progress_no_longer_writes_to_it():
    runner, began, gate = ArithmeticRunner(max_slots=2), threading.Event(), threading.Event()
    prefill, workers = runner.prefill, Workers(1, nullcontext)
    workers.help = lambda **_: False  # the piece that waits is the worker's
    scheduler = scheduler_with_workers(runner, workers)

    def slow(slot, request):
        yield 1
        if request.seed == 1:
            began.set()
            assert gate.wait(HANGS)
            runner.log.append(("written", slot))
        yield from prefill(slot, request)

    runner.prefill = slow
    try:
        calls = add_streams(scheduler, 2, frames=40)
        while not began.is_set():
            scheduler.step()
        calls[1].abort()
        stepping = threading.Thread(target=scheduler.step)
        stepping.start()
        stepping.join(0.05)
        assert stepping.is_alive() and ("release", 1) not in runner.log
        gate.set()
        stepping.join(HANGS)
        assert [kind for kind, slot, *_ in runner.log if kind in ("written", "release") and slot == 1] == [
            "written",
            "release",
        ]
        run(scheduler)
        assert len(chunks_of(calls[0])) == 40
    finally:
        gate.set()
        workers.close()


@pytest.mark.parametrize("before", [True, False], ids=["before the first piece", "behind the last"])
def test_a_request_whose_prefill_fails_fails_alone(before):
    runner = ArithmeticRunner(max_slots=3)
    prefill = runner.prefill

    def failing(slot, request):
        if request.seed == 1 and before:
            raise ValueError("its prefill fails")
        yield from prefill(slot, request)
        if request.seed == 1:
            raise ValueError("its prefill fails")

    runner.prefill = failing
    second_of_three_fails(scheduler_by_hand(runner), "its prefill fails")


def test_after_a_failure_of_the_device_nothing_is_prefilled():
    scheduler = scheduler_by_hand(ArithmeticRunner(max_slots=2))
    calls = add_streams(scheduler, 2, frames=9)
    scheduler.step()
    scheduler.fail_all(RuntimeError("the device has failed"))
    assert scheduler.workers.help() and not scheduler.workers.help(), "a job that was cancelled, and no piece of it"
    for call in calls:
        with pytest.raises(RuntimeError, match="the device has failed"):
            list(call)
