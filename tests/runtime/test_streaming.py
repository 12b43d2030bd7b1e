"""Streamed sound is the sound: windows, their order, and the engine's streams from every side that can break them."""

import asyncio
import gc
import math
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.memory import WorkingMemory
from dia_engine import Engine
from dia_engine.codec import Codec, CodecConfig
from dia_engine.codec.receptive_field import Reach, reach
from dia_engine.codec.windowed import SoundWindows, widened
from dia_engine.kernels.advance import RUNNING, advance
from dia_engine.runtime.runner import STEPS_PER_GRAPH, Look
from dia_engine.runtime.streaming import ChunkSizes, Schedule, complete_frames, full_windows, window_lengths
from dia_engine.weights.synthetic import random_weights, synthetic_config

TEXT = "[S1] Hello there. [S2] Hi! (laughs)"
LONG = {"max_tokens": 3072, "seed": 2}  # this seed does not end by itself
TOLERANCE = 1e-5
HANGS = 120  # seconds after which a test that waits for an event gives up


def small_codec(seed: int = 0, **sizes) -> Codec:
    config = CodecConfig(**{"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_dim": 4, **sizes})
    return Codec.from_config(config, seed)


def random_codec(chance: random.Random) -> Codec:
    ratios = (99,)
    while math.prod(ratios) > 90:  # quick
        ratios = tuple(chance.choice([1, 2, 3, 4, 5, 7, 8]) for _ in range(chance.randint(1, 4)))
    return small_codec(
        chance.randrange(99),
        downsampling_ratios=ratios[::-1],
        upsampling_ratios=ratios,
        decoder_hidden_size=2 ** len(ratios) * chance.choice([1, 2, 3]),
        hidden_size=chance.choice([4, 7, 16]),
        n_codebooks=chance.randint(1, 9),
        codebook_size=chance.choice([8, 16, 1024]),
    )


def joined(pieces, like: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((0, *like.shape[1:]), like.dtype), *pieces])


def difference(pieces, whole: np.ndarray) -> float:
    pieces = joined(pieces, whole)
    assert pieces.shape == whole.shape and pieces.dtype == whole.dtype
    return float(np.abs(pieces - whole).max(initial=0.0))


# Reach


def test_reach_of_the_published_codec():
    assert reach(Codec.from_config(replace(CodecConfig(), decoder_hidden_size=16)).decoder) == Reach(10, 10)


@pytest.mark.parametrize("seed", range(12))
def test_reach_is_what_the_sound_depends_on_and_no_more(seed):
    codec = random_codec(random.Random(seed))
    found, hop = reach(codec.decoder), codec.hop_length
    frames = found.before + found.after + 3
    latent = torch.randn(1, codec.config.hidden_size, frames, requires_grad=True)
    with torch.enable_grad():
        sound = codec.decoder(latent)[0, 0]
        middle = found.before + 1
        (gradient,) = torch.autograd.grad(sound[middle * hop : (middle + 1) * hop].square().sum(), latent)
    heard = gradient[0].abs().sum(dim=0).nonzero().flatten()
    assert heard[0] >= middle - found.before and heard[-1] <= middle + found.after, "or a window would be wrong"
    assert heard[0] <= middle - found.before + 1 and heard[-1] >= middle + found.after - 1, "nearly all of it counts"


def test_an_unknown_layer_is_refused():
    with pytest.raises(TypeError, match="how far a LSTM reaches"):
        reach([nn.Conv1d(3, 3, 3), nn.LSTM(3, 3)])


# Windows


def windows_of(sizes: ChunkSizes, around: Reach, arrivals: list[int]):
    """The windows of a sound whose complete frames grow as in `arrivals`, the last of which is its end."""
    schedule, found = Schedule(sizes, around), []
    for index, frames in enumerate(arrivals):
        while window := schedule.next(frames, ended=index == len(arrivals) - 1):
            assert window.stop <= frames
            found.append(window)
    return found


def test_chunks_double_up_to_the_steady_size():
    around = Reach(10, 10)
    found = list(islice(full_windows(ChunkSizes(48, 8), around), 6))
    assert [window.last - window.first for window in found] == [8, 16, 32, 48, 48, 48]
    assert [(window.start, window.stop) for window in found[:4]] == [(0, 18), (0, 34), (14, 66), (46, 114)]
    assert window_lengths(ChunkSizes(48, 8), around) == {18, 34, 52, 68}
    assert window_lengths(ChunkSizes(5, 5), Reach(0, 0)) == {5}
    assert window_lengths(ChunkSizes(1), Reach(2, 1)) == {2, 3, 4}


def test_windows_cover_every_frame_once():
    chance = random.Random(0)
    for _ in range(300):
        steady, around = chance.randint(1, 60), Reach(chance.randint(0, 12), chance.randint(0, 12))
        sizes = ChunkSizes(steady, chance.randint(1, steady))
        total = chance.randint(0, 150)
        arrivals = sorted(chance.randint(0, total) for _ in range(chance.randint(0, 30))) + [total]
        found, given = windows_of(sizes, around, arrivals), 0
        for window in found:
            assert window.first == given < window.last and window.last - window.first <= steady
            assert window.start == max(0, window.first - around.before)
            assert window.stop == min(total, window.last + around.after)
            assert window.ends == (window.last == total)
            given = window.last
        assert given == total


@pytest.mark.parametrize("seed", range(30))
def test_any_windows_of_any_codec_are_the_whole(seed):
    chance = random.Random(seed)
    codec = random_codec(chance)
    windows = SoundWindows(codec)
    steady = chance.choice([1, 2, 5, 16, 40])
    total = chance.choice([len(codec.config.upsampling_ratios) + 1, 17, 50, chance.randint(5, 90)])
    codes = torch.randint(codec.codebook_size, (total, codec.num_codebooks))
    sizes = ChunkSizes(steady, chance.randint(1, steady))
    pieces = decoded(windows, codes, sizes, lambda start: chance.randint(0, start))  # more context is no harm
    assert difference(pieces, codec.decode(codes).numpy()) < TOLERANCE


def decoded(windows: SoundWindows, codes: torch.Tensor, sizes: ChunkSizes, earlier=lambda start: start):
    """The sound of codes, window by window as they become complete."""
    pieces = []
    for window in windows_of(sizes, windows.reach, [*range(len(codes)), len(codes)]):
        start = earlier(window.start)
        last = None if window.ends else window.last - start
        pieces.append(windows.decode(codes[start : window.stop], window.first - start, last).wait().cpu().numpy())
    return pieces


@pytest.mark.parametrize("chunk_frames", [1, 3, 8])
def test_windows_of_the_recorded_codec(chunk_frames):
    codec = Codec.load(Path(__file__).parents[1] / "data" / "dac", device="cpu")
    codes = torch.randint(codec.codebook_size, (40, codec.num_codebooks))
    pieces = decoded(SoundWindows(codec), codes, ChunkSizes(chunk_frames))
    assert difference(pieces, codec.decode(codes).numpy()) < TOLERANCE


def test_a_last_window_is_widened_to_a_captured_length():
    assert widened(30, 40, {18, 34, 52}) == 22 and widened(30, 40, {10, 34}) == 30
    assert widened(0, 40, {18, 34, 52}) == 0, "none fits: longer than what there is, or shorter than the window"
    assert widened(5, 40, {52, 38}) == 2 and widened(5, 40, ()) == 5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_of_the_codec_is_near_float32(dtype, limit):
    """Error against float32, as a share of the sound's size; README states that of the full-size codec."""
    sizes = {"decoder_hidden_size": 64, "n_codebooks": 3, "codebook_size": 64}
    exact, half = small_codec(**sizes), Codec.from_config(small_codec(**sizes).config, dtype=dtype)
    codes = torch.randint(64, (40, 3))
    whole = exact.decode(codes)
    assert (half.decode(codes) - whole).std() < limit * whole.std()


# Frames


def test_complete_frames():
    knobs = {"prompt": 5, "max_delay": 15}
    assert complete_frames(5, RUNNING, 0, **knobs) == (0, False)
    assert complete_frames(5 + 15, RUNNING, 0, **knobs) == (0, False)
    assert complete_frames(5 + 16, RUNNING, 0, **knobs) == (1, False), "frame 0 stands in row P + 1 + max delay"
    assert complete_frames(60, RUNNING, 0, **knobs) == (40, False)
    assert complete_frames(48, 14, 47, **knobs) == (28, False), "the end has come, of what is left 13 are open"
    assert complete_frames(61, 1, 47, **knobs) == (41, False)
    assert complete_frames(61, 0, 47, **knobs) == (41, True)
    assert complete_frames(6, 0, 6, **knobs) == (0, True), "it ended at once"
    assert complete_frames(9, 0, 10, prompt=0, max_delay=0) == (9, True)


@pytest.mark.parametrize("values", [(0,), (4, 5), (48, 0), (None, -1)])
def test_chunk_sizes_out_of_range(values):
    with pytest.raises(ValueError, match="chunk_frames must be at (least 1|most chunk_frames, 4), got"):
        ChunkSizes(*values)


def test_default_chunk_sizes_follow_the_reach():
    assert ChunkSizes().settled(Reach(10, 10)) == ChunkSizes(48, 8)
    assert ChunkSizes().settled(Reach(15, 15)) == ChunkSizes(60, 8), "a window of 90 frames for 60"
    assert ChunkSizes(4).settled(Reach(10, 10)) == ChunkSizes(4, 4)
    assert ChunkSizes(None, 70).settled(Reach(1, 1)) == ChunkSizes(70, 70)


# Streams


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_is_the_whole(engine, seed, monkeypatch):
    monkeypatch.setattr(engine, "_runs_ahead", seed % 3 == 0)
    chance = random.Random(seed)
    steady = chance.choice([1, 3, 16, 48, 100])
    chunks = {"chunk_frames": steady, "first_chunk_frames": chance.choice([None, 1, steady])}
    prompt = torch.randint(1024, (chance.randint(1, 20), 9)) if seed % 2 else None
    frames = chance.choice([1, 2, 9, 20, 60])
    knobs = {"seed": seed, "audio_prompt": prompt, "temperature": chance.choice([0.0, 1.2])}
    knobs["max_tokens"] = frames + 16 + (0 if prompt is None else len(prompt))
    whole, pieces = engine.generate(TEXT, **knobs), list(engine.stream(TEXT, **knobs, **chunks))
    assert difference(pieces, whole) < TOLERANCE
    assert all(0 < len(piece) <= steady * 512 for piece in pieces)


def test_a_batch_streams_each_of_its_texts(engine, engine_without_codec):
    texts = [TEXT, "[S2] A longer second script, so that lengths differ.", "[S1] x"]
    knobs = {"audio_prompt": [None, torch.randint(1024, (7, 9)), None], "seed": [3, 4, 5], "max_tokens": 40}
    for each in (engine, engine_without_codec):
        pieces = [[], [], []]
        for index, piece in each.stream(texts, chunk_frames=10, **knobs):
            pieces[index].append(piece)
        for found, whole in zip(pieces, each.generate(texts, **knobs)):
            assert difference(found, whole) < TOLERANCE
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
    for found, sound in zip(pieces, whole):
        assert difference(found, sound) < TOLERANCE


class SlowCopy:
    """A HostCopy as on a GPU: on its way for a while."""

    def __init__(self, copy, polls):
        self.copy, self.polls = copy, polls

    def ready(self):
        self.polls -= 1
        return self.polls < 0

    def wait(self):
        return self.copy.wait()


def test_the_loop_around_a_gpu(engine, monkeypatch):
    """Launches of eight steps and of one, looks and copies that are not ready at once: all of it but the GPU."""
    chance = random.Random(0)
    stepper, launches = engine._stepper, []
    monkeypatch.setattr(stepper, "_launch_sizes", (STEPS_PER_GRAPH, 1))
    monkeypatch.setattr(stepper, "_launch", lambda state, steps: (launches.append(steps), stepper._steps(state, steps)))
    monkeypatch.setattr(Look, "ready", lambda look: chance.random() < 0.3)
    decode = engine._windows.decode
    monkeypatch.setattr(engine._windows, "decode", lambda *part: SlowCopy(decode(*part), chance.randint(0, 6)))
    monkeypatch.setattr(engine._windows, "widened", lambda start, stop: widened(start, stop, {18, 34, 52, 68}))
    knobs = {"text": [TEXT, "[S2] x"], "seed": 2, "max_tokens": 100}
    pieces = [[], []]
    for index, piece in engine.stream(**knobs):
        pieces[index].append(piece)
    assert launches[:7] == [8, 8, 8, 8, 1, 8, 8], "the first window is ready after 33 steps, the second after 49"
    monkeypatch.undo()
    for found, whole in zip(pieces, engine.generate(**knobs)):
        assert difference(found, whole) < TOLERANCE


def test_first_sound_after_the_fewest_steps(engine):
    made = []
    step, engine.model.step = engine.model.step, lambda state: (made.append(1), step(state))
    try:
        with engine.stream(TEXT, **LONG) as stream:
            # The thread does not wait for its reader: what matters is where the first window starts.
            original, seen = engine._windows.decode, []
            engine._windows.decode = lambda *window: (seen.append(len(made)), original(*window))[1]
            next(stream)
    finally:
        engine.model.step = step
        del engine._windows.decode
    around = engine._windows.reach
    assert seen[0] == 15 + 8 + around.after, "the delay, the frames of the chunk, and those it hears"


@pytest.mark.parametrize("frames", [0, 3, 10, 15, 40])
def test_steady_windows_decode_less_than_1_6_times_the_whole(frames):
    window = next(islice(full_windows(ChunkSizes(), Reach(frames, frames)), 9, None))
    assert (window.stop - window.start) / (window.last - window.first) < 1.6


@pytest.mark.parametrize("chunks", [(0, None), (2.5, None), (3, 4)])
def test_mistakes_are_named_at_the_call(engine, chunks):
    with pytest.raises((ValueError, TypeError), match="chunk_frames"):
        engine.stream(TEXT, chunk_frames=chunks[0], first_chunk_frames=chunks[1])
    for arguments in ({"text": ""}, {"seed": -1}, {"max_tokens": 16}, {"audio_prompt": "absent.wav"}):
        with pytest.raises((ValueError, FileNotFoundError)):
            engine.stream(**{"text": TEXT, **arguments, **{"chunk_frames": 5}})


@pytest.fixture(params=[False, True], ids=["in the reader's thread", "in a thread ahead of the reader"])
def ahead(request, engine, engine_without_codec, monkeypatch):
    """Both ways to run a stream: as on a CPU, and as on a GPU and in an event loop."""
    for each in (engine, engine_without_codec):
        monkeypatch.setattr(each, "_runs_ahead", request.param)
    return request.param


def leave_by_close(engine):
    stream = engine.stream(TEXT, **LONG)
    next(stream)
    stream.close()
    assert next(stream, None) is None, "closed is closed"


def leave_by_with(engine):
    with engine.stream(TEXT, **LONG) as stream:
        next(stream)


def leave_by_error(engine):
    with pytest.raises(ZeroDivisionError):
        for _ in engine.stream(TEXT, **LONG):
            1 / 0


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


@pytest.mark.parametrize(
    "leave",
    [leave_by_close, leave_by_with, leave_by_error, leave_by_ctrl_c, leave_by_collection, leave_before_the_start],
)
def test_whoever_leaves_frees_the_engine_at_once(engine, leave, ahead):
    wanted = engine.generate(TEXT, seed=5, max_tokens=30)
    leave(engine)
    assert not engine._stepper.lock.locked()
    assert np.array_equal(engine.generate(TEXT, seed=5, max_tokens=30), wanted)


def test_an_error_in_the_work_reaches_the_reader_and_frees_the_engine(engine, ahead):
    wanted = engine.generate(TEXT, seed=5, max_tokens=30)
    step, engine.model.step = engine.model.step, lambda state: 1 / 0
    stream = engine.stream(TEXT)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    engine.model.step = step
    assert next(stream, None) is None and not engine._stepper.lock.locked()
    assert np.array_equal(engine.generate(TEXT, seed=5, max_tokens=30), wanted)


def test_two_streams_and_a_generation_at_once_are_all_right(engine_without_codec, ahead):
    texts = [TEXT, "[S2] Another script.", "[S1] And one more."]
    knobs = {"seed": 1, "max_tokens": 50}
    wanted, found = [engine_without_codec.generate(text, **knobs) for text in texts], {}

    def read(index):
        found[index] = np.concatenate(list(engine_without_codec.stream(texts[index], chunk_frames=4, **knobs)))

    threads = [threading.Thread(target=read, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    found[2] = engine_without_codec.generate(texts[2], **knobs)
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[index], whole) for index, whole in enumerate(wanted))


def test_one_thread_and_two_streams(engine_without_codec, ahead):
    knobs = {"seed": 1, "max_tokens": 50, "chunk_frames": 4}
    texts = [TEXT, "[S2] Two."]
    first, second = (engine_without_codec.stream(text, **knobs) for text in texts)
    pieces = [[next(first)], []]
    if ahead:  # the first is made to its end, whether it is read or not
        assert len(engine_without_codec.generate("[S1] Three.", max_tokens=30)) == 14
    else:  # who would wait would wait for itself
        with pytest.raises(RuntimeError, match="in the middle of a stream of this engine"):
            engine_without_codec.generate("[S1] Three.", max_tokens=30)
        with pytest.raises(RuntimeError, match="in the middle of a stream of this engine"):
            next(second)
        pieces[0] += first
        second = engine_without_codec.stream(texts[1], **knobs)
    pieces[1] += second
    pieces[0] += first
    del knobs["chunk_frames"]
    for found, text in zip(pieces, texts):
        assert np.array_equal(np.concatenate(found), engine_without_codec.generate(text, **knobs))


def test_a_stream_that_waits_for_its_turn_can_be_closed(engine_without_codec, ahead, monkeypatch):
    first, second = engine_without_codec.stream(TEXT, **LONG), engine_without_codec.stream(TEXT, **LONG)
    next(first)
    acquire, waits = engine_without_codec._stepper.lock.acquire, threading.Event()

    def traced(*args, **kwargs):
        acquired = acquire(*args, **kwargs)
        if not acquired:
            waits.set()
        return acquired

    monkeypatch.setattr(engine_without_codec._stepper.lock, "acquire", traced)
    reader = threading.Thread(target=lambda: next(second, None))
    reader.start()
    assert waits.wait(HANGS)
    second.close()
    reader.join(HANGS)
    assert not reader.is_alive() and len(next(first)), "the first goes on"
    first.close()


def test_async_streams(engine, monkeypatch):
    knobs = {"seed": 1, "max_tokens": 60}
    steps, stepping, goes_on = engine._stepper._steps, threading.Event(), threading.Event()

    def gated(*args):
        stepping.set()
        assert goes_on.wait(HANGS), "the event loop is held up by a step"
        steps(*args)

    async def read(text):
        return [piece async for piece in engine.astream(text, chunk_frames=7, **knobs)]

    async def let_it_step():
        while not stepping.is_set():
            await asyncio.sleep(0.001)
        goes_on.set()

    async def both():
        return await asyncio.gather(read(TEXT), read("[S2] Two."), let_it_step())

    monkeypatch.setattr(engine._stepper, "_steps", gated)
    *results, _ = asyncio.run(both())
    for found, text in zip(results, (TEXT, "[S2] Two.")):
        assert difference(found, engine.generate(text, **knobs)) < TOLERANCE


def test_a_prompt_is_encoded_by_the_worker_not_in_the_call(engine, monkeypatch):
    """Encoding takes seconds, in which a server's event loop must go on; a mistake is told in the call all the same."""
    rate = engine.sample_rate
    tone = (0.3 * np.sin(np.arange(rate // 5) * 0.05)).astype(np.float32)
    knobs = {"audio_prompt": (tone, rate), "max_tokens": 60, "seed": 2}
    whole, encode, threads = engine.generate(TEXT, **knobs), engine.codec.encode, []

    def traced(*args):
        threads.append(threading.current_thread())
        return encode(*args)

    monkeypatch.setattr(engine.codec, "encode", traced)
    with pytest.raises(ValueError, match=r"audio prompt has \d+ frames, max_tokens leaves room for"):
        engine.astream(TEXT, **knobs | {"max_tokens": 20})
    stream = engine.astream(TEXT, **knobs)
    assert not threads

    async def read():
        return [piece async for piece in stream]

    assert difference(asyncio.run(read()), whole) < TOLERANCE
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
        assert difference(stream, whole) < TOLERANCE


def test_a_stream_is_closed_between_two_prompts(engine, monkeypatch):
    tone, rate = np.full(5000, 0.1, np.float32), engine.sample_rate
    encode, encoded = engine.codec.encode, threading.Event()

    def traced(*args):
        assert not encoded.is_set(), "no prompt is encoded after the close"
        encoded.set()
        assert stream._worker._cancelled.wait(HANGS)
        return encode(*args)

    monkeypatch.setattr(engine.codec, "encode", traced)
    stream = engine.astream([TEXT] * 3, audio_prompt=[(tone, rate)] * 3, max_tokens=60)

    async def leave():
        reading = asyncio.ensure_future(anext(stream))
        while not encoded.is_set():
            await asyncio.sleep(0.01)
        reading.cancel()
        await stream.aclose()

    asyncio.run(leave())
    monkeypatch.undo()
    assert len(engine.generate(TEXT, max_tokens=20))


@pytest.mark.parametrize("leave", ["cancel", "error", "aclose", "timeout"])
def test_leaving_an_async_stream_frees_the_engine(engine, leave, monkeypatch):
    steps, begun = engine._stepper._steps, []

    def counted(*args):
        begun.append(1)
        steps(*args)

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

    monkeypatch.setattr(engine._stepper, "_steps", counted)
    asyncio.run(main())
    before = len(begun)
    assert engine._stepper.lock.acquire(timeout=HANGS)
    engine._stepper.lock.release()
    assert len(begun) <= before + 1, "a step later at most"


def test_an_unread_stream_does_not_keep_the_process_from_ending():
    """Most of the 3072 steps wait until the interpreter exits; it stops them instead of waiting for them."""
    code = f"""
import atexit, os, threading
steps, exits = [], threading.Event()
atexit.register(lambda: print(len(steps)))  # the last to run, when the stream's thread has ended
from dia_engine import Engine
engine = Engine.load("synthetic:tiny", device="cpu")
engine._runs_ahead, make_steps = True, engine._stepper._steps
def gated(*args):
    steps.append(1)
    if len(steps) > 100 and not exits.wait({HANGS}):
        os._exit(1)
    make_steps(*args)
engine._stepper._steps = gated
stream = engine.stream("x", seed=2)
print(len(next(stream)))
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
@pytest.mark.parametrize("ahead", [False, True])
def test_memory_does_not_grow_with_the_length(ahead):
    engine = scripted_engine(random.Random(0), rows=3072, decoder_hidden_size=64)
    engine._runs_ahead = ahead
    pieces = engine.stream(TEXT, seed=1)
    for _ in islice(pieces, 6):  # first calls fill caches
        pass
    memory = WorkingMemory(torch.device("cpu"))
    assert sum(map(len, pieces)) > 2800 * 512
    assert memory.peak() < 5e6, "the whole sound is 6 MB, and decoding it at once takes more"


# What only a GPU can show


@pytest.fixture(scope="module")
def on_gpu() -> Engine:
    return Engine.load("synthetic:tiny", dtype="bfloat16", device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("chunks", [{}, {"chunk_frames": 5}, {"chunk_frames": 100, "first_chunk_frames": 3}])
def test_a_stream_is_the_whole_with_graphs(on_gpu, chunks):
    for max_tokens in (17, 40, 200, 600):
        knobs = {"seed": 3, "max_tokens": max_tokens}
        assert difference(on_gpu.stream(TEXT, **knobs, **chunks), on_gpu.generate(TEXT, **knobs)) < 1e-4


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
    graphs = dict(on_gpu._windows._graphs)
    assert {18, 34, 52, 68} <= set(graphs)
    list(on_gpu.stream(TEXT, seed=4, max_tokens=400))
    list(on_gpu.stream(TEXT, seed=4, max_tokens=400, chunk_frames=20))
    assert graphs.items() <= on_gpu._windows._graphs.items() and 40 in on_gpu._windows._graphs


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
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
