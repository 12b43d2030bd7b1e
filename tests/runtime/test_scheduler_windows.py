"""The scheduler and the codec: which window is decoded when and by whom, over a runner that is only arithmetic."""

from itertools import pairwise

import pytest

from dia_engine.devices.workers import Urgency
from dia_engine.runtime.call import Call
from dia_engine.runtime.chunking import ChunkSizes, Window
from dia_engine.runtime.scheduler import Scheduler
from dia_engine.runtime.sequence import Sequence, window_urgency
from tests.runtime.helpers import (
    SIZES,
    ArithmeticRunner,
    add_streams,
    chunks_of,
    request,
    run,
    scheduler_by_hand,
    scheduler_over,
    second_of_three_fails,
)

FOREVER = 1e9  # seconds


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


def scheduler_of_windows(runner, workers: int = 9) -> Scheduler:
    """A scheduler that hands windows over, and prefills by itself."""
    scheduler = scheduler_by_hand(runner, workers)
    scheduler._hand_over_prefills = lambda workers: None
    return scheduler


def finish_steps(scheduler: Scheduler) -> None:
    """Step until only windows are left. None of them is decoded before `help` is the workers' own again."""
    scheduler.workers.help = lambda **_: False
    while scheduler.running or not scheduler.finishing:
        scheduler.step()


def test_steps_go_on_while_windows_are_decoded_and_chunks_come_in_order():
    scheduler = scheduler_of_windows(ArithmeticRunner(max_slots=2))
    calls = add_streams(scheduler, 2, frames=30)
    finish_steps(scheduler)
    assert len(scheduler.finishing) == 2 and scheduler._free == [0, 1], "all steps are done, the slots are free"
    assert [call._items.qsize() for call in calls] == [0, 1], "and of the windows one, which the last stream waited for"
    del scheduler.workers.help
    run(scheduler)
    for seed, call in enumerate(calls):
        assert chunks_of(call).tolist() == [1000 * seed + frame for frame in range(30)]


def test_the_first_window_of_the_only_new_stream_is_decoded_by_the_steps_thread():
    """A worker would take longer, beside the steps' Python code."""
    scheduler = scheduler_of_windows(ArithmeticRunner())
    (call,) = add_streams(scheduler, 1, frames=30)
    finish_steps(scheduler)
    windows = 1 + len(scheduler.finishing[0].pending)
    assert call._items.qsize() == 1 and windows > 2, "the later ones wait for workers"
    del scheduler.workers.help
    run(scheduler)
    assert chunks_of(call).tolist() == list(range(30))


def test_while_several_listeners_wait_the_steps_thread_helps_with_first_windows_between_steps():
    runner = ArithmeticRunner(max_slots=3)
    runner.prefill_budget = 1000
    scheduler = scheduler_of_windows(runner, workers=1)
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
    scheduler = scheduler_of_windows(runner, workers=3)
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
    scheduler = scheduler_of_windows(ArithmeticRunner(max_slots=2))
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

    def urgency(streaming: bool, first_emitted: float, window: Window, since: float, arrived: float = 9.0) -> Urgency:
        call = Call(1, streaming=streaming)
        sequence = Sequence(request(9), 0, call, None, None, arrived=arrived, first_emitted=first_emitted)
        return window_urgency(sequence, window, since, frames_per_second=8)

    assert urgency(True, 0.0, early, since=100.0) < urgency(True, 10.0, window, since=11.0)
    assert urgency(True, 0.0, early, since=13.0) < urgency(True, 0.0, early, since=12.0, arrived=9.1)
    assert urgency(True, 10.0, window, since=10.2) == (True, 10.5), "4 frames of 1/8 s"
    assert urgency(True, 11.0, window, since=10.2) > urgency(True, 10.0, window, since=10.3)
    assert urgency(False, 0.0, window, since=10.2) == urgency(False, 0.0, early, since=10.2) == (True, 12.2)
    assert urgency(True, 20.0, window, since=10.2) == (True, 12.2)


def test_an_aborted_call_takes_its_windows_along():
    scheduler = scheduler_of_windows(ArithmeticRunner(max_slots=2))
    calls = add_streams(scheduler, 2, frames=30)
    finish_steps(scheduler)
    jobs = [job for job, _ in scheduler.finishing[0].pending]
    calls[0].abort()
    scheduler.step()
    assert scheduler.ended == 1 and jobs and all(job.ready() for job in jobs), "cancelled"
    del scheduler.workers.help
    run(scheduler)
    assert len(chunks_of(calls[1])) == 30


def test_a_request_whose_window_fails_in_a_worker_fails_alone():
    scheduler = scheduler_of_windows(ArithmeticRunner())
    pieces = scheduler.decoder.pieces

    def failing(codes, first, last):
        if int(codes[0, 0]) // 1000 == 1:
            raise ValueError("its codec fails")
        return (yield from pieces(codes, first, last))

    scheduler.decoder.pieces = failing
    second_of_three_fails(scheduler, "its codec fails")


def test_no_more_requests_than_slots_wait_for_the_codec():
    """Or steps, which are faster, would pile windows up without bound."""
    scheduler = scheduler_of_windows(ArithmeticRunner(max_slots=2))
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
    scheduler = scheduler_of_windows(ArithmeticRunner())
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


# Steps of those who wait for a first chunk


def two_streams(scheduler: Scheduler, *, streaming: bool = True) -> tuple[Sequence, Sequence]:
    """A stream, or another call, behind its first windows, and a stream at its first step."""
    first = scheduler.add(request(60, seed=0), 0, Call(1, streaming=streaming), SIZES)
    while first.steps < 10 or not first.heard:
        scheduler.step()
    second = scheduler.add(request(30, seed=1), 0, Call(1, streaming=True), SIZES)
    while not second.steps:
        scheduler.step()
    assert not second.heard
    return first, second


def test_a_stream_that_is_ahead_of_its_player_waits_while_another_waits_for_its_first_chunk(monkeypatch):
    monkeypatch.setattr("dia_engine.runtime.sequence.AHEAD_SECONDS", -FOREVER)
    scheduler = scheduler_of_windows(ArithmeticRunner())
    first, second = two_streams(scheduler)
    steps = first.steps
    while not second.heard:
        assert first.steps == steps
        scheduler.step()
    for _ in range(3):
        scheduler.step()
    assert first.steps > steps, "it goes on behind it"
    run(scheduler)
    assert chunks_of(first.call).tolist() == list(range(60))
    assert chunks_of(second.call).tolist() == list(range(1000, 1030))


def test_a_launch_that_fails_ends_those_that_took_part(monkeypatch):
    monkeypatch.setattr("dia_engine.runtime.sequence.AHEAD_SECONDS", -FOREVER)
    runner = ArithmeticRunner()
    scheduler = scheduler_of_windows(runner)
    first, second = two_streams(scheduler)
    while second.slot not in scheduler.running:
        scheduler.step()
    decode, runner.decode = runner.decode, fails
    scheduler.step()
    runner.decode = decode
    run(scheduler)
    with pytest.raises(RuntimeError, match="no launch"):
        chunks_of(second.call)
    assert chunks_of(first.call).tolist() == list(range(60)), "it waited, and goes on"


def fails(slots, most):
    raise RuntimeError("no launch")


def test_threads_are_lent_to_launches_of_many_slots(monkeypatch):
    monkeypatch.setattr("dia_engine.runtime.sequence.AHEAD_SECONDS", -FOREVER)
    monkeypatch.setattr("dia_engine.runtime.scheduler.SHARED_SLOTS", 2)
    runner = ArithmeticRunner()
    runner.lend_threads = lambda count: runner.log.append(("threads", count))
    scheduler = scheduler_of_windows(runner)
    _, second = two_streams(scheduler)
    while not second.heard:
        scheduler.step()
    assert {entry for entry in runner.log if entry[0] == "threads"} == {("threads", 0)}, "one waits for the other"
    run(scheduler)
    assert max(entry[1] for entry in runner.log if entry[0] == "threads") > 0


@pytest.mark.parametrize(
    "ahead_seconds, streaming, make",
    [
        pytest.param(FOREVER, True, scheduler_of_windows, id="its player would run dry"),
        pytest.param(-FOREVER, False, scheduler_of_windows, id="it is no stream"),
        pytest.param(-FOREVER, True, scheduler_over, id="a step costs the same for one and for two"),
    ],
)
def test_others_go_on_beside_a_stream_that_waits_for_its_first_chunk(monkeypatch, ahead_seconds, streaming, make):
    monkeypatch.setattr("dia_engine.runtime.sequence.AHEAD_SECONDS", ahead_seconds)
    scheduler = make(ArithmeticRunner())
    first, second = two_streams(scheduler, streaming=streaming)
    while not second.heard:
        steps = first.steps
        scheduler.step()
        assert first.steps == steps + 1
    run(scheduler)
    assert chunks_of(first.call).tolist() == list(range(60))
