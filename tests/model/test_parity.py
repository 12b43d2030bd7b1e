"""Greedy codes and logits against transformers' Dia on random small models, float32."""

import pytest
import torch

from dia_engine import Engine
from dia_engine.model.state import DecodeState
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.text.tokenizer import encode_text
from tests.reference import random_reference, reference_codes, reference_logits

REQUESTS = [
    # text, prompt frames, max_tokens, cfg_scale, top_k
    ("[S1] Hi there.", 0, 40, 3.0, 5),
    ("[S2] abc (laughs) é", 6, 50, 2.0, 3),
    ("x", 3, 30, 1.0, 50),  # transformers takes 1 for unguided
]


def load(reference, folder, device="cpu") -> Engine:
    reference.save_pretrained(folder)
    return Engine.load(folder, dtype="float32", device=device, load_dac=False)


def random_prompt(engine, frames):
    return torch.randint(engine.config.eos_token_id, (frames, engine.config.decoder.num_channels))


ON_GPU = [pytest.param(seed, "cuda", marks=pytest.mark.gpu) for seed in range(3)]


@pytest.mark.parametrize("seed, device", [*((seed, "cpu") for seed in range(24)), *ON_GPU])
def test_greedy_codes_alone_and_in_a_batch(seed, device, tmp_path):
    reference = random_reference(seed)
    engine = load(reference, tmp_path, device)
    vocab, limit = engine.config.decoder.vocab_size, engine.config.encoder.max_position_embeddings
    wanted, prompts = [], []
    for text, frames, max_tokens, cfg_scale, top_k in REQUESTS:
        prompt, top_k = random_prompt(engine, frames), min(top_k, vocab)
        prompts.append(prompt if frames else None)
        wanted.append(reference_codes(reference, encode_text(text, limit), prompt, max_tokens, cfg_scale, top_k))
        found = engine.generate(
            text,
            max_tokens=max_tokens,
            temperature=0,
            cfg_scale=0.0 if cfg_scale == 1.0 else cfg_scale,
            cfg_filter_top_k=top_k,
            audio_prompt=prompts[-1],
        )
        assert torch.equal(torch.from_numpy(found), wanted[-1])

    params = {"max_tokens": 40, "temperature": 0, "cfg_scale": 3.0, "cfg_filter_top_k": 5}
    texts = [text for text, *_ in REQUESTS]
    together = engine.generate(texts, audio_prompt=prompts, **params)
    for text, prompt, codes in zip(texts, prompts, together, strict=True):
        prompt = random_prompt(engine, 0) if prompt is None else prompt
        alone = reference_codes(reference, encode_text(text, limit), prompt, 40, 3.0, 5)
        assert torch.equal(torch.from_numpy(codes), alone)


@pytest.mark.parametrize("seed", range(6))
def test_logits_of_every_row(seed, tmp_path):
    """Teacher forcing: a random filled grid, row by row through the static cache, against one pass of the reference."""
    reference = random_reference(seed)
    engine = load(reference, tmp_path)
    config, model = engine.config, engine.model
    text, rows, prompt_frames = encode_text("[S1] Some text. [S2] More!", 64), 24, 5
    grid = torch.randint(config.eos_token_id, (rows, config.decoder.num_channels))
    wanted = [reference_logits(reference, ids, grid) for ids in (torch.zeros_like(text), text)]

    state = DecodeState.allocate(config, 1, rows, len(text), torch.float32, "cpu")
    prompt = grid.new_zeros((prompt_frames, config.decoder.num_channels))
    state.start(0, len(text), prompt, ResolvedSamplingParams(max_tokens=rows), seed=0)
    state.grid[0, :rows] = grid
    model.prefill(state, 0, text)
    for row in range(prompt_frames, rows):
        found = model.logits(state)
        for half in range(2):
            assert (found[half] - wanted[half][row]).abs().max() <= 1e-4 * wanted[half][row].abs().max()
        state.position += 1
