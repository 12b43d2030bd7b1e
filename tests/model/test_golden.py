"""Recorded outputs of nari-labs/dia on a small random model, in that project's own layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dia_engine import Engine
from dia_engine.model.state import DecodeState
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.text.tokenizer import encode_text

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "golden" / "cases.json").read_text())
TENSORS = load_file(DATA / "golden" / "cases.safetensors")


@pytest.fixture(scope="module")
def engine():
    return Engine.load(DATA / "nari_layout", dtype="float32", device="cpu", load_dac=False)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_codes(engine, case):
    prompts = case["audio_prompt"] and [TENSORS[name].long() if name else None for name in case["audio_prompt"]]
    if prompts and isinstance(case["text"], str):
        prompts = prompts[0]
    names = ("temperature", "max_tokens", "cfg_scale", "cfg_filter_top_k")
    params = {name: case[name] for name in names if name in case}
    found = engine.generate(case["text"], audio_prompt=prompts, **params)
    found = found if isinstance(found, list) else [found]
    assert [len(codes) for codes in found] == case["lengths"]
    for item, codes in enumerate(found):
        assert torch.equal(torch.from_numpy(codes), TENSORS[f"{case['name']}.codes.{item}"].long())


def test_logits(engine):
    recorded, model, config = CASES["logits"], engine.model, engine.config
    text = encode_text(recorded["text"], config.encoder.max_position_embeddings)
    prompt = TENSORS[recorded["audio_prompt"]].long()
    state = DecodeState.allocate(config, 1, 64, len(text), torch.float32, "cpu")
    state.start(0, len(text), prompt, ResolvedSamplingParams(max_tokens=64, temperature=0.0), seed=0)
    model.prefill(state, 0, text)
    for step, tokens in enumerate(TENSORS["logits.tokens"].long()):
        state.grid[0, state.position[0]] = tokens
        found = model.logits(state)
        for row, name in enumerate(("uncond", "cond")):
            wanted = TENSORS[f"logits.{name}"][step]
            assert (found[row] - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        state.position += 1
