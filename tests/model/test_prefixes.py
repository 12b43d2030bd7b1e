"""Half of a prompt's prefill is kept, for whoever uses the prompt again."""

import pytest
import torch

from dia_engine.model.cache import KVCache, PrefixCache
from dia_engine.model.dia import DiaModel
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import ModelRunner
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.synthetic import random_weights, synthetic_config

PARAMS = ResolvedSamplingParams(max_tokens=240)


def prompt(seed, frames=150):
    return torch.randint(1024, (frames, 9), generator=torch.Generator().manual_seed(seed))


def cache(frames):
    keys, values = torch.randn(2, 2, 3, 2, frames, 8)
    return KVCache(keys, values)


def test_the_least_recently_used_is_dropped_and_what_is_too_large_is_not_kept():
    kept = PrefixCache(2 * cache(10).nbytes)
    for seed in (1, 2):
        kept.keep(prompt(seed), cache(10))
    assert kept.find(prompt(1)) is not None
    kept.keep(prompt(3), cache(10))
    assert [kept.find(prompt(seed)) is not None for seed in (1, 2, 3)] == [True, False, True]
    kept.keep(prompt(4), cache(21))
    assert kept.find(prompt(4)) is None and kept.find(prompt(3)) is not None
    kept.keep(prompt(5), cache(20))
    assert kept.find(prompt(3)) is None and kept.nbytes == cache(20).nbytes


def test_what_is_kept_is_a_copy_and_without_a_prompt_there_is_none():
    kept, given = PrefixCache(10**6), cache(10)
    kept.keep(prompt(1, 0), cache(0))
    kept.keep(prompt(1), given)
    given.keys.zero_()
    assert kept.find(prompt(1, 0)) is None and kept.find(prompt(1)).keys.any()


def test_without_memory_nothing_is_kept(monkeypatch):
    def refuse(cache):
        raise torch.OutOfMemoryError("no memory")

    kept = PrefixCache(10**6)
    monkeypatch.setattr(KVCache, "clone", refuse)
    kept.keep(prompt(1), cache(10))
    assert kept.find(prompt(1)) is None


@pytest.fixture(scope="module")
def model():
    config = synthetic_config("synthetic:tiny")
    with torch.no_grad():
        return DiaModel(config, random_weights(config, dtype=torch.float32, device="cpu"))


@torch.inference_mode()
def test_a_prompt_that_is_known_costs_half_and_gives_the_same_bits(model):
    def prefilled(runner, slot, text):
        request = Request(text, prompt(7), PARAMS, seed=1)
        work = sum(runner.prefill(slot, request))
        runner.activate(slot, request)
        return work, runner.state.self_cache.rows_of(2 * slot, 150), runner.state.self_cache.rows_of(2 * slot + 1, 150)

    texts = [torch.randint(1, 250, (length,)) for length in (9, 30)]
    runner, alone = ModelRunner(model, max_slots=3), ModelRunner(model, max_slots=3)
    assert runner.ensure_slot(2) and alone.ensure_slot(2)
    prefilled(runner, 2, texts[0])
    work, *known = prefilled(runner, 0, texts[1])
    more, *new = prefilled(alone, 1, texts[1])
    for ours, theirs in zip(known, new, strict=True):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    for residual in ("x", "z", "squares"):
        ours, theirs = (getattr(each.state.residual, residual) for each in (runner, alone))
        assert torch.equal(ours[0:2], theirs[2:4])
    text_work = sum(alone.prefill(2, Request(texts[1], prompt(7, 0), PARAMS, seed=1)))
    assert more - text_work == 2 * (work - text_work) > 0
