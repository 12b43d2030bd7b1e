"""Whole quantized matrices read back by one kernel have the reference's bits."""

import pytest
import torch

pytest.importorskip("triton")

from dia_engine.kernels.dequantize import dequantize
from dia_engine.kernels.dispatch import intercept_launches
from dia_engine.kernels.linear import READ_BACK, sequence_linear
from dia_engine.kernels.quantized import Int8Weight, NF4Weight
from tests.kernels.helpers import (
    DEVICE,
    kernels,
    matrix,
)

INT8, NF4 = [(1, 1), (7, 33), (9, 513), (70, 1030)], [(1, 64), (7, 192), (45, 1024), (3, 8256)]
CASES = [(Int8Weight, shape) for shape in INT8] + [(NF4Weight, shape) for shape in NF4]


@pytest.mark.parametrize(
    "dtype",
    # The interpreter cuts bfloat16 instead of rounding it.
    [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("kind, shape", CASES)
def test_has_the_bits_of_the_reference(kind, shape, dtype):
    weight = kind.quantize(matrix(*shape), dtype)
    with kernels():
        found = dequantize(weight)
    assert found.dtype == dtype and torch.equal(found, weight.dequantize())


@pytest.mark.parametrize("kind", [Int8Weight, NF4Weight])
def test_a_projection_is_one_launch_and_a_large_one_has_bounded_pieces(kind):
    columns, launches = 8192, []
    for rows, pieces in ((READ_BACK // columns, 1), (READ_BACK // columns + 5, 2)):
        launches.clear()
        weight = kind.empty(rows, columns, torch.bfloat16, "meta")
        with intercept_launches(launches.append, 90):
            y = sequence_linear(torch.empty(3, columns, dtype=torch.bfloat16, device="meta"), weight)
        assert y.shape == (3, rows) and len(launches) == pieces
        assert all(launch.arguments["out_ptr"].numel() <= READ_BACK for launch in launches)


@pytest.mark.parametrize("kind", [Int8Weight, NF4Weight])
def test_a_projection_is_that_of_the_reference(kind):
    weight, x = kind.quantize(matrix(20, 128), torch.float32), matrix(5, 128)
    with kernels():
        found = sequence_linear(x, weight)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight.dequantize().to(DEVICE)))
