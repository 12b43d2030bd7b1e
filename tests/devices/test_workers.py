"""Worker threads: order, errors, cancellation, the end. No test depends on how fast they are."""

import gc
import threading
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch

from dia_engine.devices.workers import Urgency, Workers
from tests.runtime.helpers import wait_until

PATIENCE = 60  # seconds after which a test that hangs fails


@pytest.fixture
def make_workers():
    made = []

    def make(threads: int = 1, modes=nullcontext) -> Workers:
        made.append(Workers(threads, modes))
        return made[-1]

    yield make
    for workers in made:
        workers.close()


def pieces_of(log: list, name: str, count: int, value=0.0, gate: tuple[threading.Event, threading.Event] | None = None):
    """A job of `count` pieces. The first one sets the first event of `gate` and waits for the second."""
    for number in range(count):
        if gate is not None and not number:
            gate[0].set()
            assert gate[1].wait(PATIENCE)
        log.append((name, number))
        yield
    return torch.full((3,), value)


def at(seconds: float) -> Urgency:
    return Urgency(is_later=True, seconds=seconds)


def blocked(workers: Workers) -> threading.Event:
    """Have a worker wait inside a piece until the event is set."""
    began, gate = threading.Event(), threading.Event()
    workers.submit(pieces_of([], "first", 1, gate=(began, gate)), at(-1.0))
    assert began.wait(PATIENCE)
    return gate


def test_what_the_pieces_return(make_workers):
    workers, log = make_workers(2), []
    jobs = [workers.submit(pieces_of(log, "a", 3, index), at(index)) for index in range(20)]
    assert [job.wait().tolist() for job in jobs] == [[index] * 3 for index in range(20)]
    assert all(job.ready() for job in jobs) and len(workers.threads) == 2


def test_who_has_nothing_to_do_is_counted(make_workers):
    workers = make_workers(3)
    assert workers.idle == 3
    gate = blocked(workers)
    assert workers.idle == 2
    gate.set()
    wait_until(lambda: workers.idle == 3)
    for _ in range(5):
        workers.submit(pieces_of([], "a", 2), at(1.0)).wait()
    wait_until(lambda: workers.idle == 3)


def test_the_most_urgent_job_first_and_equal_ones_in_the_order_in_which_they_came(make_workers):
    workers, log = make_workers(), []
    gate = blocked(workers)
    jobs = [workers.submit(pieces_of(log, name, 2), at(when)) for name, when in (("c", 3), ("a", 1), ("b", 1))]
    gate.set()
    for job in jobs:
        job.wait()
    assert log == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1)]


def test_a_long_job_gives_way_to_a_more_urgent_one_between_two_pieces(make_workers):
    workers, log, gate, began = make_workers(), [], threading.Event(), threading.Event()
    long = workers.submit(pieces_of(log, "long", 3, gate=(began, gate)), at(5))
    assert began.wait(PATIENCE)
    urgent = workers.submit(pieces_of(log, "urgent", 2), at(0))
    gate.set()
    long.wait(), urgent.wait()
    assert log == [("long", 0), ("urgent", 0), ("urgent", 1), ("long", 1), ("long", 2)]


def test_who_has_nothing_else_to_do_can_help(make_workers):
    workers, log = make_workers(), []
    gate = blocked(workers)
    job = workers.submit(pieces_of(log, "a", 2, 7.0), at(0))
    assert not job.ready()
    assert [workers.help() for _ in range(4)] == [True, True, True, False], "two pieces, the result, and no more"
    assert job.ready() and job.wait().tolist() == [7.0] * 3
    gate.set()


def test_help_with_what_is_urgent_alone(make_workers):
    workers, log = make_workers(), []
    gate = blocked(workers)
    workers.submit(pieces_of(log, "late", 1), at(7))
    assert not workers.help(until=at(6)) and not log
    workers.submit(pieces_of(log, "soon", 1), at(6))
    assert workers.help(until=at(6)) and log == [("soon", 0)]
    gate.set()


def test_an_error_reaches_who_waits_for_that_job_alone(make_workers):
    workers, log = make_workers(), []

    def failing():
        yield
        raise ValueError("this job fails")

    jobs = [workers.submit(failing(), at(0)), workers.submit(pieces_of(log, "a", 1, 1.0), at(1))]
    with pytest.raises(ValueError, match="this job fails"):
        jobs[0].wait()
    assert jobs[0].ready() and jobs[1].wait().tolist() == [1.0] * 3


def test_a_cancelled_job_is_not_computed_and_holds_nothing(make_workers):
    workers, log = make_workers(), []
    gate = blocked(workers)
    signal = torch.zeros(3)
    job = workers.submit(pieces_of(log, "cancelled", 2, signal), at(0))
    other = workers.submit(pieces_of(log, "other", 1), at(1))
    held = weakref.ref(signal)
    del signal
    job.cancel()
    gate.set()
    other.wait()
    gc.collect()
    assert log == [("other", 0)] and held() is None
    with pytest.raises(RuntimeError, match="cancelled"):
        job.wait()


def test_joining_a_cancelled_job_waits_for_the_piece_in_progress(make_workers):
    """Whoever gets what the pieces wrote to, gets it when nobody writes to it any more."""
    workers, began, gate, log = make_workers(), threading.Event(), threading.Event(), []
    job = workers.submit(pieces_of(log, "a", 2, gate=(began, gate)), at(0))
    assert began.wait(PATIENCE)
    job.cancel()
    waiting = threading.Thread(target=job.join)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive() and not log
    gate.set()
    waiting.join(PATIENCE)
    assert not waiting.is_alive() and log == [("a", 0)]
    job.join()


def test_new_streams_go_before_all_deadlines_in_the_order_of_their_arrival():
    in_order = [Urgency(False, 5.0), Urgency(False, 7.0), Urgency(True, 1.0), Urgency(True, 6.0)]
    assert sorted(in_order[::-1]) == in_order


def test_closing_fails_what_is_left_and_ends_the_threads(make_workers):
    workers, log = make_workers(), []
    gate = blocked(workers)
    left = workers.submit(pieces_of(log, "left", 1), at(0))
    closing = threading.Thread(target=workers.close)
    closing.start()
    with pytest.raises(RuntimeError, match="closed before this job was done"):
        left.wait()
    gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive() and not any(thread.is_alive() for thread in workers.threads) and not log
    with pytest.raises(RuntimeError, match="are closed"):
        workers.submit(pieces_of(log, "late", 1), at(0))


def test_a_job_in_hand_when_the_threads_are_closed_fails(make_workers):
    workers, began, gate = make_workers(), threading.Event(), threading.Event()
    job = workers.submit(pieces_of([], "a", 1, gate=(began, gate)), at(0))
    assert began.wait(PATIENCE)
    closing = threading.Thread(target=workers.close)
    closing.start()
    with pytest.raises(RuntimeError, match="are closed"):
        while True:  # until it has begun to close
            workers.submit(pieces_of([], "late", 0), at(1))
    gate.set()
    with pytest.raises(RuntimeError, match="closed before this job was done"):
        job.wait()
    closing.join(PATIENCE)


def test_threads_compute_in_the_modes_of_the_engine(make_workers):
    entered = []

    @contextmanager
    def modes():
        entered.append(threading.current_thread())
        with torch.no_grad():
            yield

    def pieces():
        entered.append(torch.is_grad_enabled())
        yield
        return torch.zeros(0)

    workers = make_workers(1, modes)
    workers.submit(pieces(), at(0)).wait()
    assert entered == [workers.threads[0], False]
