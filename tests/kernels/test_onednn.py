"""Packed int8 products on a CPU: exact sums, batch independence, and how little the digits of the inputs lose."""

import pytest
import torch

from dia_engine.kernels import linear
from dia_engine.kernels.cpu import onednn
from dia_engine.kernels.cpu.onednn import PackedInt8Weight, multiplies_int8, pack_for_device
from dia_engine.kernels.linear import sequence_linear, step_linear
from dia_engine.kernels.quantized import Int8Weight

pytestmark = pytest.mark.skipif(not multiplies_int8(), reason="oneDNN does not multiply int8 exactly on this CPU")


def int8_matrix(outputs, inputs, dtype=torch.float32):
    return Int8Weight.quantize(torch.randn(outputs, inputs) * inputs**-0.5, dtype)


@pytest.mark.parametrize("outputs, inputs", [(48, 64), (7, 33), (1, 1), (45, 1030), (3072, 2048)])
def test_packing_loses_nothing(outputs, inputs):
    weight = int8_matrix(outputs, inputs)
    packed = PackedInt8Weight.pack(weight)
    assert packed.shape == weight.shape and packed.device == weight.device
    assert torch.equal(packed.unpack().values, weight.values)
    assert torch.equal(packed.dequantize(), weight.dequantize())
    assert packed.nbytes <= weight.nbytes + 12 * outputs


def test_sums_are_exact_where_they_are_largest():
    values = torch.full((16, 8192), 127, dtype=torch.int8)
    values[::2] = -127
    packed = PackedInt8Weight.pack(Int8Weight(values, torch.full((16,), 127.0), torch.float32))
    assert torch.equal(
        packed.multiply_lines(values[:3]), (values[:3].double() @ values.double().t()).float() * packed.scale
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs, inputs", [(48, 64), (7, 33), (512, 2048), (256, 8192)])
def test_loses_less_than_the_dtype_does(outputs, inputs, dtype):
    """Inputs with outliers 50 times their size. The error is that of the result's own rounding, or of float32."""
    weight = int8_matrix(outputs, inputs, dtype)
    x = torch.randn(6, inputs)
    x[:, ::97] *= 50
    x[4] = 0
    x = x.to(dtype)
    truth = x.double() @ weight.dequantize(torch.float32).double().t()
    found = step_linear(x, PackedInt8Weight.pack(weight))
    assert found.dtype == torch.float32 and not found[4].any()
    step = torch.finfo(dtype).eps
    fixed = 4e-5 if dtype != torch.float32 else 2e-7
    norms = x.double().abs().amax(dim=1, keepdim=True) * weight.dequantize(torch.float32).double().norm(dim=1)
    error = (found.double() - truth).abs()
    assert (error <= step * truth.abs() + fixed * norms).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs, inputs", [(96, 64), (2048, 1024), (512, 8192)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_batch(outputs, inputs, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed = PackedInt8Weight.pack(int8_matrix(outputs, inputs, dtype))
        x = torch.randn(130, inputs).to(dtype)
        together = step_linear(x, packed)
        for rows in (1, 2, 3, 5, 8, 17, 33, 64, 100):
            assert torch.equal(step_linear(x[:rows], packed), together[:rows])
        assert torch.equal(sequence_linear(x.view(2, 65, -1), packed), together.view(2, 65, -1).to(dtype))
    finally:
        torch.set_num_threads(before)


def test_where_int8_cannot_be_multiplied_the_reference_is_used(monkeypatch):
    weight = int8_matrix(32, 64)
    monkeypatch.setattr(onednn, "is_compiled", lambda weight: False)
    assert isinstance(pack_for_device(weight), PackedInt8Weight)
    monkeypatch.setattr(onednn, "multiplies_int8", lambda: False)
    assert pack_for_device(weight) is weight
    monkeypatch.setattr(linear, "is_compiled", lambda weight: False)
    x = torch.randn(4, 64)
    torch.testing.assert_close(step_linear(x, weight), x @ weight.dequantize().t())


def test_a_cpu_whose_sums_overflow_is_found_out(monkeypatch):
    def saturating(self, rows):
        """Without VNNI: inputs are shifted into [0, 255], pairs of products added in 16 bits, the shift taken back."""
        values = self.unpack().values.int()
        pairs = ((rows[:, None].int() + 128) * values).unflatten(-1, (-1, 2)).sum(-1)
        return (pairs.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * values.sum(-1)) * self.scale

    monkeypatch.setattr(PackedInt8Weight, "multiply_lines", saturating)
    assert not multiplies_int8.__wrapped__()


@pytest.mark.parametrize("vnni, amx, fast", [(True, False, True), (False, True, True), (False, False, False)])
def test_speed_is_known_by_the_cpus_features(monkeypatch, vnni, amx, fast):
    monkeypatch.setattr(onednn, "has_vnni", lambda: vnni)
    monkeypatch.setattr(onednn, "has_amx", lambda: amx)
    assert multiplies_int8.__wrapped__() is fast


def test_lines_go_in_as_unsigned_numbers(monkeypatch):
    """Signed ones meet oneDNN's reference loop on a CPU without AMX."""
    given, product = [], torch.ops.onednn.qlinear_pointwise

    def recorded(lines, scale, zero_point, *rest):
        given.append((lines.dtype, zero_point))
        return product(lines, scale, zero_point, *rest)

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", recorded)
    lines = torch.arange(-128, 128, dtype=torch.int8).view(4, 64)
    weight = int8_matrix(48, 64)
    found = PackedInt8Weight.pack(weight).multiply_lines(lines)
    assert given == [(torch.uint8, 128)]
    assert torch.equal(found, (lines.double() @ weight.values.double().t()).float() * weight.scale)


def test_a_weight_that_is_read_back_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(onednn, "is_compiled", lambda weight: False)
    monkeypatch.setattr(onednn, "multiplies_int8", lambda: False)
    onednn._warn_of_reading_back.cache_clear()
    weight = int8_matrix(32, 64)
    assert pack_for_device(weight) is weight and pack_for_device(weight) is weight
    (record,) = caplog.records
    assert "int8 saves memory and not time" in record.getMessage()
