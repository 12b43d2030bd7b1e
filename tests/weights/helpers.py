"""Small random checkpoints in every layout, and damaged ones."""

import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from dia_engine.files.hub import find_model
from dia_engine.model.config import DecoderConfig, DiaConfig, EncoderConfig
from dia_engine.weights.load import load_weights
from dia_engine.weights.recipes import checked_recipe
from dia_engine.weights.save import quantize_model


def random_config(seed: int) -> DiaConfig:
    """A small config in which as many sizes as possible differ from one another."""
    pick = random.Random(seed)
    encoder_heads, decoder_heads, cross_heads = pick.choice([2, 4]), pick.choice([1, 2]), pick.choice([1, 3])
    width = pick.choice([12, 20])
    channels = pick.choice([2, 5, 9])
    encoder = EncoderConfig(
        num_hidden_layers=pick.choice([1, 2]),
        hidden_size=width,
        intermediate_size=pick.choice([14, 28]),
        num_attention_heads=encoder_heads,
        num_key_value_heads=pick.choice([1, encoder_heads]),
        head_dim=pick.choice([4, 6]),
        vocab_size=pick.choice([31, 40]),
        max_position_embeddings=32,
    )
    decoder = DecoderConfig(
        num_hidden_layers=pick.choice([1, 3]),
        hidden_size=pick.choice([18, 26]),
        intermediate_size=pick.choice([22, 34]),
        num_attention_heads=3 * decoder_heads,
        num_key_value_heads=decoder_heads,
        head_dim=pick.choice([2, 8]),
        cross_num_attention_heads=2 * cross_heads,
        cross_num_key_value_heads=cross_heads,
        cross_head_dim=pick.choice([4, 10]),
        cross_hidden_size=width,
        num_channels=channels,
        vocab_size=pick.choice([15, 17]),
        max_position_embeddings=64,
    )
    return DiaConfig(encoder, decoder, tuple(range(channels)), bos_token_id=13, eos_token_id=11, pad_token_id=12)


CONFIG = random_config(0)
# Rows of 64 and 128 weights, but in the encoder's MLP, where blocks of 64 do not fill them.
QUANTIZED_CONFIG = dataclasses.replace(
    CONFIG,
    encoder=dataclasses.replace(CONFIG.encoder, hidden_size=64, intermediate_size=34),
    decoder=dataclasses.replace(CONFIG.decoder, hidden_size=64, intermediate_size=128, cross_hidden_size=64),
)
DOWN, OUT = "model.decoder.layers.0.mlp.down_proj.weight", "model.decoder.layers.0.self_attention.o_proj."
STATE = f"{DOWN}.quant_state.bitsandbytes__nf4"


def transformers_model(config: DiaConfig, dtype: torch.dtype = torch.float32):
    transformers = pytest.importorskip("transformers")
    raw = config.to_dict()
    model = transformers.DiaForConditionalGeneration(
        transformers.DiaConfig(
            encoder_config=raw["encoder_config"],
            decoder_config={
                **raw["decoder_config"],
                **{name: raw[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            },
            delay_pattern=raw["delay_pattern"],
        )
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # transformers sets norms to one, which would hide a swap
        torch.nn.init.normal_(parameter, generator=generator)
    return model.to(dtype)


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights from transformers' names, written out once more by string replacement only."""
    result = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        if "self_attention.k_proj" in name or "attention.v_proj" in name:
            continue
        if "self_attention.q_proj" in name:
            parts = [state["model." + name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            name, tensor = name.replace("self_attention.q_proj", "self_attn.qkv"), torch.cat(parts)
        if "cross_attention.k_proj" in name:
            parts = [tensor, state["model." + name.replace("k_proj", "v_proj")]]
            name, tensor = name.replace("cross_attention.k_proj", "cross_attn.kv"), torch.cat(parts)
        for theirs, ours in (
            ("self_attention.o_proj", "self_attn.o"),
            ("cross_attention.o_proj", "cross_attn.o"),
            ("cross_attention.q_proj", "cross_attn.q"),
            ("pre_sa_norm", "self_norm"),
            ("post_sa_norm", "mlp_norm"),
            ("pre_ca_norm", "cross_norm"),
            ("pre_mlp_norm", "mlp_norm"),
            ("gate_up_proj", "gate_up"),
            ("down_proj", "down"),
            ("decoder.embeddings.embed", "decoder.embedding"),
            ("logits_dense", "decoder.head"),
        ):
            name = name.replace(theirs, ours)
        result[name] = tensor
    return result


def nari_state(state: dict[str, torch.Tensor], config: DiaConfig) -> dict[str, torch.Tensor]:
    """The same weights as nari-labs stores them."""
    decoder, result = config.decoder, {}
    for name, tensor in state.items():
        sizes = config.encoder if ".encoder." in name else decoder
        head_dim = decoder.cross_head_dim if "cross" in name else sizes.head_dim
        name = name.removeprefix("model.").replace("gate_up_proj", "wi_fused").replace("down_proj", "wo")
        if "o_proj" in name:
            tensor = tensor.T.reshape(-1, head_dim, tensor.shape[0])
        elif "_proj" in name:
            tensor = tensor.T.reshape(tensor.shape[1], -1, head_dim)
        elif "wi_fused" in name:
            tensor = tensor.T.reshape(tensor.shape[1], 2, -1)
        elif "wo" in name:
            tensor = tensor.T
        elif "logits_dense" in name:
            name, tensor = f"decoder.{name}", tensor.T.reshape(-1, decoder.num_channels, decoder.vocab_size)
        if "embeddings.embed" in name:
            for channel, part in enumerate(tensor.split(decoder.vocab_size)):
                result[f"decoder.embeddings.{channel}.weight"] = part.clone()
        else:
            result[name] = tensor.contiguous()
    return result


def assert_equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype=torch.float32) -> None:
    """Same names; each tensor is the expected one, rounded to `dtype` unless it is a norm."""
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        wanted = expected[name].to(torch.float32 if name.endswith("norm.weight") else dtype)
        assert tensor.dtype == wanted.dtype, name
        assert torch.equal(tensor, wanted), name
        assert tensor.is_contiguous(), name


def small_state() -> dict[str, torch.Tensor]:
    return dict(transformers_model(CONFIG).state_dict())


def load_quantized(path, recipe=None, dtype=torch.float32):
    files = find_model(path).weights
    return load_weights(files, QUANTIZED_CONFIG, dtype=dtype, device="cpu", recipe=recipe and checked_recipe(recipe))


def changed(folder, path, change):
    """A quantized copy with its tensors changed in place."""
    quantize_model(folder, path, {"*.mlp.down.weight": "nf4", "*_attn.*": "int8"})
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def with_state(**values):
    def change(tensors):
        text = json.dumps({**json.loads(bytes(tensors[STATE].tolist())), **values})
        tensors[STATE] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    return change
