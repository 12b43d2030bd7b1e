"""The loop around the steps: states that are reused, launches of several steps, and what only a GPU can show."""

import threading

import numpy as np
import pytest
import torch

from dia_engine import Engine
from dia_engine.model.dia import DiaModel
from dia_engine.model.state import DecodeState
from dia_engine.runtime.generation import finished_codes, start_requests
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import STEPS_PER_GRAPH, Stepper
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
    """A Stepper with one lasting state whose "graphs" make their steps one by one: all of the loop but CUDA."""

    def __init__(self, model):
        super().__init__(model)
        self.captures, self.captured = True, []
        self._launch_sizes = (STEPS_PER_GRAPH, 1)

    def _capture(self, slots):
        self.captured.append(slots)
        config = self.model.config
        self._state = DecodeState.allocate(
            config, slots, config.decoder.max_position_embeddings, config.encoder.max_position_embeddings,
            self.model.dtype, self.model.device,
        )  # fmt: skip

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
    assert stepper.captured == [1, 4], "allocated anew only for more slots than ever before"


def test_a_batch_gets_the_smallest_captured_count_that_holds_it(model):
    stepper = SeveralSteps(model)
    counts = [stepper.state_for(slots, 20, 20).slots for slots in (3, 9, 70, 66, 64, 40, 71, 5)]
    assert counts == [4, 12, 70, 70, 64, 48, 71, 8]
    assert stepper.captured == [4, 12, 70, 71]


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
    assert whole.countdown[1] == 7 and (whole.self_cache.keys[0, 3] == 3.0).all() and (whole.residual.x[3] == 5.0).all()
    assert (part.with_text.x[1] == 5.0).all(), "the second slot's row with text"
    whole.stop()
    assert not part.countdown.any()


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
