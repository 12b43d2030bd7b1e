"""The loop around the steps: states that are reused, launches of several steps, and what only a GPU can show."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dia_engine.runtime.generation import finished_codes, start_requests

from dia_engine import Engine
from dia_engine.model.dia import DiaModel
from dia_engine.model.state import DecodeState
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import STEPS_PER_GRAPH, Look, Stepper
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
        Request(torch.randint(1, 250, (5 + 20 * index,)), torch.randint(1024, (4 * index, 9)), PARAMS, seed=index)
        for index in range(count)
    ]


class SeveralSteps(Stepper):
    """A Stepper with one lasting state whose "graphs" make their steps one by one: all of the loop but CUDA.

    `memory` is that of a GPU, in slots; its graphs do not fit where the number of slots is in `too_large`.
    """

    def __init__(self, model, memory=1000, too_large=()):
        super().__init__(model)
        self.captures, self.allocated, self.captured = True, [], []
        self._launch_sizes = (STEPS_PER_GRAPH, 1)
        self.memory, self.too_large = memory, too_large

    def _free_bytes(self):
        used = 0 if self._state is None else self._state.slots
        return (self.memory - used) * self._slot_bytes()

    def _allocate(self, slots):
        assert self._state is None and not self._graphs, "given up before the new memory is asked for"
        self.allocated.append(slots)
        super()._allocate(slots)

    def _capture(self, count):
        if count in self.too_large:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.captured.append(count)
        for steps in self._launch_sizes:
            self._graphs[count, steps] = None

    def _launch(self, state, steps):
        self._steps(state, steps)


def test_launches_of_several_steps_give_the_codes_of_single_steps(model):
    stepper, single = SeveralSteps(model), Stepper(model)
    for count in (1, 3, 2, 1):
        requests, made = make_requests(count), []
        state = start_requests(stepper, requests)
        stepper.run(state, made.append)
        alone = start_requests(single, requests)
        single.run(alone)
        for ours, theirs in zip(finished_codes(state, requests), finished_codes(alone, requests)):
            assert torch.equal(ours, theirs)
        longest = PARAMS.max_tokens - 1  # of the request without a prompt
        assert sum(made) == -(-longest // STEPS_PER_GRAPH) * STEPS_PER_GRAPH, "no launch after the end"
    assert stepper.allocated == [1, 4], "allocated anew only for more slots than ever before"
    assert stepper.captured == [1, 4, 2, 1], "a count when it is first needed, anew in new memory"


def test_a_batch_gets_the_smallest_captured_count_that_holds_it(model):
    stepper = SeveralSteps(model)
    counts = [stepper.state_for(slots, 20, 20).slots for slots in (3, 9, 70, 66, 64, 40, 71, 5)]
    assert counts == [4, 12, 70, 70, 64, 48, 71, 8]
    assert stepper.allocated == [4, 12, 70, 71]
    assert stepper.captured == [4, 12, 70, 64, 48, 71, 8]


def test_what_is_prepared_is_not_captured_again(model):
    stepper = SeveralSteps(model)
    stepper.prepare(13)
    assert stepper.allocated == [16] and stepper.captured == [16, 12, 8, 4, 2, 1]
    for slots in (1, 3, 9, 16):
        stepper.state_for(slots, 20, 20)
    stepper.prepare(5)
    assert stepper.allocated == [16] and len(stepper.captured) == 6
    stepper.prepare(70)
    assert stepper.allocated == [16, 70] and stepper.captured[6:] == [70, 64, 48, 32, 24, 16, 12, 8, 4, 2, 1]


@pytest.mark.parametrize("ask", [lambda stepper, slots: stepper.state_for(slots, 20, 20), Stepper.prepare])
def test_too_many_slots_are_refused_with_the_number_that_fits(model, ask):
    stepper = SeveralSteps(model, memory=14)
    ask(stepper, 8)
    state = stepper._state
    with pytest.raises(torch.OutOfMemoryError, match="^16 requests at once need .* at most 12 fit$"):
        ask(stepper, 13)
    assert stepper._state is state and stepper.allocated == [8], "what is there is kept"
    ask(stepper, 12)
    assert stepper.allocated == [8, 12]
    with pytest.raises(torch.OutOfMemoryError, match="at most 0 fit"):
        ask(SeveralSteps(model, memory=0), 1)


def test_an_engine_whose_graphs_do_not_fit_works_with_fewer_slots(model):
    stepper = SeveralSteps(model, memory=100, too_large=(64,))
    with pytest.raises(torch.OutOfMemoryError, match="64 requests at once need .* at most 48 fit"):
        stepper.prepare(64)
    assert stepper._state is None and not stepper._graphs
    stepper.prepare(48)
    requests = make_requests(3)
    state = start_requests(stepper, requests)
    stepper.run(state)
    alone = start_requests(Stepper(model), requests)
    Stepper(model).run(alone)
    for ours, theirs in zip(finished_codes(state, requests), finished_codes(alone, requests)):
        assert torch.equal(ours, theirs)


def test_bytes_of_a_slot_are_those_it_takes(model):
    each = DecodeState.bytes_per_slot(CONFIG, 60, 80, torch.float32)
    state = DecodeState.allocate(CONFIG, 3, 60, 80, torch.float32, "cpu")
    caches = sum(cache.nbytes for pair in (state.self_cache, state.cross_cache) for cache in (pair.keys, pair.values))
    assert caches / 3 + state.grid.nbytes / 3 < each < 1.5 * caches / 3


def test_prepare_changes_no_sound_and_leaves_the_engine_free():
    engine = Engine.load("synthetic:tiny", device="cpu")
    wanted = engine.generate(TEXTS[:2], seed=1, max_tokens=40)
    fresh = Engine.load("synthetic:tiny", device="cpu")
    steps, step = [], fresh.model.step
    fresh.model.step = lambda state: (steps.append(state.slots), step(state))
    fresh.prepare(slots=2)
    assert steps == [2] and not fresh._stepper.lock.locked()
    assert all(np.array_equal(*pair) for pair in zip(fresh.generate(TEXTS[:2], seed=1, max_tokens=40), wanted))


@pytest.mark.parametrize("slots, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_prepare_names_a_mistake(slots, error):
    engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
    with pytest.raises(error, match="slots must be"):
        engine.prepare(slots=slots)


def test_a_launch_ends_at_every_stop(model):
    for stepper, launches in ((SeveralSteps(model), [8, 1, 1, 1, 8, 8]), (Stepper(model), [1] * 27)):
        state, made = start_requests(stepper, make_requests(1)), []
        looks = stepper.looks(state, made.append, iter([0, 0, 9, 11, 27]))
        positions = [int(next(looks).position[0]) for _ in launches]
        assert made == launches and positions == [sum(launches[: index + 1]) for index in range(len(launches))]


def test_the_first_slots_of_a_state_are_a_state(model):
    whole = DecodeState.allocate(CONFIG, 4, 60, 80, torch.float32, "cpu")
    part = whole.first(2)
    assert part.slots == 2 and part.rows == whole.rows
    part.countdown[1] = 7
    part.self_cache.keys[0, 3] = 3.0
    part.residual.x[3] = 5.0
    assert (
        whole.countdown[1] == whole.status[1, 1] == 7
        and (whole.self_cache.keys[0, 3] == 3.0).all()
        and (whole.residual.x[3] == 5.0).all()
    )
    assert (part.with_text.x[1] == 5.0).all(), "the second slot's row with text"
    whole.stop()
    assert not part.countdown.any()


class OnGPU:
    """What a Look asks of a state's grid."""

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


@pytest.mark.parametrize("slots", [2, 5])
def test_a_look_is_one_copy_and_a_wait_that_does_not_spin(monkeypatch, slots):
    whole = DecodeState.allocate(CONFIG, 5, 60, 80, torch.float32, "cpu")
    part = whole.first(slots)
    events, copies, empty, copy = [], [], torch.empty, torch.Tensor.copy_
    monkeypatch.setattr(torch.cuda, "Event", lambda **knobs: (events.append(FakeEvent(**knobs)), events[-1])[1])
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **knobs: empty(*shape, **knobs))
    seen = SimpleNamespace(grid=OnGPU(), status=part.status, slots=part.slots)
    look = Look(seen)

    def counted(target, source, non_blocking=False):
        assert source.is_contiguous() and target.is_contiguous() and source.shape == target.shape, "else no plain copy"
        assert non_blocking and not events[0].recorded, "the event comes behind the copy"
        copies.append(1)
        return copy(target, source)

    part.position[1], part.countdown[0], part.end_row[1] = 7, 3, 9
    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    look.ask()
    monkeypatch.undo()
    (event,) = events
    assert copies == [1] and event.blocking and event.recorded == 1
    assert not look.ready()
    look.wait()
    assert event.waits == 1 and look.ready() and not look.all_stopped()
    assert look.position.tolist() == [0, 7, 0, 0, 0][:slots] and look.end_row.tolist() == [0, 9, 0, 0, 0][:slots]
    assert look.countdown.tolist() == [3, 0, 0, 0, 0][:slots]


def test_slots_outside_a_batch_do_not_keep_it_running(model):
    whole = DecodeState.allocate(CONFIG, 4, 60, 80, torch.float32, "cpu")
    whole.countdown[3] = 5  # of a batch of four
    look = Look(whole.first(2))
    look.ask()
    assert look.all_stopped()


def test_two_threads_get_their_own_sound():
    engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
    wanted = [engine.generate(text, seed=1, max_tokens=60) for text in TEXTS]
    found = [None] * len(TEXTS)

    def speak(index):
        found[index] = engine.generate(TEXTS[index], seed=1, max_tokens=60)

    threads = [threading.Thread(target=speak, args=(index,)) for index in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, wanted))


def test_an_error_in_the_middle_leaves_the_engine_usable():
    engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
    wanted = engine.generate(TEXTS[0], seed=1, max_tokens=40)
    step, engine.model.step = engine.model.step, lambda state: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.generate(TEXTS[0], seed=1, max_tokens=40)
    engine.model.step = step
    assert np.array_equal(engine.generate(TEXTS[0], seed=1, max_tokens=40), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_graph_equals_eager(dtype):
    knobs = {"dtype": dtype, "device": "cuda", "load_dac": False}
    graph, eager = Engine.load("synthetic:tiny", **knobs), Engine.load("synthetic:tiny", graph=False, **knobs)
    for texts in ([TEXTS[0]], TEXTS, TEXTS[:2], [TEXTS[0]]):
        for temperature in (0.0, 1.2):
            call = {"seed": 3, "temperature": temperature, "max_tokens": 200}
            for ours, theirs in zip(graph.generate(texts, **call), eager.generate(texts, **call)):
                assert np.array_equal(ours, theirs)


@pytest.mark.gpu
def test_batch_equals_alone_with_graphs():
    engine = Engine.load("synthetic:tiny", dtype="bfloat16", device="cuda", load_dac=False)
    together = engine.generate(TEXTS, seed=5, max_tokens=200)
    for text, codes in zip(TEXTS, together):
        assert np.array_equal(engine.generate(text, seed=5, max_tokens=200), codes)


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
