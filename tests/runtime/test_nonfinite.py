"""A model or a codec whose numbers break ends in an error that says so, and the engine works on."""

import math

import numpy as np
import pytest
import torch

from dia_engine import Engine
from dia_engine.codec import Codec
from dia_engine.weights.synthetic import random_weights, synthetic_config

TEXT = "[S1] A script of some length."
CONFIG = synthetic_config("synthetic:tiny")


def engine_of(change=None, dtype=torch.float32, codec=None) -> Engine:
    weights = random_weights(CONFIG, dtype=dtype, device="cpu")
    if change is not None:
        change(weights)
    return Engine(CONFIG, weights, codec)


def overwrite(name, value, index=5):
    return lambda weights: weights[name].view(-1).__setitem__(index, value)


def scale(name, factor):
    return lambda weights: weights[name].mul_(factor)


def breaks_at(engine, monkeypatch, row, slot, value=math.nan):
    """Let the logits of a slot's row `row` and of all after it hold `value`, as a value that grows would."""
    decode = engine.model._decode

    def broken_decode(state):
        logits = decode(state)
        if slot < state.slots:
            logits[2 * slot + 1, 2, 7] = torch.where(state.position[slot] + 1 >= row, value, logits[2 * slot + 1, 2, 7])
        return logits

    monkeypatch.setattr(engine.model, "compiled_step", None)  # which has no place to break at
    monkeypatch.setattr(engine.model, "_decode", broken_decode)


@pytest.mark.parametrize(
    "change",
    [
        overwrite("encoder.layers.0.mlp.down.weight", math.nan),
        overwrite("encoder.embedding.weight", math.inf, index=ord("s") * CONFIG.encoder.hidden_size),
        overwrite("decoder.layers.1.mlp.down.weight", math.nan),
        overwrite("decoder.layers.0.cross_attn.kv.weight", math.inf),
        overwrite("decoder.norm.weight", math.inf),
        overwrite("decoder.head.weight", math.nan),
        scale("decoder.head.weight", 1e38),
    ],
)
def test_broken_weights_end_a_generation(change):
    engine = engine_of(change)
    for prompt in (None, np.ones((9, 9), dtype=np.int64)):
        with pytest.raises(RuntimeError, match=r"NaN or infinite at decoder row \d+, computed in float32: its weights"):
            engine.generate(TEXT.lower(), seed=1, max_tokens=40, audio_prompt=prompt)


@pytest.mark.parametrize("name", ["decoder.layers.0.mlp.gate_up.weight", "encoder.layers.0.mlp.gate_up.weight"])
def test_activations_beyond_float16_name_other_dtypes(name):
    change = scale(name, 3000.0)  # each weight fits, the product of gate and up does not
    message = "decoder row 1, computed in float16: float16 cannot hold some activations: use bfloat16 or float32"
    with pytest.raises(RuntimeError, match=message):
        engine_of(change, torch.float16).generate(TEXT, seed=1, max_tokens=40)
    for dtype in (torch.bfloat16, torch.float32):
        assert len(engine_of(change, dtype).generate(TEXT, seed=1, max_tokens=40))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("slot", [0, 1])
def test_numbers_that_break_on_the_way(monkeypatch, value, slot):
    engine = engine_of()
    alone = engine.generate(TEXT, seed=1, max_tokens=60)
    breaks_at(engine, monkeypatch, 37, slot, value)
    texts = [TEXT, "[S2] Another one."]
    with pytest.raises(RuntimeError, match="at decoder row 37, "):
        engine.generate(texts, seed=1, max_tokens=60)
    pieces = []
    with pytest.raises(RuntimeError, match="at decoder row 37, "):
        pieces.extend(engine.stream(texts, seed=1, max_tokens=60))
    assert {index for index, _ in pieces} == {0, 1}, "what was complete before has been given out"
    monkeypatch.undo()
    assert np.array_equal(engine.generate(TEXT, seed=1, max_tokens=60), alone)


def test_a_token_of_minus_infinity_is_forbidden_not_broken(monkeypatch):
    engine = engine_of()
    breaks_at(engine, monkeypatch, 1, 0, -math.inf)
    codes = engine.generate(TEXT, seed=1, max_tokens=60)
    assert len(codes) and not (codes[:, 2] == 7).any()


def test_a_row_limit_stops_before_numbers_that_would_break(monkeypatch):
    engine = engine_of()
    breaks_at(engine, monkeypatch, 60, 0)
    assert len(engine.generate(TEXT, seed=1, max_tokens=59))


@pytest.fixture
def broken_codec() -> Codec:
    codec = engine_codec()
    codec.decoder[1].parameters().__next__().view(-1)[3] = math.nan
    return codec


def engine_codec(dtype=torch.float32) -> Codec:
    return Engine.load("synthetic:tiny", device="cpu", codec_dtype=dtype).codec


def test_a_codec_whose_numbers_break(broken_codec):
    engine = engine_of(codec=broken_codec)
    message = "the codec's numbers are NaN or infinite in the sound, computed in float32: its weights"
    for call in (
        lambda: engine.generate(TEXT, seed=1, max_tokens=40),
        lambda: list(engine.stream(TEXT, seed=1, max_tokens=40)),
        lambda: broken_codec.decode(np.ones((5, 9), dtype=np.int64)),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_codec_in_float16_that_overflows(part):
    codec = engine_codec(torch.float16)
    layers = [module for module in getattr(codec, part).modules() if hasattr(module, "weight")]
    layers[0].weight.mul_(30_000 / layers[0].weight.abs().max())
    layers[1].weight.mul_(30_000 / layers[1].weight.abs().max())
    message = "computed in float16: float16 cannot hold some activations: use codec_dtype bfloat16 or float32"
    with pytest.raises(RuntimeError, match=message):
        if part == "decoder":
            codec.decode(np.ones((5, 9), dtype=np.int64))
        else:
            codec.encode(0.5 * torch.randn(6000), codec.sample_rate)
