"""Which torch product a CPU gets, and that a row of it has the same bits in any batch."""

import pytest
import torch

from dia_engine.kernels import linear
from dia_engine.kernels.linear import step_linear


@pytest.mark.parametrize("amx, expected", [(True, "mm"), (False, "linear")])
def test_the_bfloat16_product_follows_the_cpu(monkeypatch, amx, expected):
    called = []
    mm, product = torch.mm, linear.F.linear
    monkeypatch.setattr(torch, "mm", lambda *given: called.append("mm") or mm(*given))
    monkeypatch.setattr(linear.F, "linear", lambda *given: called.append("linear") or product(*given))
    monkeypatch.setattr(linear, "has_amx", lambda: amx)
    x, weight = torch.randn(2, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    torch.testing.assert_close(step_linear(x, weight), product(x, weight))
    assert called == [expected]


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("outputs, inputs", [(45, 24), (192, 192), (1030, 520), (2048, 1024), (512, 8192)])
def test_a_row_has_the_same_bits_in_any_batch(monkeypatch, amx, dtype, outputs, inputs):
    monkeypatch.setattr(linear, "has_amx", lambda: amx)
    x, weight = torch.randn(70, inputs).to(dtype), (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    together = step_linear(x, weight)
    for rows in (1, 2, 3, 4, 6, 8, 10, 16, 17, 24, 31, 32, 33, 40, 64):
        assert torch.equal(step_linear(x[:rows], weight), together[:rows])
