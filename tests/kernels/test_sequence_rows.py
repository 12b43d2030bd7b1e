"""What lies between the products of a sequence, compiled, against its references."""

import pytest
import torch

from dia_engine.kernels import gated as gated_module
from dia_engine.kernels import norm as norm_module
from dia_engine.kernels.cpu.build import library
from dia_engine.kernels.gated import gated, gated_ref
from dia_engine.kernels.norm import rms_norm, rms_norm_ref

SIZES = [(1, 1), (3, 17), (116, 192), (33, 1000)]


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """On every CPU that has compiled code, whatever the rule."""
    if library() is None:
        pytest.skip("there is no compiled code")
    for module in (gated_module, norm_module):
        monkeypatch.setattr(module, "compiled_for_rows", lambda x: library())


@pytest.mark.parametrize("rows, width", SIZES)
def test_a_norm_is_the_reference(rows, width):
    x, weight = 30 * torch.randn(rows, width), torch.randn(width)
    expected = rms_norm_ref(x.double(), weight.double(), 1e-5, torch.float64)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, torch.float32).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows, width", SIZES)
def test_a_gate_is_the_reference(rows, width):
    gate_up = 10 * torch.randn(rows, 2 * width)
    expected = gated_ref(gate_up.double())
    torch.testing.assert_close(gated(gate_up).double(), expected, rtol=1e-6, atol=1e-6)
    gate_up[0, 0] = float("nan")
    assert gated(gate_up)[0, 0].isnan()
