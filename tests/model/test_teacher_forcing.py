"""Logits of given codes, against transformers' model and against what the engine itself draws."""

import pytest
import torch

from dia_engine import Engine
from dia_engine.model.delay import prompt_grid
from dia_engine.text.tokenizer import encode_text
from tests.reference import random_reference, reference_logits

TEXT = "[S1] Some text. [S2] More!"


@pytest.mark.parametrize("seed", range(4))
def test_logits_are_those_of_transformers(seed, tmp_path):
    reference = random_reference(seed)
    reference.save_pretrained(tmp_path)
    engine = Engine.load(tmp_path, dtype="float32", device="cpu", load_dac=False)
    config, ids = engine.config, encode_text(TEXT, 64)
    frames, delay = 20, config.delay_pattern
    codes = torch.randint(config.eos_token_id, (frames, config.decoder.num_channels))
    found = engine.teacher_forced_logits(TEXT, codes)
    assert found.shape == (2, frames, len(delay), config.decoder.vocab_size) and found.dtype == torch.float32

    grid = prompt_grid(codes, delay, config.bos_token_id, frames + 1 + max(delay))
    for channel, lag in enumerate(delay):
        grid[frames + 1 + lag :, channel] = config.pad_token_id
        grid[frames + 1 + lag : frames + 2 + lag, channel] = config.eos_token_id
    for half, text in enumerate((torch.zeros_like(ids), ids)):
        wanted = reference_logits(reference, text, grid)  # row by row, that of the next one
        for channel, lag in enumerate(delay):
            rows = wanted[lag : lag + frames, channel]
            assert (found[half, :, channel] - rows).abs().max() <= 1e-4 * rows.abs().max()


def test_greedy_codes_are_the_likeliest():
    engine = Engine.load("talker", device="cpu")
    text = "[S1] Can you count? [S2] Yes, I can."
    codes = engine.generate(text, temperature=0, cfg_scale=0, seed=1, details=True).codes
    logits = engine.teacher_forced_logits(text, codes)
    assert torch.equal(logits[1, :, :, : engine.config.eos_token_id].argmax(-1), torch.from_numpy(codes))
    other = engine.teacher_forced_logits("[S1] Hello, robot.", codes)
    loss, other_loss = (
        torch.nn.functional.cross_entropy(each[1].flatten(0, 1), torch.from_numpy(codes).flatten())
        for each in (logits, other)
    )
    assert loss < 1.5 and other_loss > 2 * loss, (loss, other_loss)
    assert torch.equal(logits[0], other[0]), "without the text no text matters"


@pytest.mark.parametrize(
    ("text", "codes", "error", "message"),
    [
        ("", [[0] * 9], ValueError, "text must not be empty"),
        ("x", [[0.5] * 9], TypeError, "codes must be integers, got torch.float32$"),
        ("x", [[0] * 8], ValueError, r"codes must have shape \[frames, 9\], got \[1, 8\]"),
        ("x", [[5000] * 9], ValueError, r"codes must be in \[0, "),
        ("x", [[0] * 9] * 4000, ValueError, "codes must have at most .* frames, got 4000"),
    ],
)
def test_codes_that_cannot_be_are_told(engine_without_codec, text, codes, error, message):
    with pytest.raises(error, match=message):
        engine_without_codec.teacher_forced_logits(text, torch.tensor(codes))
