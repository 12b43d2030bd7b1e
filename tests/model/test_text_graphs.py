"""Texts that are padded and read by graphs, against the same texts as they are; CUDA's part is played by fakes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dia_engine import Engine
from dia_engine.kernels import tuning
from dia_engine.model.dia import DiaModel
from dia_engine.model.state import DecodeState
from dia_engine.model.text_graphs import TextGraphs
from dia_engine.runtime.runner import ModelRunner
from dia_engine.weights.synthetic import random_weights, synthetic_config

CONFIG = synthetic_config("synthetic:tiny")
LONGEST = CONFIG.encoder.max_position_embeddings
SLOTS, ROWS = 3, 40


@pytest.fixture(scope="module")
def model() -> DiaModel:
    with torch.no_grad():
        return DiaModel(CONFIG, random_weights(CONFIG, dtype=torch.float32, device="cpu"))


@pytest.fixture
def captures(monkeypatch) -> list[int]:
    """How many replays each capture has had so far."""
    replays = []

    class FakePool:
        def __init__(self, device):
            self.device = device

        def capture(self, work):
            work()
            index = len(replays)
            replays.append(0)

            def replay():
                replays[index] += 1
                work()

            return SimpleNamespace(replay=replay)

    monkeypatch.setattr("dia_engine.model.text_graphs.GraphPool", FakePool)
    return replays


def new_state() -> DecodeState:
    state = DecodeState.allocate(CONFIG, SLOTS, ROWS, LONGEST, torch.float32, "cpu")
    for tensor in (state.cross_cache.keys, state.cross_cache.values):
        tensor.fill_(7.0)
    return state


def random_text(length: int) -> torch.Tensor:
    return torch.randint(1, 250, (length,))


def read(reader, text: torch.Tensor, slot: int = 1) -> DecodeState:
    state = new_state()
    for _ in reader.text_pieces(state, slot, text):
        pass
    return state


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200, 512, 513, LONGEST])
def test_a_padded_text_has_the_keys_and_values_of_the_text_as_it_is(model, length):
    text, graphs = random_text(length), TextGraphs(model, captures=False)
    padded, plain = read(graphs, text), read(model, text)
    torch.testing.assert_close(padded.cross_cache.keys, plain.cross_cache.keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.cross_cache.values, plain.cross_cache.values, rtol=1e-4, atol=1e-5)
    assert (padded.cross_cache.keys[:, :, :, length:] == 7).all(), "nothing behind the text is written"


def test_the_work_of_a_text_is_that_of_its_pieces(model):
    assert model.text_work(65) == sum(model.text_pieces(new_state(), 0, random_text(65)))
    (work,) = TextGraphs(model, captures=False).text_pieces(new_state(), 0, random_text(65))
    assert work == model.text_work(128)


def test_texts_that_were_read_before_leave_no_trace(model, captures):
    text, graphs = random_text(70), TextGraphs(model, captures=True)
    first = read(graphs, text)
    for length in (128, 100, LONGEST, 3):
        read(graphs, random_text(length))
    again = read(graphs, text)
    assert torch.equal(again.cross_cache.keys, first.cross_cache.keys)
    assert torch.equal(again.cross_cache.values, first.cross_cache.values)


def test_each_length_is_captured_once(model, captures):
    graphs = TextGraphs(model, captures=True)
    for length in (10, 64, 65, 12, 128):
        read(graphs, random_text(length))
    assert captures == [3, 2], "one for up to 64, one for up to 128"
    graphs.prepare()
    assert len(captures) == len(graphs.lengths) == 5 and graphs.lengths[-1] == LONGEST
    graphs.prepare()
    assert len(captures) == 5


def test_they_are_for_a_gpu_and_off_unless_asked_for(model, monkeypatch):
    monkeypatch.delenv("DIA_TEXT_GRAPHS", raising=False)
    assert not tuning.text_graphs_are_on()
    monkeypatch.setenv("DIA_TEXT_GRAPHS", "1")
    assert tuning.text_graphs_are_on() and ModelRunner(model)._text_graphs is None
    monkeypatch.setenv("DIA_TEXT_GRAPHS", "yes")
    with pytest.raises(ValueError, match="DIA_TEXT_GRAPHS must be 1 .* or 0, got 'yes'"):
        tuning.text_graphs_are_on()


@pytest.mark.gpu
@pytest.mark.parametrize("quant", [None, "int8", "nf4"])
def test_on_a_gpu_graphs_give_what_their_operations_give(quant, monkeypatch):
    monkeypatch.setenv("DIA_TEXT_GRAPHS", "1")
    params = {"dtype": "bfloat16", "device": "cuda", "quant": quant, "load_dac": False}
    graph, eager = Engine.load("synthetic:tiny", **params), Engine.load("synthetic:tiny", graph=False, **params)
    texts = ["[S1] One.", "[S1] " + 30 * "words and ", "[S2] Two, a little longer."]
    call = {"seed": 3, "max_tokens": 100}
    for ours, theirs in zip(graph.generate(texts, **call), eager.generate(texts, **call), strict=True):
        assert np.array_equal(ours, theirs)
    for text, codes in zip(texts, graph.generate(texts, **call), strict=True):
        assert np.array_equal(graph.generate(text, **call), codes)


@pytest.mark.gpu
def test_on_a_gpu_a_padded_text_is_the_text_as_it_is():
    weights = random_weights(CONFIG, dtype=torch.float32, device="cuda")
    model = DiaModel(CONFIG, weights)
    for length in (5, 64, 200):
        text, found = torch.randint(1, 250, (length,), device="cuda"), []
        for reader in (model, TextGraphs(model, captures=True)):
            state = DecodeState.allocate(CONFIG, 1, ROWS, LONGEST, torch.float32, "cuda")
            for _ in reader.text_pieces(state, 0, text):
                pass
            found.append(state.cross_cache.rows_of(0, length))
        torch.testing.assert_close(found[1].keys, found[0].keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[1].values, found[0].values, rtol=1e-3, atol=1e-4)
