"""An engine whose prefills and windows are computed by workers: the same sound, and all of them end with it."""

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from dia_engine import Engine
from dia_engine.codec import Codec
from dia_engine.devices import threads as thread_counts
from dia_engine.devices.workers import Urgency, Workers
from tests.runtime.helpers import HANGS, wait_until
from tests.sound import small_codec

TEXTS = ["[S1] Hello there. [S2] Hi! (laughs)", "[S2] Two.", "[S1] Three."]


@pytest.fixture
def load(monkeypatch):
    """Makes engines with so many workers, whatever torch has here."""
    made = []

    def load(threads: int) -> Engine:
        monkeypatch.setattr("dia_engine.runtime.engine_thread.worker_threads", lambda: threads)
        codec = small_codec(n_codebooks=9, codebook_size=1024)
        made.append(Engine.load("synthetic:tiny", device="cpu", codec=codec))
        return made[-1]

    yield load
    for each in made:
        each.close()


def sounds_at_once(engine: Engine) -> list[np.ndarray]:
    """Streams and whole generations of several callers at the same time."""

    def streamed(seed: int) -> np.ndarray:
        return np.concatenate(list(engine.stream(TEXTS[seed % 3], seed=seed, max_tokens=60, chunk_frames=5)))

    def whole(seed: int) -> np.ndarray:
        return engine.generate(TEXTS[seed % 3], seed=seed, max_tokens=60)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda seed: (streamed if seed % 2 else whole)(seed), range(12)))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_samples_with_and_without_workers(load, threads):
    """Bit for bit: a window's samples do not depend on who decodes it, nor on what else there is to do."""
    wanted = sounds_at_once(load(0))
    engine = load(threads)
    assert isinstance(engine._thread.scheduler.workers, Workers)
    for _ in range(3):
        assert all(map(np.array_equal, sounds_at_once(engine), wanted))
    assert 1 <= len(engine._thread.scheduler.worker_threads) <= threads


def test_a_script_in_pieces_is_decoded_by_workers_too(load):
    script = "[S1] One two three. [S2] Four five six. " * 12
    options = {"seed": 3, "max_tokens": 40}
    assert np.array_equal(load(2).generate(script, **options), load(0).generate(script, **options))


def test_the_engines_thread_helps_where_it_has_nothing_else_to_do(load, monkeypatch):
    """With workers that never begin, it does everything itself."""
    script = "[S1] One two three. [S2] Four five six. " * 12
    wanted = load(0).generate(script, seed=3, max_tokens=40)
    monkeypatch.setattr(Workers, "_start_thread", lambda self: None)
    assert np.array_equal(load(2).generate(script, seed=3, max_tokens=40), wanted)


def worker_threads() -> int:
    return sum(thread.name == "dia-engine worker" for thread in threading.enumerate())


def test_closing_ends_the_threads_and_fails_what_runs(load):
    engine = load(2)
    stream = engine.stream(TEXTS[0], seed=2, max_tokens=3072, chunk_frames=5)
    next(stream), next(stream)  # the first window is not a worker's
    assert worker_threads() >= 1
    engine.close()
    assert worker_threads() == 0
    with pytest.raises(RuntimeError, match="closed"):
        for _ in stream:
            pass


def test_an_engine_that_nobody_holds_ends_the_threads(load, monkeypatch):
    monkeypatch.setattr("dia_engine.runtime.engine_thread.worker_threads", lambda: 2)
    engine = Engine.load("synthetic:tiny", device="cpu")
    engine.generate(TEXTS[0], seed=0, max_tokens=30)
    assert worker_threads() >= 1
    del engine
    gc.collect()
    wait_until(lambda: worker_threads() == 0)


def test_an_engine_that_is_collected_in_a_worker_does_not_wait_for_itself(load):
    """A collection runs in whichever thread comes to it."""
    engine = load(1)
    scheduler, ended = engine._thread.scheduler, threading.Event()

    def pieces():
        yield
        engine._thread.close()
        ended.set()
        return torch.zeros(0)

    engine._thread.run(lambda: scheduler.workers.submit(pieces(), Urgency(True, 0.0)))
    assert ended.wait(HANGS)
    wait_until(lambda: worker_threads() == 0)


def test_an_error_of_the_codec_reaches_its_caller_alone(load, monkeypatch):
    engine = load(2)
    pieces, broken = engine.windows.pieces, threading.Event()

    def failing(codes, first, last):
        if not broken.is_set():
            broken.set()
            raise MemoryError("no room for this window")
        return (yield from pieces(codes, first, last))

    monkeypatch.setattr(engine.windows, "pieces", failing)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(partial(engine.generate, TEXTS[0], seed=seed, max_tokens=40)) for seed in range(4)]
        errors = [call.exception() for call in calls]
    assert sum(error is None for error in errors) == 3 and any(isinstance(error, MemoryError) for error in errors)
    assert engine.active_requests == 0 and engine.usable


def test_streams_that_are_left_leave_no_window_behind(load):
    engine = load(2)
    for seed in range(20):
        with engine.stream(TEXTS[seed % 3], seed=seed, max_tokens=80, chunk_frames=4) as stream:
            next(stream)
    wait_until(lambda: engine.active_requests == 0)
    wait_until(lambda: not engine._thread.scheduler.workers._jobs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own(load):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # several OpenMP threads do not survive a fork; the codec's are started anew
    try:
        engine = load(2)
        wanted = engine.generate(TEXTS[0], seed=1, max_tokens=40)
        child = os.fork()
        if not child:
            code = 1
            try:
                same = np.array_equal(engine.generate(TEXTS[0], seed=1, max_tokens=40), wanted)
                code = 0 if same and engine._thread.scheduler.worker_threads[0].is_alive() else 2
                engine.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.array_equal(engine.generate(TEXTS[0], seed=1, max_tokens=40), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "wanted"), [(1, 0), (2, 1), (4, 3), (64, 4)])
def test_workers_are_as_many_as_torch_has_threads_beside_the_steps(monkeypatch, threads, wanted):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert thread_counts.worker_threads() == wanted


def test_no_threads_for_a_large_model_nor_without_a_codec(load, monkeypatch):
    with load(2) as engine:
        assert engine._thread.scheduler.workers is not None
    with Engine.load("synthetic:tiny", device="cpu", load_dac=False) as engine:
        assert engine._thread.scheduler.workers is None
    monkeypatch.setattr("dia_engine.engine.is_small", lambda *_: False)
    assert load(2)._thread.scheduler.workers is None


def test_the_codec_itself_is_the_reference(load):
    """What threads decode in tiles is what the whole decoder makes of the codes."""
    engine = load(2)
    generation = engine.generate(TEXTS[0], seed=4, max_tokens=120, details=True)
    assert isinstance(engine.codec, Codec)
    whole = engine.codec.decode(generation.codes).numpy()
    assert whole.shape == generation.audio.shape and np.abs(whole - generation.audio).max() < 1e-5
