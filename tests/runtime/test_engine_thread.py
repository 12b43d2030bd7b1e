"""One thread computes for all callers: limits, closing, failures, forks, Ctrl-C and the end of the process."""

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
from itertools import islice

import numpy as np
import pytest

from dia_engine import Engine, EngineFull
from tests.helpers import ROOT
from tests.runtime.helpers import HANGS, LONG, TEXT, load, wait_until


def slowed(engine: Engine) -> Engine:
    """The engine with steps of a millisecond or more: what is LONG still runs when a test looks."""
    step = engine.model.step

    def slow_step(state) -> None:
        time.sleep(0.001)
        step(state)

    engine.model.step = slow_step
    return engine


def test_more_than_may_wait_is_refused_at_once():
    with slowed(load(max_slots=1, max_waiting=2)) as engine:
        running, waiting = engine.stream(TEXT, **LONG), engine.stream([TEXT, TEXT], **LONG)
        next(running)
        with ThreadPoolExecutor(1) as pool:
            first_of_waiting = pool.submit(next, waiting)
            wait_until(lambda: engine.active_requests == 3)
            with pytest.raises(EngineFull, match=r"3 requests are running or waiting.*max_slots \+ max_waiting = 3"):
                engine.generate(TEXT, seed=1, max_tokens=30)
            with pytest.raises(EngineFull):
                next(engine.stream(TEXT, max_tokens=30))
            assert engine.active_requests == 3, "what was refused does not count"
            running.close()
            assert first_of_waiting.result(HANGS)[0] == 0
        waiting.close()
        wait_until(lambda: engine.active_requests == 0)
        assert len(engine.generate(TEXT, seed=1, max_tokens=30))


def test_a_stream_that_was_given_up_keeps_nobody_out():
    """An interruption and what is said after it: its slot becomes free one launch later, which the next request waits
    for."""
    with slowed(load(max_slots=1, max_waiting=0)) as engine:
        for _ in range(20):
            with engine.stream(TEXT, **LONG) as stream:
                next(stream)
            assert len(engine.generate(TEXT, seed=1, max_tokens=30))


def test_a_batch_that_could_never_be_taken_is_refused():
    with load(max_slots=1, max_waiting=1) as engine:
        assert len(engine.generate([TEXT, TEXT], max_tokens=30)) == 2
        for call in (engine.generate, engine.stream):
            for options in ({}, {"closing_tag": True}):
                message = r"3 requests in one call are more than this engine takes, max_slots \+ max_waiting = 2"
                with pytest.raises(ValueError, match=message):
                    call([TEXT] * 3, max_tokens=30, **options)
        assert engine.active_requests == 0


def test_a_closed_engine_says_so_and_fails_what_runs():
    engine = slowed(load())
    stream, unread = engine.stream(TEXT, **LONG), engine.stream(TEXT, **LONG)
    next(stream)
    engine.close()
    for each in (stream, unread):
        with pytest.raises(RuntimeError, match="this engine is closed"):
            list(each)
    for call in (
        lambda: engine.generate(TEXT),
        lambda: engine.stream(TEXT),
        lambda: engine.astream(TEXT),
        lambda: engine.prepare(),
    ):
        with pytest.raises(RuntimeError, match="this engine is closed"):
            call()
    engine.close()


def test_a_closed_engine_that_has_never_worked():
    with load() as engine:
        pass
    with pytest.raises(RuntimeError, match="this engine is closed"):
        engine.generate(TEXT)


def test_a_failure_of_the_device_makes_the_engine_unusable_for_all(monkeypatch):
    engine = slowed(load())
    streams = [engine.stream(TEXT, **LONG) for _ in range(3)]
    for each in streams:
        next(each)

    def broken(self) -> None:
        raise MemoryError("the bus fell off")

    monkeypatch.setattr(type(engine._thread.scheduler), "step", broken)
    for each in streams:
        with pytest.raises(RuntimeError, match=r"unusable \(MemoryError: the bus fell off\); load a new one"):
            list(each)
    with pytest.raises(RuntimeError, match="unusable"):
        engine.generate(TEXT)
    engine.close()


def test_callers_of_every_kind_at_once_get_what_they_get_alone():
    with load(max_slots=3) as engine:
        wanted = {seed: engine.generate(TEXT, seed=seed, max_tokens=60) for seed in range(12)}

        async def asynchronous(seed: int) -> np.ndarray:
            return np.concatenate([chunk async for chunk in engine.astream(TEXT, seed=seed, max_tokens=60)])

        def call(seed: int) -> np.ndarray:
            if seed % 3 == 0:
                return engine.generate(TEXT, seed=seed, max_tokens=60)
            if seed % 3 == 1:
                return np.concatenate(list(engine.stream(TEXT, seed=seed, max_tokens=60)))
            return asyncio.run(asynchronous(seed))

        with ThreadPoolExecutor(12) as pool:
            for seed, found in enumerate(pool.map(call, range(12), timeout=HANGS)):
                assert np.array_equal(found, wanted[seed])


def test_an_engine_that_nobody_holds_ends_its_thread():
    before = threading.active_count()
    engine = load()
    stream = engine.stream(TEXT, **LONG)
    next(stream)
    assert threading.active_count() == before + 1
    del stream, engine
    gc.collect()
    wait_until(lambda: threading.active_count() == before)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def leave_at_random(engine: Engine, requests: int, seed: int) -> list[int]:
    """Streams that are left after some chunks, before the first, or not at all -> peak RSS (KB) after each hundred."""
    chance, peaks = random.Random(seed), []

    def one(chunks: int | None) -> None:
        stream = engine.stream(TEXT, seed=chance.randint(0, 99), max_tokens=chance.choice([20, 40, 80]))
        if chunks is None:
            list(stream)
        else:
            list(islice(stream, chunks))
            stream.close()

    with ThreadPoolExecutor(8) as pool:
        for start in range(0, requests, 100):
            batch = [chance.choice([None, 0, 1, 2]) for _ in range(min(100, requests - start))]
            list(pool.map(one, batch, timeout=HANGS))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peaks


def assert_nothing_is_lost(requests: int) -> list[int]:
    with load(max_slots=4) as engine:
        engine.generate(TEXT, max_tokens=20)
        threads, files = threading.active_count(), open_files()
        peaks = leave_at_random(engine, requests, seed=requests)
        wait_until(lambda: engine.active_requests == 0)
        scheduler = engine._thread.scheduler
        assert threading.active_count() == threads and open_files() == files
        assert not scheduler.unfinished and sorted(scheduler._free) == [0, 1, 2, 3]
        assert len(engine.generate(TEXT, seed=1, max_tokens=40))
    return peaks


def test_requests_that_are_left_at_random_leave_nothing_behind():
    assert_nothing_is_lost(100)


@pytest.mark.slow
def test_two_thousand_requests_that_are_left_at_random_leave_nothing_behind():
    peaks = assert_nothing_is_lost(2000)
    print("peak RSS in MB behind each hundred:", [peak // 1024 for peak in peaks])
    assert peaks[-1] < peaks[0] + 8 * 1024


HEAD = """
import logging, os, sys, time
logging.getLogger('dia_engine').setLevel(logging.ERROR)
from dia_engine import Engine
TEXT = '[S1] Hello there.'
LONG = dict(max_tokens=3072, seed=2)
engine = Engine.load('synthetic:tiny', device='cpu', load_dac=False, max_slots=2)
"""


def run(script: str, *, interrupt_after: str = "") -> tuple[int, str]:
    """A process with an engine of 2 slots -> exit status and output; Ctrl-C once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", HEAD + script], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )  # fmt: skip
    try:
        seen = ""
        while interrupt_after and interrupt_after not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        if interrupt_after:
            process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=HANGS)
        return process.returncode, seen + rest
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def test_ctrl_c_frees_the_slot_and_the_engine_goes_on():
    for call in ("engine.generate([TEXT] * 999, **LONG)", "list(engine.stream([TEXT] * 999, **LONG))"):
        status, output = run(
            "wanted = engine.generate(TEXT, seed=1, max_tokens=40)\n"
            f"try:\n    print('started')\n    {call}\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
            "while engine.active_requests: time.sleep(0.01)\n"
            "print((engine.generate(TEXT, seed=1, max_tokens=40) == wanted).all())\n",
            interrupt_after="started",
        )
        assert status == 0 and output.splitlines()[-2:] == ["interrupted", "True"], output


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise ValueError('end')", "os.kill(os.getpid(), 15)"])
def test_a_process_ends_with_streams_open(end):
    status, output = run(f"streams = [engine.stream(TEXT, **LONG) for _ in range(4)]\nnext(streams[0])\n{end}\n")
    expected = {"sys.exit(3)": 3, "raise ValueError('end')": 1}.get(end, -signal.SIGTERM)
    assert status == expected, output
    assert "Fatal" not in output


def test_a_fork_while_a_stream_is_open(warm_python):
    done = warm_python.run(
        HEAD + "import torch\ntorch.set_num_threads(1)\n"
        "wanted = engine.generate(TEXT, seed=1, max_tokens=40)\n"
        "stream = engine.stream(TEXT, **LONG)\nnext(stream)\n"
        "child = os.fork()\n"
        "same = (engine.generate(TEXT, seed=1, max_tokens=40) == wanted).all()\n"
        "if not child:\n    os._exit(0 if same else 1)\n"
        "print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == b"True 0", done


def test_an_engine_closed_in_a_forked_child_is_closed_there_alone(warm_python):
    done = warm_python.run(
        HEAD + "import torch\ntorch.set_num_threads(1)\nengine.generate(TEXT, seed=1, max_tokens=30)\n"
        "child = os.fork()\n"
        "if child:\n    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.usable)\n    sys.exit()\n"
        "engine.close()\n"
        "try:\n    engine.generate(TEXT, seed=1, max_tokens=30)\n"
        "except RuntimeError as error:\n    os._exit(7 if 'this engine is closed' in str(error) else 1)\n"
        "os._exit(0)\n"
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == b"7 True", done


def test_preparing_warns_of_nothing(caplog):
    with load(max_slots=2) as engine:
        engine.prepare(2)
        assert not caplog.records
        engine.generate(TEXT, seed=1, max_tokens=20)
    assert "cut by max_tokens" in caplog.text


def test_prepare_is_also_for_the_windows_of_streams(monkeypatch):
    with load() as engine:
        prepared, asked = set(), set()
        monkeypatch.setattr(engine.windows, "prepare", prepared.update)
        engine.prepare(2)
        monkeypatch.setattr(engine.windows, "prepare", asked.update)
        list(engine.stream(TEXT, seed=1, max_tokens=30))
        assert asked and asked <= prepared
