"""Products of the many rows of a sequence on a CPU."""

import pytest
import torch
import torch.nn.functional as F

from dia_engine.kernels.cpu import features, matmul, sequences
from dia_engine.kernels.linear import sequence_linear
from dia_engine.kernels.quantized import FORMATS
from tests.kernels.builds import HERE

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=["compiled", "none"])
def code(request, monkeypatch):
    """With the compiled code and without it."""
    if request.param == "compiled" and not HERE:
        pytest.skip("no variant for this CPU")
    if request.param == "none":
        monkeypatch.setattr(sequences, "is_compiled", lambda weight: False)
        monkeypatch.setattr(sequences, "uses_avx512", lambda: False)


@pytest.fixture
def products(monkeypatch):
    """The dtypes that torch multiplies, as they come."""
    seen, product = [], F.linear

    def linear(x, matrix):
        seen.append(matrix.dtype)
        return product(x, matrix)

    monkeypatch.setattr(F, "linear", linear)
    return seen


def weight_of(format, dtype, outputs=300, inputs=192):
    matrix = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    return FORMATS[format].quantize(matrix, dtype) if format in FORMATS else matrix


def dense(weight):
    return (weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float32)).double()


@pytest.mark.parametrize("format", [*FORMATS, "plain"])
@pytest.mark.parametrize("part", [64, 3000, 2**22])
def test_it_is_multiplied_by_the_matrix(monkeypatch, code, format, part):
    monkeypatch.setattr(sequences, "PART", part)
    weight = weight_of(format, torch.float32)
    x = torch.randn(2, 5, 192)
    expected = (x.double() @ dense(weight).t()).float()
    torch.testing.assert_close(sequence_linear(x, weight), expected)
    torch.testing.assert_close(sequences.multiply_sequence(x[0], weight), expected[0])


@pytest.mark.parametrize("format", [*FORMATS, "plain"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("part", [3000, 2**22])
def test_without_instructions_half_precision_is_multiplied_in_float32(monkeypatch, code, products, format, dtype, part):
    monkeypatch.setattr(sequences, "PART", part)
    monkeypatch.setattr(sequences, "multiplies", lambda dtype: dtype == torch.float32)
    weight, x = weight_of(format, dtype), torch.randn(2, 35, 192).to(dtype)
    found = sequence_linear(x, weight)
    assert found.dtype == dtype and set(products) <= {torch.float32}
    truth = x.double() @ dense(weight).t()
    eps = torch.finfo(dtype).eps
    bound = 0.51 * eps * truth.abs() + 1e-5  # the rounding of the result, and a little for sums in float32
    if format in FORMATS:  # and of the weights
        bound += eps / 4 * x.double().norm(dim=-1, keepdim=True) * dense(weight).norm(dim=1)
    assert ((found.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_with_instructions_half_precision_is_torchs_product(monkeypatch, products, dtype):
    monkeypatch.setattr(sequences, "multiplies", lambda dtype: True)
    weight, x = weight_of("plain", dtype), torch.randn(35, 192).to(dtype)
    assert torch.equal(sequence_linear(x, weight), F.linear(x, weight))
    assert products[0] == dtype


@pytest.mark.parametrize(
    "flags, bf16, amx, fast",
    [
        (set(), False, False, []),
        ({"avx512_fp16"}, False, False, [torch.float16]),
        ({"amx_fp16"}, True, True, HALVES),
        (set(), True, False, [torch.bfloat16]),
        (set(), False, True, [torch.bfloat16]),
        ({"bf16", "asimdhp"}, False, False, HALVES),  # ARM
        ({"asimdhp"}, False, False, [torch.float16]),
    ],
)
def test_which_dtypes_a_cpu_multiplies(monkeypatch, flags, bf16, amx, fast):
    monkeypatch.setattr(features, "_linux_flags", lambda: frozenset(flags))
    monkeypatch.setattr(features, "has_avx512_bf16", lambda: bf16)
    monkeypatch.setattr(features, "has_amx", lambda: amx)
    assert [dtype for dtype in HALVES if features.multiplies(dtype)] == fast
    assert features.multiplies(torch.float32)


@pytest.mark.skipif(not HERE, reason="no variant for this CPU")
def test_in_float32_a_row_has_its_bits_in_any_sequence_where_the_product_is_compiled():
    x, weight = torch.randn(2, 70, 96), torch.randn(40, 96)
    found = sequence_linear(x, weight)
    torch.testing.assert_close(found, F.linear(x, weight))
    if matmul.uses_avx512():
        assert torch.equal(sequence_linear(x[1, 3:4], weight), found[1, 3:4])


def test_without_avx512_float32_is_left_to_torch(monkeypatch, products):
    monkeypatch.setenv("DIA_CPU", "none")
    matmul.uses_avx512.cache_clear()
    try:
        x, weight = torch.randn(3, 96), torch.randn(40, 96)
        assert torch.equal(sequence_linear(x, weight), F.linear(x, weight))
        assert products[0] == torch.float32
    finally:
        matmul.uses_avx512.cache_clear()
