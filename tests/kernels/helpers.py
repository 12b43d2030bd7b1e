"""What several tests of the kernels use: where kernels run, random operands, small models, and what counts as equal."""

import contextlib
import dataclasses
import os

import pytest
import torch

from dia_engine.kernels.dispatch import Launch, intercept_launches
from dia_engine.kernels.norm import Residual, headroom
from dia_engine.model.config import DecoderConfig, DiaConfig, EncoderConfig
from dia_engine.model.shapes import parameter_shapes
from dia_engine.model.state import STATUS, DecodeState
from dia_engine.sampling_params import ResolvedSamplingParams

EMULATED = int(os.environ.get("EMULATED_ARCHITECTURE", "0"))  # see conftest.py; 0 is the interpreter
if EMULATED:
    from tools.ptx_emulator.driver import emulate as run_launch
else:
    run_launch = Launch.run
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
EPS = 1e-5
dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
        pytest.param(torch.float16, id="fp16", marks=pytest.mark.gpu),
    ],
)


def kernels():
    """Where the wrappers launch: on a GPU everywhere, on a CPU in here, interpreted or emulated."""
    return contextlib.nullcontext() if ON_GPU else intercept_launches(run_launch, EMULATED)


def randn(*shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(shape) * scale).to(dtype).to(DEVICE)


def matrix(outputs, inputs, dtype=torch.float32):
    return randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5)


def random_residual(rows, width, dtype=torch.float32):
    residual = Residual.allocate(rows, width, dtype, DEVICE)
    residual.write(randn(rows, width, scale=3.0), 1 + randn(width, scale=0.1))
    return residual


def clone(value):
    """A deep copy of tensors in dataclasses."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, DiaConfig):
        fields = dataclasses.fields(value)
        copies = {field.name: clone(getattr(value, field.name)) for field in fields}
        if "cond_residual" in copies:
            copies["cond_residual"] = copies["residual"].rows(slice(1, None, 2))
        if "status" in copies:
            copies |= dict(zip(STATUS, copies["status"][:, : value.slots], strict=True))
        return type(value)(**copies)
    return value


def check(kernel, reference, truth):
    """The kernel may be wrong by twice what rounding makes of the reference, and by a few last bits.

    Args:
        kernel, reference: in the dtype under test.
        truth: the reference in float32 on the same inputs.
    """
    assert kernel.dtype == reference.dtype and kernel.shape == reference.shape
    error, allowed = ((result.float() - truth).abs().max().item() for result in (kernel, reference))
    floor = 1e-5 if kernel.dtype == torch.float32 else torch.finfo(kernel.dtype).eps / 8
    assert error <= 2 * allowed + floor * truth.abs().max().item(), (error, allowed)


def scaling(residual):
    """Of a float16 residual read as float32: the headroom, which float32 does not have."""
    return headroom(residual.z.dtype)


def small_config(channels=9, vocab=40, layers=2, width=32, heads=4, groups=2, head_dim=8, cross=(2, 2, 12), inner=48):
    delay = (0, 8, 9, 10, 11, 12, 13, 14, 15, 15)[:channels] if channels > 2 else (0, 3)[:channels]
    return DiaConfig(
        encoder=EncoderConfig(
            num_hidden_layers=1,
            hidden_size=24,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=12,
            max_position_embeddings=64,
        ),
        decoder=DecoderConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            cross_num_attention_heads=cross[0],
            cross_num_key_value_heads=cross[1],
            cross_head_dim=cross[2],
            cross_hidden_size=24,
            num_channels=channels,
            vocab_size=vocab,
            max_position_embeddings=256,
        ),
        delay_pattern=delay,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 4,
        pad_token_id=vocab - 3,
    )


def random_weights(config, dtype=torch.float32):
    weights = {}
    for name, shape in parameter_shapes(config).items():
        is_norm = name.endswith("norm.weight")
        weights[name] = 1 + randn(*shape, scale=0.1) if is_norm else matrix(*shape, dtype=dtype)
    return weights


def started(model, requests, rows=40):
    """A state with a slot for each (text length, prompt frames, options)."""
    state = DecodeState.allocate(model.config, len(requests), rows, 16, model.dtype, model.device)
    generator = torch.Generator().manual_seed(1)
    for slot, (length, frames, options) in enumerate(requests):
        text = torch.randint(1, 255, (length,), generator=generator).to(model.device)
        shape = (frames, model.config.decoder.num_channels)
        prompt = torch.randint(0, model.config.eos_token_id, shape, generator=generator)
        state.start(slot, length, prompt, options, seed=11 + slot)
        model.prefill(state, slot, text)
    return state


GREEDY = ResolvedSamplingParams(max_tokens=40, temperature=0.0)
DRAWN = ResolvedSamplingParams(max_tokens=33, top_p=0.9, cfg_filter_top_k=20)
REQUESTS = [
    (3, 0, GREEDY),
    (13, 7, DRAWN),
    (16, 2, ResolvedSamplingParams(max_tokens=40, cfg_filter_top_k=None, cfg_scale=1.0)),
]
