"""Streamed audio is the audio, and from every side that can break a stream the engine stays free for others."""

import asyncio
import gc
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.memory import WorkingMemory
from dia_engine import Engine
from dia_engine.kernels.advance import advance
from dia_engine.weights.synthetic import random_weights, synthetic_config
from tests.runtime.helpers import HANGS, wait_until
from tests.sound import difference, random_codec, small_codec, tolerance

TEXT = "[S1] Hello there. [S2] Hi! (laughs)"
LONG = {"max_tokens": 3072, "seed": 2}  # this seed does not end by itself


def wait_until_idle(engine: Engine) -> None:
    wait_until(lambda: not engine.active_requests)


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_is_the_whole(engine, seed):
    chance = random.Random(seed)
    steady = chance.choice([1, 3, 16, 48, 100])
    chunks = {"chunk_frames": steady, "first_chunk_frames": chance.choice([None, 1, steady])}
    prompt = torch.randint(1024, (chance.randint(1, 20), 9)) if seed % 2 else None
    frames = chance.choice([1, 2, 9, 20, 60])
    params = {"seed": seed, "audio_prompt": prompt, "temperature": chance.choice([0.0, 1.2])}
    params["max_tokens"] = frames + 16 + (0 if prompt is None else len(prompt))
    whole, pieces = engine.generate(TEXT, **params), list(engine.stream(TEXT, **params, **chunks))
    assert difference(pieces, whole) <= tolerance(engine.codec)
    assert all(0 < len(piece) <= steady * 512 for piece in pieces)


def test_a_batch_streams_each_of_its_texts(engine, engine_without_codec):
    texts = [TEXT, "[S2] A longer second script, so that lengths differ.", "[S1] x"]
    params = {"audio_prompt": [None, torch.randint(1024, (7, 9)), None], "seed": [3, 4, 5], "max_tokens": 40}
    for each in (engine, engine_without_codec):
        pieces = [[], [], []]
        for index, piece in each.stream(texts, chunk_frames=10, **params):
            pieces[index].append(piece)
        for found, whole in zip(pieces, each.generate(texts, **params), strict=True):
            assert difference(found, whole) <= tolerance(engine.codec)
    assert [index for index, _ in engine_without_codec.stream([TEXT], max_tokens=20)] == [0], "a list of one is a list"


def test_without_a_codec_a_stream_is_of_codes(engine_without_codec):
    pieces = list(engine_without_codec.stream(TEXT, seed=1, max_tokens=60))
    assert [piece.shape for piece in pieces] == [(8, 9), (16, 9), (20, 9)] and pieces[0].dtype == np.int64
    assert np.array_equal(np.concatenate(pieces), engine_without_codec.generate(TEXT, seed=1, max_tokens=60))


def scripted_engine(chance: random.Random, end_row: int | None = None, rows: int = 200, **codec_sizes) -> Engine:
    """An engine whose steps take codes from a table by row and seed, and EOS in a given row: quick, ends anywhere."""
    codec = small_codec(**codec_sizes) if codec_sizes else random_codec(chance)
    codes, channels = codec.codebook_size, codec.num_codebooks
    sizes = synthetic_config("synthetic:tiny")
    decoder = replace(
        sizes.decoder, num_channels=channels, vocab_size=codes + 3, num_hidden_layers=1, max_position_embeddings=rows
    )
    delay = (0, *(chance.randint(0, 6) for _ in range(channels - 1)))
    ids = {"eos_token_id": codes, "pad_token_id": codes + 1, "bos_token_id": codes + 2}
    config = replace(sizes, decoder=decoder, delay_pattern=delay, **ids)
    engine = Engine(config, random_weights(config, dtype=torch.float32, device="cpu"), codec)
    table = torch.randint(codes, (16, rows + 1, channels))

    def step(state):
        row = state.position + 1
        tokens = table[state.seed % 16, row]
        if end_row is not None:
            tokens[:, 0] = torch.where(row == end_row, codes, tokens[:, 0])
        advance(
            tokens, state.grid, state.position, state.countdown, state.end_row, state.max_tokens, state.delay,
            config.max_delay, codes, codes + 1,
        )  # fmt: skip

    engine.model.step = step
    return engine


@pytest.mark.parametrize("seed", range(30))
def test_random_codecs_delays_prompts_and_ends(seed):
    chance = random.Random(seed)
    prompt_frames = chance.randint(1, 9)
    engine = scripted_engine(chance, end_row=prompt_frames + 1 + chance.choice([0, 4, 5, 9, 30, 100]))
    prompts = [None, torch.randint(engine.codec.codebook_size, (prompt_frames, engine.codec.num_codebooks))]
    call = {"text": [TEXT, "[S2] x"], "audio_prompt": prompts, "seed": [1, 2]}
    pieces, steady = [[], []], chance.choice([1, 2, 5, 30, 90])
    try:
        whole = engine.generate(**call)
    except RuntimeError:  # so few frames that a layer of odd stride leaves nothing
        with pytest.raises(RuntimeError):
            list(engine.stream(**call))
        return
    for index, piece in engine.stream(**call, chunk_frames=steady, first_chunk_frames=chance.randint(1, steady)):
        pieces[index].append(piece)
    for found, sound in zip(pieces, whole, strict=True):
        assert difference(found, sound) <= tolerance(engine.codec)


def test_first_sound_after_the_fewest_steps(engine, monkeypatch):
    made, seen = [], []
    step, windows = engine.model.step, engine.windows
    pieces = windows.pieces
    monkeypatch.setattr(engine.model, "step", lambda state: (made.append(1), step(state)))
    monkeypatch.setattr(windows, "pieces", lambda *window: (seen.append(len(made)), pieces(*window))[1])
    with engine.stream(TEXT, **LONG) as stream:
        next(stream)
    wait_until_idle(engine)
    assert seen[0] == 15 + 8 + windows.receptive_field.after, "the delay, the frames of the chunk, and those after it"


@pytest.mark.parametrize("chunks", [(0, None), (2.5, None), (3, 4)])
def test_mistakes_are_named_at_the_call(engine, chunks):
    with pytest.raises((ValueError, TypeError), match="chunk_frames"):
        engine.stream(TEXT, chunk_frames=chunks[0], first_chunk_frames=chunks[1])
    for arguments in ({"text": ""}, {"seed": -1}, {"max_tokens": 16}, {"audio_prompt": "absent.wav"}):
        with pytest.raises((ValueError, FileNotFoundError)):
            engine.stream(**{"text": TEXT, **arguments, "chunk_frames": 5})


def leave_by_close(engine):
    stream = engine.stream(TEXT, **LONG)
    next(stream)
    stream.close()
    assert next(stream, None) is None, "closed is closed"
    with pytest.raises(RuntimeError, match="read to its end"):
        _ = stream.result


def test_the_result_of_a_stream_that_has_none_says_why(engine):
    stream = engine.stream(TEXT, **LONG)
    with pytest.raises(RuntimeError, match="once it has been read"):
        _ = stream.result
    stream.close()
    with pytest.raises(RuntimeError, match="was closed before"):
        _ = stream.result

    def fail(part="[S1] Yes. "):
        yield part
        raise ZeroDivisionError

    stream = engine.stream(fail())
    with pytest.raises(ZeroDivisionError):
        list(stream)
    with pytest.raises(RuntimeError, match="has failed"):
        _ = stream.result


def leave_by_with(engine):
    with engine.stream(TEXT, **LONG) as stream:
        next(stream)


def leave_by_error(engine):
    with pytest.raises(ZeroDivisionError):
        for _ in engine.stream(TEXT, **LONG):
            raise ZeroDivisionError


def leave_by_ctrl_c(engine):
    stream = engine.stream(TEXT, chunk_frames=3000, first_chunk_frames=3000, **LONG)
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    finally:
        signal.signal(signal.SIGINT, before)


def leave_a_generation_by_ctrl_c(engine):
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(TEXT, **LONG)
    finally:
        signal.signal(signal.SIGINT, before)


def leave_by_collection(engine):
    stream = engine.stream(TEXT, **LONG)
    next(stream)
    holder = [stream]
    holder.append(holder)
    del stream, holder
    gc.collect()


def leave_before_the_start(engine):
    engine.stream(TEXT, **LONG)
    engine.stream(TEXT, **LONG).close()
    assert not engine.active_requests


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_close,
        leave_by_with,
        leave_by_error,
        leave_by_ctrl_c,
        leave_a_generation_by_ctrl_c,
        leave_by_collection,
        leave_before_the_start,
    ],
)
def test_whoever_leaves_frees_the_slot_after_the_launch_in_progress(engine, leave, monkeypatch):
    wanted = engine.generate(TEXT, seed=5, max_tokens=30)
    step, steps = engine.model.step, []
    monkeypatch.setattr(engine.model, "step", lambda state: (steps.append(1), step(state)))
    leave(engine)
    made = len(steps)
    wait_until_idle(engine)
    assert len(steps) <= made + 1
    assert np.array_equal(engine.generate(TEXT, seed=5, max_tokens=30), wanted)


def test_an_error_in_the_work_reaches_the_reader_and_frees_the_engine(engine, monkeypatch):
    wanted = engine.generate(TEXT, seed=5, max_tokens=30)
    with monkeypatch.context() as broken:
        broken.setattr(engine.model, "step", lambda state: 1 / 0)
        stream = engine.stream(TEXT)
        with pytest.raises(ZeroDivisionError):
            next(stream)
    assert next(stream, None) is None
    wait_until_idle(engine)
    assert np.array_equal(engine.generate(TEXT, seed=5, max_tokens=30), wanted)


def test_two_streams_and_a_generation_at_once_are_all_right(engine_without_codec):
    texts = [TEXT, "[S2] Another script.", "[S1] And one more."]
    params = {"seed": 1, "max_tokens": 50}
    wanted, found = [engine_without_codec.generate(text, **params) for text in texts], {}

    def read(index):
        found[index] = np.concatenate(list(engine_without_codec.stream(texts[index], chunk_frames=4, **params)))

    threads = [threading.Thread(target=read, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    found[2] = engine_without_codec.generate(texts[2], **params)
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[index], whole) for index, whole in enumerate(wanted))


def test_one_thread_reads_two_streams_in_turn_and_generates_in_between(engine_without_codec):
    params = {"seed": 1, "max_tokens": 50}
    texts = [TEXT, "[S2] Two."]
    first, second = (engine_without_codec.stream(text, chunk_frames=4, **params) for text in texts)
    pieces = [[next(first)], [next(second)]]
    assert len(engine_without_codec.generate("[S1] Three.", max_tokens=30)) == 14
    pieces[0].append(next(first))
    pieces[1] += second
    pieces[0] += first
    for found, text in zip(pieces, texts, strict=True):
        assert np.array_equal(np.concatenate(found), engine_without_codec.generate(text, **params))


def test_threads_of_a_pool_read_one_stream_piece_by_piece(engine_without_codec):
    params = {"seed": 1, "max_tokens": 60}
    wanted = engine_without_codec.generate(TEXT, **params)
    stream = engine_without_codec.stream(TEXT, chunk_frames=4, first_chunk_frames=4, **params)
    with ThreadPoolExecutor(4) as pool:
        pieces = [piece for piece in pool.map(lambda _: next(stream, None), range(20)) if piece is not None]
    assert sum(map(len, pieces)) == len(wanted)


def test_a_stream_goes_on_with_async_for(engine_without_codec):
    params = {"seed": 1, "max_tokens": 50}
    stream = engine_without_codec.stream(TEXT, chunk_frames=4, **params)
    pieces = [next(stream)]

    async def rest():
        return [piece async for piece in stream]

    pieces += asyncio.run(rest())
    assert np.array_equal(np.concatenate(pieces), engine_without_codec.generate(TEXT, **params))


def test_async_streams_do_not_hold_up_the_event_loop(engine, monkeypatch):
    params = {"seed": 1, "max_tokens": 60}
    step, stepping, goes_on = engine.model.step, threading.Event(), threading.Event()

    def gated(state):
        stepping.set()
        assert goes_on.wait(HANGS), "the event loop is held up by a step"
        step(state)

    async def read(text):
        return [piece async for piece in engine.astream(text, chunk_frames=7, **params)]

    async def let_it_step():
        while not stepping.is_set():
            await asyncio.sleep(0.001)
        goes_on.set()

    async def both():
        return await asyncio.gather(read(TEXT), read("[S2] Two."), let_it_step())

    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "step", gated)
        *results, _ = asyncio.run(both())
    for found, text in zip(results, (TEXT, "[S2] Two."), strict=True):
        assert difference(found, engine.generate(text, **params)) <= tolerance(engine.codec)


def test_a_prompt_is_encoded_neither_in_the_call_nor_in_the_event_loop(engine, monkeypatch):
    """Encoding takes seconds, in which a server's event loop must go on; a mistake is told in the call all the same."""
    rate = engine.sample_rate
    tone = (0.3 * np.sin(np.arange(rate // 5) * 0.05)).astype(np.float32)
    params = {"audio_prompt": (tone, rate), "max_tokens": 60, "seed": 2}
    whole, encode, threads = engine.generate(TEXT, **params), engine.codec.encode, []

    def traced(*args):
        threads.append(threading.current_thread())
        return encode(*args)

    monkeypatch.setattr(engine.codec, "encode", traced)
    with pytest.raises(ValueError, match=r"audio prompt has \d+ frames, max_tokens leaves room for"):
        engine.astream(TEXT, **params | {"max_tokens": 20})
    stream = engine.astream(TEXT, **params)
    assert not threads

    async def read():
        return [piece async for piece in stream]

    assert difference(asyncio.run(read()), whole) <= tolerance(engine.codec)
    assert len(threads) == 1 and threads[0] is not threading.current_thread()


def test_what_a_caller_does_to_a_prompt_after_the_call_is_not_heard(engine):
    rate = engine.sample_rate
    tone = (0.3 * np.sin(np.arange(rate // 5) * 0.05)).astype(np.float32)
    codes = torch.randint(1024, (8, 9))
    tensor = torch.from_numpy(tone.copy())
    for prompt, spoil in (
        ((tone, rate), lambda: tone.fill(np.nan)),
        ((tensor, rate), lambda: tensor.fill_(0.5)),
        (codes, lambda: codes.fill_(9999)),
    ):
        whole = engine.generate(TEXT, audio_prompt=prompt, max_tokens=60, seed=2)
        stream = engine.stream(TEXT, audio_prompt=prompt, max_tokens=60, seed=2)
        spoil()
        assert difference(stream, whole) <= tolerance(engine.codec)


def test_a_stream_is_closed_between_two_prompts(engine, monkeypatch):
    tone, rate = np.full(5000, 0.1, np.float32), engine.sample_rate
    encode, encoding, closed = engine.codec.encode, threading.Event(), threading.Event()

    def traced(*args):
        assert not encoding.is_set(), "no prompt is encoded after the close"
        encoding.set()
        assert closed.wait(HANGS)
        return encode(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine.codec, "encode", traced)
        stream = engine.astream([TEXT] * 3, audio_prompt=[(tone, rate)] * 3, max_tokens=60)

        async def leave():
            reading = asyncio.ensure_future(anext(stream))
            while not encoding.is_set():
                await asyncio.sleep(0.01)
            reading.cancel()
            await stream.aclose()
            closed.set()

        asyncio.run(leave())
    assert not engine.active_requests and len(engine.generate(TEXT, max_tokens=20))


@pytest.mark.parametrize("leave", ["cancel", "error", "aclose", "timeout"])
def test_leaving_an_async_stream_frees_the_slot(engine, leave, monkeypatch):
    step, begun = engine.model.step, []

    async def reader(spoke):
        async for _ in engine.astream(TEXT, **LONG):
            spoke.set()
            if leave == "error":
                raise ZeroDivisionError

    async def main():
        if leave == "aclose":
            stream = engine.astream(TEXT, **LONG)
            await stream.__anext__()
            await stream.aclose()
            await stream.aclose()
            assert [piece async for piece in stream] == []
            return
        spoke = asyncio.Event()
        task = asyncio.create_task(reader(spoke))
        if leave == "timeout":  # at whatever moment: 3072 steps take longer in any case
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task, 0.1)
            return
        if leave == "cancel":
            await spoke.wait()
            task.cancel()
        with pytest.raises(asyncio.CancelledError if leave == "cancel" else ZeroDivisionError):
            await task

    monkeypatch.setattr(engine.model, "step", lambda state: (begun.append(1), step(state)))
    asyncio.run(main())
    gc.collect()  # the stream of the reader that raised
    before = len(begun)
    wait_until_idle(engine)
    assert len(begun) <= before + 1, "a step later at most"


def test_an_unread_stream_does_not_keep_the_process_from_ending():
    """Most of the 3072 steps wait until the interpreter exits; it stops them instead of waiting for them."""
    code = f"""
import atexit, os, threading, time
steps, heard, exits = [], threading.Event(), threading.Event()
atexit.register(lambda: print(len(steps)))  # the last to run, when the engine's thread has ended
from dia_engine import Engine
engine = Engine.load("synthetic:tiny", device="cpu")
make_step = engine.model.step
def gated(state):
    steps.append(1)
    if len(steps) > 100:
        time.sleep(0.01)  # the first chunk comes from a thread of the codec
    if heard.is_set() and not exits.wait({HANGS}):
        os._exit(1)
    make_step(state)
engine.model.step = gated
stream = engine.stream("x", seed=2)
print(len(next(stream)))
heard.set()
atexit.register(exits.set)  # the first to run
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=2 * HANGS)
    assert done.returncode == 0 and not done.stderr, done.stderr
    samples, steps = map(int, done.stdout.split())
    assert samples == 4096 and steps < 3000


def test_verbose_counts_the_steps(engine_without_codec, capsys):
    list(engine_without_codec.stream(TEXT, max_tokens=40, verbose=True))
    assert "steps/s" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure memory")
def test_memory_does_not_grow_with_the_length():
    engine = scripted_engine(random.Random(0), rows=3072, decoder_hidden_size=64)
    pieces = engine.stream(TEXT, seed=1)
    for _ in islice(pieces, 6):  # first calls fill caches
        pass
    memory = WorkingMemory(torch.device("cpu"))
    assert sum(map(len, pieces)) > 2800 * 512
    assert memory.peak() < 7e6, "the audio, which the reader may not have taken yet, is 6 MB; decoding it takes more"


# What only a GPU can show


@pytest.fixture(scope="module")
def on_gpu() -> Engine:
    return Engine.load("synthetic:tiny", dtype="bfloat16", device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("chunks", [{}, {"chunk_frames": 5}, {"chunk_frames": 100, "first_chunk_frames": 3}])
def test_a_stream_is_the_whole_with_graphs(on_gpu, chunks):
    for max_tokens in (17, 40, 200, 600):
        params = {"seed": 3, "max_tokens": max_tokens}
        assert difference(on_gpu.stream(TEXT, **params, **chunks), on_gpu.generate(TEXT, **params)) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize(("codec_dtype", "limit"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_half_precision_on_a_gpu_is_within_the_codecs_own_rounding(on_gpu, codec_dtype, limit):
    engine = Engine.load("synthetic:tiny", dtype="bfloat16", device="cuda", codec_dtype=codec_dtype)
    exact = on_gpu.generate(TEXT, seed=3, max_tokens=300)
    found = np.concatenate(list(engine.stream(TEXT, seed=3, max_tokens=300)))
    assert (found - exact).std() < limit * exact.std()


@pytest.mark.gpu
def test_windows_are_captured_once_and_used(on_gpu):
    list(on_gpu.stream(TEXT, seed=3, max_tokens=400))
    graphs = dict(on_gpu.windows._graphs)
    assert {18, 34, 52, 68} <= set(graphs)
    list(on_gpu.stream(TEXT, seed=4, max_tokens=400))
    list(on_gpu.stream(TEXT, seed=4, max_tokens=400, chunk_frames=20))
    assert graphs.items() <= on_gpu.windows._graphs.items() and 40 in on_gpu.windows._graphs


@pytest.mark.gpu
def test_streams_do_not_grow_the_memory_of_a_gpu(on_gpu):
    list(on_gpu.stream(TEXT, seed=3, max_tokens=300))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for max_tokens in (300, 1500):
        list(on_gpu.stream(TEXT, seed=3, max_tokens=max_tokens))
        on_gpu.stream(TEXT, seed=3).close()
    with on_gpu.stream(TEXT, seed=3) as stream:
        next(stream)
    wait_until_idle(on_gpu)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
