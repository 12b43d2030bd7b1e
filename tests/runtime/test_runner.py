"""The runner of a model: slots that grow while others run, launches of several steps, and what only a GPU can show."""

import gc
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.batch import batch_codes, start_batch
from dia_engine import Engine
from dia_engine.codec.windowed import CodeWindows
from dia_engine.devices.refusal import SECONDS_TO_RETRY
from dia_engine.model.dia import DiaModel
from dia_engine.model.state import DecodeState
from dia_engine.model.text_graphs import TextGraphs
from dia_engine.runtime.call import Call
from dia_engine.runtime.chunking import ChunkSizes
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import STEPS_PER_LAUNCH, ModelRunner, SlotStatus, Snapshot
from dia_engine.runtime.scheduler import Scheduler
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.synthetic import random_weights, synthetic_config

CONFIG = synthetic_config("synthetic:tiny")
PARAMS = ResolvedSamplingParams(max_tokens=50)
TEXTS = ["[S1] One.", "[S2] Another, longer script.", "[S1] A third. [S2] Yes!"]


@pytest.fixture(scope="module")
def model() -> DiaModel:
    with torch.no_grad():
        return DiaModel(CONFIG, random_weights(CONFIG, dtype=torch.float32, device="cpu"))


def make_requests(count: int) -> list[Request]:
    return [
        Request(torch.randint(1, 250, (5 + 9 * index,)), torch.randint(1024, (4 * index, 9)), PARAMS, seed=index)
        for index in range(count)
    ]


def codes_alone(model: DiaModel, request: Request) -> torch.Tensor:
    state = start_batch(model, [request])
    while state.countdown.any():
        model.step(state)
    (codes,) = batch_codes(state, [request])
    return codes


class GraphRunner(ModelRunner):
    """A runner as on a GPU whose "graphs" make their steps one by one: all of it but CUDA.

    `memory` is that of the GPU, in slots; its graphs do not fit where the number of slots is in `too_large`.
    """

    def __init__(self, model, max_slots=64, memory=1000):
        super().__init__(model, max_slots=max_slots)
        self.on_gpu = self.captures = True
        self.allocated, self.captured, self.launched, self.memory = [], [], [], memory

    def _free_bytes(self):
        return (self.memory - self._slots) * self.slot_bytes()

    def _grow(self, slots):
        super()._grow(slots)
        self.allocated.append(slots)

    def _ensure_captured(self, slots):
        if (slots, 1) not in self._graphs:
            self.captured.append(slots)
            self._graphs |= {(slots, steps): None for steps in STEPS_PER_LAUNCH}

    def _launch(self, slots, steps):
        self.launched.append((len(slots), steps))
        self._steps(self._part(slots), steps)


def schedule(runner: ModelRunner, requests: list[Request], sizes=ChunkSizes(8, 8)) -> list[np.ndarray]:  # noqa: B008
    """The codes of requests that run together, after the first few join one by one."""
    scheduler = Scheduler(runner, CodeWindows(runner.model.device), max_delay=CONFIG.max_delay, frames_per_second=86)
    call = Call(len(requests), streaming=True)
    for index, request in enumerate(requests):
        scheduler.add(request, index, call, sizes)
        scheduler.step()
    while scheduler.unfinished:
        scheduler.step()
    pieces = [[] for _ in requests]
    for chunk in call:
        pieces[chunk.index].append(chunk.audio)
    whole = [result.codes for result in call.results]
    assert all(np.array_equal(np.concatenate(found), codes) for found, codes in zip(pieces, whole, strict=True))
    return whole


@pytest.mark.parametrize("runner", [ModelRunner, GraphRunner])
def test_launches_of_several_steps_give_the_codes_of_single_steps(model, runner):
    requests = make_requests(5)
    for codes, request in zip(schedule(runner(model, max_slots=3), requests), requests, strict=True):
        assert np.array_equal(codes, codes_alone(model, request))


def test_memory_grows_while_requests_run(model):
    runner, requests = GraphRunner(model), make_requests(9)
    found = schedule(runner, requests)
    assert runner.allocated == [1, 2, 4, 8, 12] and runner.captured == [1, 2, 4, 8, 12]
    for codes, request in zip(found, requests, strict=True):
        assert np.array_equal(codes, codes_alone(model, request))


def half_prefilled(model, pieces, monkeypatch):
    """A runner of one slot, and the prefill of a request that has come to so many of its pieces."""
    monkeypatch.setattr("dia_engine.model.dia.PREFILL_ROWS", (8, 8))
    runner, request = GraphRunner(model), make_requests(4)[3]
    assert runner.ensure_slot(0)
    prefill = runner.prefill(0, request)
    assert len(list(islice(prefill, pieces))) == pieces
    return runner, request, prefill


@pytest.mark.parametrize("pieces", [1, 5, 9, 12])
def test_memory_may_grow_in_the_middle_of_a_prefill(model, pieces, monkeypatch):
    runner, request, prefill = half_prefilled(model, pieces, monkeypatch)
    assert runner.ensure_slot(1) and runner.allocated == [1, 2]
    assert len(list(prefill)) > 0, "there is something left to do"
    runner.activate(0, request)
    while runner.state.countdown[0]:
        runner.decode(range(1), 8)
    alone = codes_alone(model, request)
    assert torch.equal(runner.codes(0, len(request.prompt_codes), len(alone)), alone)


def test_texts_are_read_by_graphs_where_that_is_on(model):
    runner, requests = GraphRunner(model, max_slots=3), make_requests(5)
    runner._text_graphs = TextGraphs(model, captures=False)
    for codes, request in zip(schedule(runner, requests), requests, strict=True):
        assert np.array_equal(codes, codes_alone(model, request))


@pytest.mark.parametrize("pieces", [4, 8, 11, 14, 16])
def test_a_prefill_that_is_half_done_keeps_no_memory_that_was_given_up(model, pieces, monkeypatch):
    runner, _, prefill = half_prefilled(model, pieces, monkeypatch)
    state = runner.state
    caches = (state.self_cache.keys, state.self_cache.values, state.cross_cache.keys, state.cross_cache.values)
    given_up = [StorageWeakRef(cache.untyped_storage()) for cache in caches]
    del caches
    assert runner.ensure_slot(1)
    gc.collect()
    assert all(storage.expired() for storage in given_up)
    prefill.close()


def test_memory_that_was_refused_is_asked_for_again_a_while_later(model, monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr("dia_engine.devices.refusal.time.monotonic", lambda: now[0])
    runner = GraphRunner(model, memory=3)
    assert runner.ensure_slot(0) and runner.ensure_slot(1)
    for _ in range(3):  # of which the second and the third do not ask
        assert not runner.ensure_slot(2)
    now[0] += SECONDS_TO_RETRY + 0.1
    assert not runner.ensure_slot(2) and len(caplog.records) == 1, "one line, however long it lasts"
    runner.memory = 100  # somebody else has given memory back
    assert not runner.ensure_slot(2)
    now[0] += SECONDS_TO_RETRY + 0.1
    assert runner.ensure_slot(2) and runner.allocated == [1, 2, 4]
    runner.memory = 5
    assert not runner.ensure_slot(4) and len(caplog.records) == 2, "news again"
    runner.memory = 100
    runner.prepare(8)
    assert runner.ensure_slot(7) and runner.ensure_slot(8) and runner.allocated == [1, 2, 4, 8, 12]


def test_what_is_kept_of_prompts_goes_only_where_slots_need_its_memory(model, monkeypatch):
    runner = GraphRunner(model)
    prompt, row = torch.randint(1024, (4, 9)), model.prompt_cache
    runner.ensure_slot(0)
    runner._prefixes.keep(prompt, row(runner.state, 0, 4))
    kept, each = runner._prefixes.nbytes, runner.slot_bytes()
    free = {True: 2 * each, False: 2 * each - kept}  # by whether it was given up
    monkeypatch.setattr(runner, "_free_bytes", lambda: free[not runner._prefixes.nbytes])
    with pytest.raises(torch.OutOfMemoryError):
        runner._make_room(3)
    assert runner._prefixes.nbytes == kept > 0
    runner._make_room(2)
    assert not runner._prefixes.nbytes


def test_what_is_kept_of_prompts_is_looked_up_by_the_thread_of_the_steps(model, monkeypatch):
    """Pieces of a prefill run in workers, beside steps that keep prompts."""
    runner = ModelRunner(model, max_slots=2)
    assert runner.ensure_slot(0)
    prefill = runner.prefill(0, make_requests(3)[2])
    next(prefill)
    monkeypatch.setattr(runner._prefixes, "find", None)
    assert list(prefill)


def test_launches_end_where_a_window_becomes_complete(model):
    runner = GraphRunner(model)
    schedule(runner, make_requests(1), ChunkSizes(16, 8))
    steps = [steps for _, steps in runner.launched]
    assert steps[:4] == [8, 8, 4, 2] and sum(steps[:5]) == 15 + 8, "the first window after 23 steps"
    assert sum(steps) <= 49 + 2 * STEPS_PER_LAUNCH[0], "at most two launches after the end"


def test_a_slot_count_is_allocated_and_captured_ahead(model):
    runner = GraphRunner(model)
    runner.prepare(13)
    assert runner.allocated == [16] and runner.captured == [16, 12, 8, 4, 2, 1]
    runner.prepare(5)
    assert runner.allocated == [16] and len(runner.captured) == 6
    odd = GraphRunner(model, max_slots=70)
    odd.prepare(70)
    assert odd.allocated == [70] and odd.captured == [70, 64, 48, 32, 24, 16, 12, 8, 4, 2, 1]


def test_too_many_slots_are_refused_with_the_number_that_fits(model):
    runner = GraphRunner(model, memory=14)
    runner.prepare(4)
    state = runner._state
    runner._prefixes.keep(torch.ones(9, 9, dtype=torch.int64), state.self_cache.rows_of(0, 9))
    with pytest.raises(torch.OutOfMemoryError, match="^16 requests at once need .* at most 8 fit$"):
        runner.prepare(13)
    assert runner._state is state, "what is there is kept"
    assert runner._prefixes.nbytes, "and what is kept of prompts, whose memory would not have been enough"
    runner.prepare(8)
    with pytest.raises(torch.OutOfMemoryError, match="at most 0 fit"):
        GraphRunner(model, memory=0).prepare(1)


def test_requests_wait_for_slots_that_have_no_memory(model, caplog):
    runner, requests = GraphRunner(model, memory=5), make_requests(6)
    found = schedule(runner, requests)
    assert runner.allocated == [1, 2] and "further requests wait" in caplog.text
    for codes, request in zip(found, requests, strict=True):
        assert np.array_equal(codes, codes_alone(model, request))


def test_without_memory_for_one_slot_a_request_fails(model):
    with pytest.raises(torch.OutOfMemoryError, match="at most 0 fit"):
        schedule(GraphRunner(model, memory=0), make_requests(1))


def test_bytes_of_a_slot_are_those_it_takes(model):
    each = DecodeState.bytes_per_slot(CONFIG, 60, 80, torch.float32)
    state = DecodeState.allocate(CONFIG, 3, 60, 80, torch.float32, "cpu")
    caches = sum(cache.nbytes for pair in (state.self_cache, state.cross_cache) for cache in (pair.keys, pair.values))
    assert caches / 3 + state.grid.nbytes / 3 < each < 1.5 * caches / 3


def test_fewer_rows_make_a_slot_smaller(model):
    assert ModelRunner(model, max_rows=100).slot_bytes() < ModelRunner(model).slot_bytes() / 2


def test_the_first_slots_of_a_state_are_a_state(model):
    whole = DecodeState.allocate(CONFIG, 4, 60, 80, torch.float32, "cpu")
    part = whole.part(range(2))
    assert part.slots == 2 and part.rows == whole.rows
    part.countdown[1] = 7
    part.self_cache.keys[0, 3] = 3.0
    part.residual.x[3] = 5.0
    assert (
        whole.countdown[1] == whole.status[1, 1] == 7
        and (whole.self_cache.keys[0, 3] == 3.0).all()
        and (whole.residual.x[3] == 5.0).all()
    )
    assert (part.cond_residual.x[1] == 5.0).all(), "the second slot's row with text"
    whole.release(1)
    assert not part.countdown.any()


def test_a_slot_runs_from_the_end_of_its_prefill_until_it_is_released(model):
    (request,) = make_requests(2)[1:]
    runner = ModelRunner(model, max_slots=2)
    assert runner.ensure_slot(1)
    pieces = runner.prefill(1, request)
    next(pieces)
    assert runner.decode(range(2), 8) == 1
    assert runner.read_status()[1][1].stopped, "decode steps of others run in the middle of its prefill"
    assert sum(1 for _ in pieces) == len(model.encoder.layers) + 3 * len(model.layers) - 1
    runner.activate(1, request)
    runner.decode(range(2), 8)
    assert runner.read_status() == (2, [SlotStatus(0, 0, 0), SlotStatus(len(request.prompt_codes) + 1, -1, 0)])
    runner.release(1)
    runner.decode(range(2), 8)
    assert runner.read_status() == (3, [SlotStatus(0, 0, 0)] * 2)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_of_some_slots_leaves_the_others_as_they_are(model, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(model, "compiled_step", None)
    runner, requests = ModelRunner(model, max_slots=4), make_requests(4)
    for slot, each in enumerate(requests):
        assert runner.ensure_slot(slot)
        for _ in runner.prefill(slot, each):
            pass
        runner.activate(slot, each)
    state = runner.state
    before = state.residual.x.clone(), state.self_cache.clone(), state.grid.clone()
    runner.decode(range(1, 3), 1)
    rows = [len(each.prompt_codes) + (slot in (1, 2)) for slot, each in enumerate(requests)]
    assert [status.position for status in runner.read_status()[1]] == rows
    for slot in (0, 3):
        own = slice(2 * slot, 2 * slot + 2)
        assert torch.equal(state.residual.x[own], before[0][own]) and torch.equal(state.grid[slot], before[2][slot])
        assert torch.equal(state.self_cache.keys[:, own].nan_to_num(), before[1].keys[:, own].nan_to_num())
    for slots in (range(4), range(2, 4), range(1), *[range(4)] * 60):
        runner.decode(slots, 1)
        status = runner.read_status()[1]
    assert all(each.stopped for each in status)
    for slot, each in enumerate(requests):
        alone = codes_alone(model, each)
        assert torch.equal(runner.codes(slot, len(each.prompt_codes), len(alone)), alone)


def test_long_prompts_are_prefilled_in_blocks_of_rows(model, monkeypatch):
    request = Request(torch.randint(1, 250, (9,)), torch.randint(1024, (150, 9)), PARAMS, seed=1)
    request = Request(request.text_ids, request.prompt, ResolvedSamplingParams(max_tokens=200), seed=1)
    blocks = start_batch(model, [request])
    monkeypatch.setattr("dia_engine.model.dia.PREFILL_ROWS", (1000, 1000))
    whole = start_batch(model, [request])
    for ours, theirs in ((blocks.self_cache.keys, whole.self_cache.keys), (blocks.residual.x, whole.residual.x)):
        torch.testing.assert_close(ours[..., :150, :], theirs[..., :150, :], rtol=1e-4, atol=1e-4)


class OnGPU:
    """What a Snapshot asks of a state's grid."""

    is_cuda = True


class FakeEvent:
    """A CUDA event that is reached when the test says so."""

    def __init__(self, blocking=False):
        self.blocking, self.recorded, self.reached, self.waits = blocking, 0, False, 0

    def record(self):
        self.recorded, self.reached = self.recorded + 1, False

    def query(self):
        return self.reached

    def synchronize(self):
        self.waits, self.reached = self.waits + 1, True


def test_a_status_is_one_copy_and_a_wait_that_does_not_spin(monkeypatch):
    whole = DecodeState.allocate(CONFIG, 5, 60, 80, torch.float32, "cpu")
    events, copies, empty, copy = [], [], torch.empty, torch.Tensor.copy_
    monkeypatch.setattr(torch.cuda, "Event", lambda **params: (events.append(FakeEvent(**params)), events[-1])[1])
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **params: empty(*shape, **params))
    snapshot = Snapshot(SimpleNamespace(grid=OnGPU(), status=whole.status, slots=whole.slots))

    def counted(target, source, non_blocking=False):
        assert source.is_contiguous() and target.is_contiguous() and source.shape == target.shape, "else no plain copy"
        assert non_blocking and not events[0].recorded, "the event comes behind the copy"
        copies.append(1)
        return copy(target, source)

    whole.position[1], whole.countdown[0], whole.end_row[1] = 7, 3, 9
    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    snapshot.take(4)
    monkeypatch.undo()
    (event,) = events
    assert copies == [1] and event.blocking and event.recorded == 1 and snapshot.launch == 4
    assert not snapshot.ready()
    assert snapshot.read() == [[0, 7, 0, 0, 0], [3, 0, 0, 0, 0], [0, 9, 0, 0, 0], [0] * 5]
    assert event.waits == 1 and snapshot.ready()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_graph_equals_eager(dtype):
    params = {"dtype": dtype, "device": "cuda", "load_dac": False}
    graph, eager = Engine.load("synthetic:tiny", **params), Engine.load("synthetic:tiny", graph=False, **params)
    for texts in ([TEXTS[0]], TEXTS, TEXTS[:2], [TEXTS[0]]):
        for temperature in (0.0, 1.2):
            call = {"seed": 3, "temperature": temperature, "max_tokens": 200}
            for ours, theirs in zip(graph.generate(texts, **call), eager.generate(texts, **call), strict=True):
                assert np.array_equal(ours, theirs)


@pytest.mark.gpu
def test_batch_equals_alone_with_graphs():
    engine = Engine.load("synthetic:tiny", dtype="bfloat16", device="cuda", load_dac=False)
    together = engine.generate(TEXTS, seed=5, max_tokens=200)
    for text, codes in zip(TEXTS, together, strict=True):
        assert np.array_equal(engine.generate(text, seed=5, max_tokens=200), codes)


@pytest.mark.gpu
@pytest.mark.parametrize("quant", [None, "int8", "nf4"])
def test_at_full_size_who_comes_and_goes_has_the_codes_of_alone(quant):
    engine = Engine.load("synthetic:full", dtype="bfloat16", quant=quant, device="cuda", load_dac=False)
    requests = [
        Request(torch.randint(1, 250, (5 + 9 * index,)), torch.randint(1024, (3 * index, 9)), params, seed=index)
        for index, params in enumerate([ResolvedSamplingParams(max_tokens=100 + 7 * index) for index in range(24)])
    ]
    together = schedule(ModelRunner(engine.model, max_slots=16), requests)
    one = ModelRunner(engine.model, max_slots=1)
    for request, codes in zip(requests, together, strict=True):
        assert np.array_equal(codes, *schedule(one, [request]))


@pytest.mark.gpu
def test_two_thousand_steps_do_not_grow_the_memory():
    engine = Engine.load("synthetic:tiny", dtype="bfloat16", device="cuda", load_dac=False)
    engine.generate(TEXTS[0], seed=1, max_tokens=500)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for seed in range(4):
        engine.generate(TEXTS[0], seed=seed, max_tokens=520)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
