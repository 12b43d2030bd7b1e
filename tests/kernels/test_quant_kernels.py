"""A step's projections with int8 and NF4 weights: kernels equal their references, and the decoding assembly
its table."""

import re

import pytest
import torch

pytest.importorskip("triton")

import triton

from dia_engine.kernels import gated_linear, nf4, norm_linear, qkv, residual_linear
from dia_engine.kernels.dispatch import tl
from dia_engine.kernels.norm import Residual
from dia_engine.kernels.quantized import FORMATS, LEVELS, Int8Weight, NF4Weight
from dia_engine.kernels.rope import rope_table
from dia_engine.model.dia import DiaModel
from dia_engine.weights.recipes import RECIPES, chosen_formats
from tests.kernels.helpers import (
    DEVICE,
    EPS,
    ON_GPU,
    REQUESTS,
    check,
    clone,
    dtypes,
    kernels,
    matrix,
    randn,
    random_residual,
    random_weights,
    scaling,
    small_config,
    started,
)

formats = pytest.mark.parametrize("kind", [Int8Weight, NF4Weight], ids=["int8", "nf4"])
# Widths of one block, of a few, of more than one turn of all slices, and (int8 only) odd ones.
WIDTHS = [64, 192, 1088, 33, 1040]


def quantized(kind, outputs, inputs, dtype=torch.float32):
    if not kind.fits(inputs):
        pytest.skip("blocks do not fill the rows")
    return kind.quantize(matrix(outputs, inputs), dtype)


def exact(weight):
    """The weight as its reference in float32 has it."""
    return weight.dequantize(torch.float32)


def exact_input(residual):
    return Residual(residual.x, residual.z.float() / scaling(residual), residual.squares)


@dtypes
@formats
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows, outputs", [(2, 48), (1, 7), (14, 70), (64, 17)])
def test_norm_linear(kind, rows, width, outputs, dtype):
    residual, weight = random_residual(rows, width, dtype), quantized(kind, outputs, width, dtype)
    out = torch.full((rows, outputs), torch.nan, device=DEVICE)
    with kernels():
        norm_linear.norm_linear(residual, weight, EPS, out)
    reference = norm_linear.norm_linear_ref(residual, weight, EPS)
    check(out, reference, norm_linear.norm_linear_ref(exact_input(residual), exact(weight), EPS))


@dtypes
@formats
@pytest.mark.parametrize("rows, width, inner", [(2, 64, 96), (18, 192, 45), (4, 33, 16)])
def test_gated_linear(kind, rows, width, inner, dtype):
    residual, weight = random_residual(rows, width, dtype), quantized(kind, 2 * inner, width, dtype)
    out = torch.full((rows, inner), torch.nan, dtype=dtype, device=DEVICE)
    with kernels():
        gated_linear.gated_linear(residual, weight, EPS, out)
    reference = gated_linear.gated_linear_ref(residual, weight, EPS).to(dtype)
    check(out, reference, gated_linear.gated_linear_ref(exact_input(residual), exact(weight), EPS))


@dtypes
@formats
@pytest.mark.parametrize("text", [False, True], ids=["all_rows", "rows_with_text"])
@pytest.mark.parametrize("rows, width, inner", [(2, 64, 1088), (6, 33, 128), (42, 20, 75)])
def test_residual_linear(kind, rows, width, inner, text, dtype):
    residual, norm_weight = random_residual(rows, width, dtype), 1 + randn(width, scale=0.1)
    weight = quantized(kind, width, inner, dtype)
    inputs = randn(rows // 2 if text else rows, inner, dtype=dtype)
    uncond_cross_out = randn(width) if text else None
    result = clone(residual)
    with kernels():
        residual_linear.residual_linear(inputs, weight, result, norm_weight, uncond_cross_out)
    reference = residual_linear.residual_linear_ref(inputs, weight, residual, uncond_cross_out)
    truth = residual_linear.residual_linear_ref(inputs.float(), exact(weight), residual, uncond_cross_out)
    check(result.x, reference, truth)


@dtypes
@formats
@pytest.mark.parametrize(
    "slots, heads, groups, head_dim, width", [(1, 4, 2, 16, 64), (3, 3, 1, 10, 33), (9, 1, 1, 32, 128)]
)
def test_project_qkv(kind, slots, heads, groups, head_dim, width, dtype):
    capacity = 13
    residual = random_residual(2 * slots, width, dtype)
    weight = quantized(kind, (heads + 2 * groups) * head_dim, width, dtype)
    position = torch.randint(0, capacity, (slots,), device=DEVICE)
    rope = rope_table(capacity, head_dim, 10000.0, DEVICE)

    def run(function, residual, weight, dtype):
        query = torch.full((2 * slots, heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)
        caches = [torch.zeros((2 * slots, groups, capacity, head_dim), dtype=dtype, device=DEVICE) for _ in range(2)]
        function(residual, weight, EPS, rope, position, query, *caches)
        return query, *caches

    with kernels():
        results = run(qkv.project_qkv, residual, weight, dtype)
    references = run(qkv.project_qkv_ref, residual, weight, dtype)
    truths = run(qkv.project_qkv_ref, exact_input(residual), exact(weight), torch.float32)
    for result, reference, truth in zip(results, references, truths, strict=True):
        check(result, reference, truth)


def prmt(first: int, second: int, selector: int) -> int:
    """PTX's prmt.b32 without the mode that repeats signs."""
    pool = first.to_bytes(4, "little") + second.to_bytes(4, "little")
    chosen = [selector >> 4 * place & 15 for place in range(4)]
    assert all(index < 8 for index in chosen), "a nibble above 7 would repeat a sign bit"
    return int.from_bytes(bytes(pool[index] for index in chosen), "little")


def run_assembly(text: str, word: int) -> list[int]:
    """Execute the few instructions that `nf4.assembly` uses; the registers $0 to $3."""
    registers = {"$4": word}
    operations = {
        "shr": lambda a, b: a >> b,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "prmt": prmt,
    }
    for name, target, *arguments in re.findall(r"(\w+)\.b32 (\S+), (\S+), (\w+)(?:, (\w+))?;", text.split(";", 1)[1]):
        values = [registers[item] if item in registers else int(item, 0) for item in arguments if item]
        registers[target] = operations[name](*values)
    return [registers[f"${number}"] for number in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_assembly_gives_the_rounded_levels(dtype):
    """Executed here instruction by instruction, for every byte in every place."""
    codes = torch.tensor(LEVELS).to(dtype).view(torch.int16).int().bitwise_and(0xFFFF).tolist()
    text = nf4.assembly(dtype)
    for word in [byte * 0x01010101 for byte in range(256)] + [0x10325476, 0xFEDCBA98, 0x80F7007F]:
        packed = word.to_bytes(4, "little")
        nibbles = [[byte & 15 for byte in packed], [byte >> 4 for byte in packed]]
        found = run_assembly(text, word)
        for half, chosen in zip((found[:2], found[2:]), nibbles, strict=True):
            assert half == [codes[chosen[0]] | codes[chosen[1]] << 16, codes[chosen[2]] | codes[chosen[3]] << 16]


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
    ids=["fp32", "fp16", "bf16"],
)
def test_the_tree_gives_the_rounded_levels(dtype):
    """In the interpreter, which cuts bfloat16 instead of rounding; on a GPU half precision is the assembly."""
    kind = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]

    @triton.jit
    def decode(bytes_ptr, low_ptr, high_ptr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
        i = tl.arange(0, 256)
        low, high = nf4.nf4_levels(tl.load(bytes_ptr + i), DTYPE, ASSEMBLY)
        tl.store(low_ptr + i, low)
        tl.store(high_ptr + i, high)

    every = torch.arange(256, device=DEVICE).to(torch.uint8)
    low, high = (torch.zeros(256, dtype=dtype, device=DEVICE) for _ in range(2))
    decode[(1,)](every, low, high, DTYPE=kind, ASSEMBLY=ON_GPU)
    levels = torch.tensor(LEVELS, device=DEVICE).to(dtype)
    assert torch.equal(low, levels[every.int() & 15]) and torch.equal(high, levels[every.int() >> 4])


@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_step_with_kernels_draws_the_references_codes(quant):
    config = small_config(channels=2, layers=1, width=64, heads=4, groups=2, head_dim=16, inner=128)
    plain = random_weights(config)
    chosen = chosen_formats(RECIPES[quant], config)
    weights = {
        name: FORMATS[chosen[name]].quantize(weight, torch.float32) if name in chosen else weight
        for name, weight in plain.items()
    }
    model = DiaModel(config, weights)
    state, reference_state = started(model, REQUESTS), started(model, REQUESTS)
    for _ in range(2):
        with kernels():
            model.step(state)
        if not ON_GPU:
            model.step(reference_state)
    if not ON_GPU:
        assert torch.equal(state.grid, reference_state.grid)
        torch.testing.assert_close(state.residual.x, reference_state.residual.x, rtol=1e-4, atol=1e-4)
