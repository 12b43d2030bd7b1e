"""The hard cases of the engine's thread: a broken device, a call while it ends, a fork, several readers of a stream."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dia_engine import Engine
from tests.runtime.helpers import HANGS, LONG, TEXT, load, wait_until

SHORT = {"max_tokens": 30, "seed": 5}


def in_thread(function, *arguments, **keywords):
    """A future of a call in a thread of its own, which ends the test if it hangs."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments, **keywords)
    pool.shutdown(wait=False)
    return future


def held(engine: Engine) -> threading.Event:
    """Let the engine's steps wait for an event."""
    go, step = threading.Event(), engine.model.step

    def held_step(state):
        assert go.wait(HANGS)
        step(state)

    engine.model.step = held_step
    return go


class LockThenClose:
    """A lock behind whose first release by a caller the engine is closed."""

    def __init__(self, engine: Engine):
        self.lock, self.close = engine._thread._lock, engine.close

    def __enter__(self):
        return self.lock.__enter__()

    def __exit__(self, *error):
        self.lock.__exit__(*error)
        close, self.close = self.close, lambda: None
        close()


@pytest.mark.parametrize("call", ["generate", "run"])
def test_an_engine_that_is_closed_in_the_middle_of_a_call_answers_it(call):
    engine = load()
    held(engine).set()
    engine._thread._lock = LockThenClose(engine)
    work = (lambda: engine.generate(TEXT, **SHORT)) if call == "generate" else (lambda: engine._thread.run(lambda: 7))
    future = in_thread(work)
    try:
        assert future.result(HANGS) is not None
    except RuntimeError as error:
        assert str(error) == "this engine is closed"
    assert not engine.active_requests


@pytest.mark.parametrize("where", ["step", "status", "end", "abort"])
def test_after_a_failure_of_the_device_all_get_one_error(monkeypatch, where):
    """On a broken device the launch fails, and so does all that follows, as the release of a slot."""
    engine = load(max_slots=2)
    go, lost = held(engine), RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(*_):
        raise lost

    streams = [engine.stream(TEXT, **(SHORT if where == "end" else LONG)) for _ in range(3)]
    readers = [in_thread(list, streams[0])]
    wait_until(lambda: engine._thread.scheduler.running)  # the first has a slot
    readers += [in_thread(list, stream) for stream in streams[1:]]
    wait_until(lambda: engine.active_requests == 3)
    runner = engine._thread.scheduler.runner
    monkeypatch.setattr(runner, "release", fail)
    if where == "step":
        monkeypatch.setattr(runner, "decode", fail)
    elif where == "status":
        monkeypatch.setattr(runner, "read_status", fail)
    elif where == "abort":
        streams[0].close()
    go.set()
    errors = [reader.exception(HANGS) for reader in readers[where == "abort" :]]
    wait_until(lambda: not engine.usable)
    for error in errors:
        assert isinstance(error, RuntimeError) and error.__cause__ is lost
        assert "is unusable (RuntimeError: CUDA error: an illegal memory access" in str(error)
        assert "load a new one" in str(error)
    assert len({str(error) for error in errors}) == 1
    for call in (lambda: engine.generate(TEXT, **SHORT), lambda: next(engine.stream(TEXT)), engine.prepare):
        with pytest.raises(RuntimeError, match="unusable"):
            call()
    assert not engine.active_requests
    engine.close()


@pytest.mark.parametrize("scripts", [1, 3])
def test_a_stream_whose_windows_cannot_be_prepared_fails_alone(scripts, monkeypatch):
    """On a GPU they are captured when the call comes in."""
    with load() as engine:
        wanted, go = engine.generate(TEXT, **SHORT), held(engine)
        other = in_thread(engine.generate, TEXT, **SHORT)
        wait_until(lambda: engine._thread.scheduler.running)

        def prepare(lengths):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 67 GiB")

        monkeypatch.setattr(engine.windows, "prepare", prepare)
        stream = in_thread(list, engine.stream([TEXT] * scripts, **SHORT))
        go.set()
        with pytest.raises(torch.OutOfMemoryError, match="67 GiB"):
            stream.result(HANGS)
        assert np.array_equal(other.result(HANGS), wanted) and engine.usable
        wait_until(lambda: not engine.active_requests)
        assert np.array_equal(engine.generate(TEXT, **SHORT), wanted)


def test_what_is_run_between_steps_is_computed_in_full_float32(monkeypatch):
    """Such as `prepare` and `teacher_forced_logits`."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with load() as engine:
            assert engine._thread.run(lambda: torch.backends.cuda.matmul.fp32_precision) == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_request_that_fails_fails_alone(monkeypatch):
    with load() as engine:
        wanted, go = engine.generate(TEXT, **SHORT), held(engine)
        others = [in_thread(engine.generate, TEXT, **SHORT) for _ in range(3)]
        bad = in_thread(engine.generate, TEXT, **{**SHORT, "seed": 6})
        wait_until(lambda: engine.active_requests == 4)
        codes = engine._thread.scheduler.runner.codes

        def fail_for_one(slot, *rest):
            if int(engine._thread.scheduler.runner.state.seed[slot]) == 6:
                raise RuntimeError("its codes are gone")
            return codes(slot, *rest)

        monkeypatch.setattr(engine._thread.scheduler.runner, "codes", fail_for_one)
        go.set()
        with pytest.raises(RuntimeError, match="its codes are gone"):
            bad.result(HANGS)
        assert all(np.array_equal(other.result(HANGS), wanted) for other in others)
        assert engine.usable


PRELUDE = """
import logging, os, sys, threading
import torch
logging.disable(logging.WARNING)
torch.set_num_threads(1)
from dia_engine import Engine
engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
TEXT = "[S1] Hello there."
wanted = engine.generate(TEXT, seed=1, max_tokens=30)
stream = engine.stream(TEXT, seed=2, max_tokens=3072)
next(stream)
def same():
    return (engine.generate(TEXT, seed=1, max_tokens=30) == wanted).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [False, True], ids=["while a stream is open", "while the lock is held"])
def test_a_forked_child_works_and_the_parents_stream_is_an_error_there(warm_python, busy):
    hold = "engine._thread._lock.acquire(); stream._starting.acquire()" if busy else ""
    done = warm_python.run(f"""{PRELUDE}
thread = threading.Thread(target=lambda: [{hold.replace("; ", ", ") or "None"}])
thread.start(); thread.join()
if os.fork():
    status = os.waitstatus_to_exitcode(os.wait()[1])
    {"engine._thread._lock = threading.RLock(); stream._starting.release()" if busy else ""}
    print("parent", status, same(), len(next(stream)) > 0, flush=True)
    os._exit(0)
print("child", engine.active_requests, same(), flush=True)
try:
    next(stream)
except RuntimeError as error:
    print(error, flush=True)
stream.close()
engine.close()
del stream, engine
os._exit(0)
""")
    assert done.returncode == 0, done
    output = done.stdout.decode()
    assert "child 0 True" in output and "this stream was made in the process that this one was forked" in output
    assert "parent 0 True True" in output


def test_several_threads_read_one_stream():
    with load() as engine:
        texts, params = [TEXT, "[S2] Two.", "[S1] Three."], {"seed": [1, 2, 3], "max_tokens": 60}
        wanted = engine.generate(texts, **params)
        for _ in range(5):
            stream = engine.stream(texts, chunk_frames=1, **params)
            parts = [in_thread(lambda stream=stream: list(stream)) for _ in range(3)]
            chunks = [chunk for part in parts for chunk in part.result(HANGS)]
            for index, whole in enumerate(wanted):
                found = np.concatenate([codes for each, codes in chunks if each == index])
                assert sorted(map(tuple, found)) == sorted(map(tuple, whole)), "each chunk went to one of them"
            assert [len(each.codes) for each in stream.result] == [len(whole) for whole in wanted]


def test_an_observer_that_fails_is_dropped_and_harms_nobody(caplog):
    told = []

    def observe(*launch):
        told.append(launch)
        raise ZeroDivisionError("of the observer")

    with load() as engine:
        wanted = engine.generate(TEXT, **SHORT)
        for mistake in (5, None):
            with pytest.raises(TypeError, match=f"observer must be a function of .*, got {mistake}"):
                engine.observe_launches(mistake)
        engine.observe_launches(observe)
        for _ in range(2):
            assert np.array_equal(engine.generate(TEXT, **SHORT), wanted)
        assert engine.usable and len(told) == 1
        (record,) = (each for each in caplog.records if "observer of launches failed" in each.message)
        assert record.exc_info[0] is ZeroDivisionError
        launches = []
        engine.observe_launches(lambda *launch: launches.append(launch))
        engine.generate(TEXT, **SHORT)
        assert launches
