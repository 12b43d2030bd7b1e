"""The one thread of an engine and its callers: full, closed, failed, forked, interrupted, forgotten, many at once."""

import asyncio
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dia_engine import Engine, EngineFull
from dia_engine.kernels.advance import RUNNING

ROOT = Path(__file__).resolve().parents[2]
TEXT = "[S1] Hello there. [S2] Hi! (laughs)"
LONG = {"max_tokens": 3072, "seed": 2}  # this seed does not end by itself
SHORT = {"max_tokens": 30, "seed": 5}
HANGS = 120  # seconds after which a test that waits for an event gives up


def load(**limits) -> Engine:
    return Engine.load("synthetic:tiny", device="cpu", load_dac=False, **limits)


def wait_until(condition) -> None:
    for _ in range(HANGS * 200):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it does not happen")


def wait_until_idle(engine: Engine) -> None:
    wait_until(lambda: not engine.active_requests)


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


def test_a_full_engine_refuses_at_once():
    with load(max_slots=2, max_waiting=1) as engine:
        go = held(engine)
        running = [engine.stream(TEXT, **SHORT) for _ in range(2)]
        results = [in_thread(list, stream) for stream in running]
        wait_until(lambda: engine.active_requests == 2)
        waiting = in_thread(engine.generate, TEXT, **SHORT)
        wait_until(lambda: engine.active_requests == 3)
        message = (
            r"^3 requests are running or waiting, and {} more would exceed max_slots \+ max_waiting = 3; try again"
        )
        with pytest.raises(EngineFull, match=message.format(1)):
            engine.generate(TEXT, **SHORT)
        with pytest.raises(EngineFull, match=message.format(2)):
            engine.generate([TEXT, TEXT], **SHORT)
        with pytest.raises(EngineFull):
            next(engine.stream(TEXT, **SHORT))
        assert engine.active_requests == 3, "what was refused is not counted"
        go.set()
        assert len({len(np.concatenate(each.result(HANGS))) for each in results}) == 1 and len(waiting.result(HANGS))
        wait_until_idle(engine)
        assert len(engine.generate([TEXT] * 3, **SHORT)) == 3
        with pytest.raises(EngineFull, match="^0 requests are running or waiting, and 4 more"):
            engine.generate([TEXT] * 4, **SHORT)


def test_no_waiting_request_and_no_limit():
    with load(max_slots=1, max_waiting=0) as engine:
        go = held(engine)
        first = in_thread(engine.generate, TEXT, **SHORT)
        wait_until(lambda: engine.active_requests)
        with pytest.raises(EngineFull):
            engine.generate(TEXT, **SHORT)
        go.set()
        first.result(HANGS)
    with load(max_slots=1) as engine:
        assert len(engine.generate([TEXT] * 12, max_tokens=18, seed=1)) == 12


@pytest.mark.parametrize("call", ["generate", "stream", "prepare", "running", "waiting"])
def test_a_closed_engine_says_so(call):
    engine = load(max_slots=1)
    streams = [engine.stream(TEXT, **LONG) for _ in range(2)]
    if call in ("running", "waiting"):
        next(streams[0])
        waiting = in_thread(next, streams[1])
        wait_until(lambda: engine.active_requests == 2)
    engine.close()
    engine.close()
    assert not engine.usable and not any(
        each.name == "dia-engine" and each is engine._thread for each in threading.enumerate()
    )
    with pytest.raises(RuntimeError, match="^this engine is closed$"):
        if call == "running":
            list(streams[0])
        elif call == "waiting":
            waiting.result(HANGS)
        elif call == "stream":
            next(streams[0])
        elif call == "prepare":
            engine.prepare()
        else:
            engine.generate(TEXT, **SHORT)
    assert not engine.active_requests


def test_a_with_block_closes_also_after_an_error():
    with pytest.raises(ZeroDivisionError), load() as engine:
        assert engine.usable
        next(engine.stream(TEXT, **LONG))
        raise ZeroDivisionError
    assert not engine.usable
    before = threading.active_count()
    with load() as engine:
        engine.generate(TEXT, **SHORT)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before, "its thread has ended"


def test_a_call_never_gets_between_the_end_and_the_last_look_into_the_inbox():
    """Callers and `close` at the same moment: each caller gets its result or an error."""
    for _ in range(60):
        engine, start = load(), threading.Barrier(4)
        engine.model.step = lambda state: state.countdown.zero_() and None

        def call(engine=engine, start=start):
            start.wait()
            try:
                engine._thread.run(lambda: None)
            except RuntimeError as error:
                return str(error)

        calls = [in_thread(call) for _ in range(3)]
        start.wait()
        engine.close()
        assert {each.result(HANGS) for each in calls} <= {None, "this engine is closed"}


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


def run_script(script: str, seconds: float = HANGS, send: int | None = None) -> str:
    """Run a script in a process group of its own; `send` is a signal for it, once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        first = process.stdout.readline() if send else ""
        if send:
            process.send_signal(send)
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, first + output
    return first + output


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
def in_background(function):
    def work():
        try:
            function()
        except RuntimeError as error:
            assert str(error) == "this engine is closed"
    threading.Thread(target=work, daemon=True).start()
def same():
    return (engine.generate(TEXT, seed=1, max_tokens=30) == wanted).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [False, True], ids=["while a stream is open", "while the lock is held"])
def test_a_forked_child_works_and_the_parents_stream_is_an_error_there(busy):
    hold = "engine._thread._lock.acquire(); stream._starting.acquire()" if busy else ""
    output = run_script(f"""{PRELUDE}
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
    assert "child 0 True" in output and "this stream was made in the process that this one was forked" in output
    assert "parent 0 True True" in output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_an_engine_closed_in_a_forked_child_is_closed_there_alone():
    output = run_script(f"""{PRELUDE}
if os.fork():
    print("parent", os.waitstatus_to_exitcode(os.wait()[1]), engine.usable, same(), flush=True)
    os._exit(0)
engine.close()
try:
    same()
except RuntimeError as error:
    print("child", error, flush=True)
os._exit(0)
""")
    assert "child this engine is closed" in output and "parent 0 True True" in output


@pytest.mark.parametrize(
    "end",
    [
        "in_background(lambda: list(stream)); raise SystemExit(0)",
        "in_background(lambda: engine.generate([TEXT] * 20, max_tokens=3072))",
        "others = [engine.stream(TEXT, seed=2) for _ in range(20)]; [next(other) for other in others[:7]]",
        "sys.modules['kept'] = stream; cycle = [stream]; cycle.append(cycle)",
    ],
)
def test_the_interpreter_exits_while_streams_are_open(end):
    assert run_script(f"{PRELUDE}\n{end}") == ""


@pytest.mark.parametrize("call", ["list(engine.stream(TEXT, seed=2))", "engine.generate([TEXT] * 9, seed=2)"])
def test_ctrl_c_frees_the_slots_and_the_engine_goes_on(call):
    output = run_script(
        f"""{PRELUDE}
stream.close()
try:
    print("go", flush=True)
    {call}
except KeyboardInterrupt:
    import time
    for _ in range(1000):
        if not engine.active_requests:
            break
        time.sleep(0.01)
    print("interrupted", engine.active_requests, same())
""",
        send=signal.SIGINT,
    )
    assert output.splitlines() == ["go", "interrupted 0 True"]


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


def use(engine: Engine, chance: random.Random, wanted: dict) -> bool:
    """One request in one of all ways, perhaps given up -> whether its codes were right."""
    seed, way = chance.choice(list(wanted)), chance.choice(["generate", "list", "stream", "astream", "drop", "close"])
    params = {"seed": seed, "max_tokens": wanted[seed][0]}
    if way == "generate":
        return np.array_equal(engine.generate(TEXT, **params), wanted[seed][1])
    if way == "list":
        return all(np.array_equal(codes, wanted[seed][1]) for codes in engine.generate([TEXT, TEXT], **params))
    stream = engine.stream(TEXT, chunk_frames=chance.choice([1, 5, 48]), **params)
    if way == "stream":
        return np.array_equal(np.concatenate(list(stream)), wanted[seed][1])
    if way == "astream":
        return np.array_equal(np.concatenate(asyncio.run(read_all(stream))), wanted[seed][1])
    for _ in range(chance.randint(0, 2)):
        next(stream, None)
    if way == "close":
        stream.close()
        return next(stream, None) is None
    return True  # dropped here


async def read_all(stream) -> list:
    return [chunk async for chunk in stream]


def wanted_codes(engine: Engine) -> dict:
    """seed -> (max_tokens, codes alone)."""
    lengths = {seed: 18 + 2 * seed for seed in range(8)}
    return {seed: (rows, engine.generate(TEXT, seed=seed, max_tokens=rows)) for seed, rows in lengths.items()}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(requests: int, readers: int) -> list[int]:
    """Many requests from several threads, some given up -> resident bytes after each tenth of them. No slot, thread or
    file is lost."""
    with load(max_slots=4) as engine:
        wanted = wanted_codes(engine)
        files, threads, resident = len(os.listdir("/proc/self/fd")), threading.active_count(), []
        for part in range(10):
            with ThreadPoolExecutor(readers) as pool:
                chances = [random.Random(part * requests + number) for number in range(requests // 10)]
                assert all(pool.map(lambda chance: use(engine, chance, wanted), chances, timeout=8 * HANGS))
            gc.collect()
            wait_until_idle(engine)
            scheduler = engine._thread.scheduler
            assert sorted(scheduler._free) == [0, 1, 2, 3] and not scheduler.unfinished
            countdown = scheduler.runner.state.countdown
            assert not countdown.any() and RUNNING not in countdown
            assert threading.active_count() == threads and len(os.listdir("/proc/self/fd")) == files
            resident.append(resident_bytes())
    return resident


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def test_preparing_warns_of_nothing(caplog):
    with load(max_slots=2) as engine:
        engine.prepare(2)
        assert not caplog.records
        engine.generate(TEXT, **SHORT)
    assert "cut by max_tokens" in caplog.text


@needs_proc
def test_any_mix_of_calls_from_many_threads_loses_nothing():
    soak(60, readers=6)


@needs_proc
@pytest.mark.slow
def test_two_thousand_requests_with_random_cancels_lose_nothing():
    resident = soak(2000, readers=8)
    print("resident MB after each 200 requests:", [round(each / 1e6, 1) for each in resident])
    assert resident[-1] - resident[0] < 8 * 10**6, [each / 1e6 for each in resident]


def test_the_thread_holds_no_engine():
    engine = load()
    engine.generate(TEXT, **SHORT)
    thread, before = engine._thread._thread, torch.get_num_threads()
    del engine
    gc.collect()
    wait_until(lambda: not thread.is_alive())
    assert torch.get_num_threads() == before
