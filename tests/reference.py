"""Small random models in transformers' Dia, and what its `generate` says: the reference for parity tests."""

import random

import torch
from transformers import DiaConfig as ReferenceConfig
from transformers import DiaForConditionalGeneration

from dia_engine.model.delay import OPEN, prompt_grid, undelay


def random_reference(seed: int) -> DiaForConditionalGeneration:
    """A model of random sizes, some of them odd, with weights large enough that its choices are not near ties."""
    chance = random.Random(seed)
    channels = chance.randint(1, 9)
    codes = chance.choice([17, 30, 64, 100])
    delay = [0, *sorted(chance.randint(0, 6) for _ in range(channels - 1))]
    if chance.random() < 0.3:
        delay = delay[:1] + chance.sample(delay[1:], channels - 1)
    encoder_width, cross_groups = chance.choice([24, 37, 48]), chance.choice([1, 2, 3])
    groups = chance.choice([1, 2, 3])
    encoder_heads = chance.choice([2, 4])
    config = ReferenceConfig(
        encoder_config={
            "num_hidden_layers": chance.choice([1, 2]),
            "hidden_size": encoder_width,
            "intermediate_size": chance.choice([31, 64]),
            "num_attention_heads": encoder_heads,
            "num_key_value_heads": chance.choice([1, encoder_heads]),
            "head_dim": chance.choice([6, 8, 16]),
            "max_position_embeddings": 64,
        },
        decoder_config={
            "num_hidden_layers": chance.choice([1, 2, 3]),
            "hidden_size": chance.choice([32, 45, 64]),
            "intermediate_size": chance.choice([50, 96]),
            "num_attention_heads": groups * chance.choice([1, 2, 4]),
            "num_key_value_heads": groups,
            "head_dim": chance.choice([4, 10, 16]),
            "cross_num_attention_heads": cross_groups * chance.choice([1, 2]),
            "cross_num_key_value_heads": cross_groups,
            "cross_head_dim": chance.choice([4, 7, 16]),
            "cross_hidden_size": encoder_width,
            "num_channels": channels,
            "vocab_size": codes + chance.choice([3, 4, 7]),
            "max_position_embeddings": 96,
            "eos_token_id": codes,
            "pad_token_id": codes + 1,
            "bos_token_id": codes + 2,
        },
        delay_pattern=delay,
    )
    torch.manual_seed(seed)
    model = DiaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif "embed" in name:
            parameter.normal_()
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def reference_codes(model, text: torch.Tensor, prompt: torch.Tensor, max_tokens: int, cfg_scale: float, top_k: int):
    """Greedy codes [T, C] of one request by transformers' own generate."""
    decoder, delay = model.config.decoder_config, model.config.delay_pattern
    frames = prompt.shape[0]
    forced = prompt_grid(prompt, delay, decoder.bos_token_id, frames + 1 + max(delay))
    forced = torch.where(forced == OPEN, decoder.pad_token_id, forced)[None]
    grid = model.generate(
        input_ids=text[None],
        attention_mask=torch.ones_like(text)[None],
        decoder_input_ids=forced,
        decoder_attention_mask=torch.ones(forced.shape[:2], dtype=torch.long),
        max_new_tokens=max_tokens - frames,  # transformers forces the end one row before ours for equal limits
        do_sample=False,
        guidance_scale=cfg_scale,
        top_k=top_k,
        pad_token_id=decoder.pad_token_id,
        eos_token_id=decoder.eos_token_id,
        bos_token_id=decoder.bos_token_id,
        decoder_start_token_id=decoder.bos_token_id,
    )[0]
    ended = (grid[frames + 1 :, 0] == decoder.eos_token_id).nonzero()
    codes = undelay(grid, delay, frames, int(ended[0]))
    return torch.where(codes >= decoder.eos_token_id, 0, codes)


def reference_logits(model, text: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Logits [rows, C, V] of a filled grid [rows, C]."""
    logits = model(input_ids=text[None], decoder_input_ids=grid[None]).logits  # [C, rows, V]
    return logits.transpose(0, 1)
