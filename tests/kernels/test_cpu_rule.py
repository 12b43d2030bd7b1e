"""That a row of torch's products has the same bits in any batch."""

import pytest
import torch

from dia_engine.kernels import linear
from dia_engine.kernels.cpu import read_back
from dia_engine.kernels.linear import sequence_linear, step_linear
from dia_engine.kernels.quantized import BLOCK, FORMATS, NF4Weight


@pytest.fixture(params=[1, 2])
def threads(request):
    """Of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("outputs, inputs", [(45, 24), (192, 192), (1030, 520), (2048, 1024), (512, 8192)])
def test_a_row_has_the_same_bits_in_any_batch(dtype, outputs, inputs):
    x, weight = torch.randn(70, inputs).to(dtype), (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    together = step_linear(x, weight)
    for rows in (1, 2, 3, 4, 6, 8, 10, 16, 17, 24, 31, 32, 33, 40, 64):
        assert torch.equal(step_linear(x[:rows], weight), together[:rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quant", FORMATS)
@pytest.mark.parametrize("outputs, inputs", [(45, 64), (192, 192), (1030, 512), (96, 8192)])
def test_a_weight_read_back_in_parts_gives_what_it_is_defined_as(monkeypatch, dtype, quant, outputs, inputs):
    monkeypatch.setattr(linear, "is_compiled", lambda weight: False)
    monkeypatch.setattr(read_back, "PART", 40 * inputs)
    weight = FORMATS[quant].quantize(torch.randn(outputs, inputs) * inputs**-0.5, dtype)
    x = torch.randn(70, inputs)
    x[:, ::97] *= 50
    x = x.to(dtype)
    together = step_linear(x, weight)
    matrix = weight.dequantize(torch.float32).double()
    truth = x.double() @ matrix.t()
    # That of the result's rounding and the weights', and of sums in float32.
    eps = torch.finfo(dtype).eps
    bound = eps * truth.abs() + max(eps, 1e-6) * x.double().norm(dim=1, keepdim=True) * matrix.norm(dim=1) / 4
    assert ((together.double() - truth).abs() <= bound).all()
    for rows in (1, 2, 3, 8, 17, 33):
        assert torch.equal(step_linear(x[:rows], weight), together[:rows])
    sequence = sequence_linear(x.view(2, 35, -1), weight)
    assert sequence.dtype == dtype and sequence.shape == (2, 35, outputs)
    assert ((sequence.flatten(0, 1).double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nf4_read_back_has_the_bits_of_its_definition(dtype):
    weight = NF4Weight.quantize(torch.randn(33, 320), dtype)
    in_place = read_back.read_nf4(weight).unflatten(1, (-1, BLOCK // 2, 2)).transpose(2, 3).flatten(1)
    assert torch.equal(in_place, weight.dequantize())


def test_read_back_in_inference_mode_and_outside():
    weight = NF4Weight.quantize(torch.randn(2000, 1024), torch.bfloat16)
    with torch.inference_mode():
        first = read_back.read_nf4(weight).clone()
    assert torch.equal(first, read_back.read_nf4(weight))
