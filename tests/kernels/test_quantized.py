"""8- and 4-bit weights equal bitsandbytes' bit for bit: its values and scales, and what they are read back as."""

import pytest
import torch

from dia_engine.kernels import quantized as formats
from dia_engine.kernels.quantized import Int8Weight, NF4Weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes").functional


@pytest.fixture(params=[2**22, 700], ids=["at once", "in chunks"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK", request.param)


def matrix(rows: int, columns: int, dtype=torch.float32) -> torch.Tensor:
    """Rows of very different size, with outliers, ties, a row of zeros and a block of zeros."""
    values = torch.randn(rows, columns) * torch.logspace(-3, 2, rows)[:, None]
    values[:, ::17] *= 8
    values[0, : columns // 2] = values[0, 0]
    values[-1] = 0
    values[0, -64:] = 0
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns", [(2, 64), (7, 33), (31, 129), (20, 256), (5, 1), (3, 1000)])
def test_int8_is_bitsandbytes(bitsandbytes, rows, columns, dtype):
    source = matrix(rows, columns, dtype)
    before = source.clone()
    ours = Int8Weight.quantize(source, dtype)
    values, absmax, _ = bitsandbytes.int8_vectorwise_quant(source)
    assert torch.equal(ours.values, values) and torch.equal(ours.absmax, absmax)
    assert torch.equal(source, before)
    theirs = bitsandbytes.int8_vectorwise_dequant(values, absmax)
    for wanted in DTYPES:
        assert torch.equal(ours.dequantize(wanted), theirs.to(wanted))
    assert ours.dequantize().dtype == dtype
    assert ours.nbytes == rows * columns + 4 * rows and ours.shape == source.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns", [(2, 64), (7, 192), (31, 128), (20, 256), (3, 1024)])
def test_nf4_is_bitsandbytes(bitsandbytes, rows, columns, dtype):
    source = matrix(rows, columns, dtype)
    ours = NF4Weight.quantize(source, dtype)
    packed, state = bitsandbytes.quantize_4bit(source, blocksize=64, quant_type="nf4")
    assert torch.equal(ours.neighbors(), packed)
    assert torch.equal(ours.absmax.flatten(), state.absmax)
    repacked = NF4Weight.from_neighbors(packed, state.absmax, source.shape, dtype)
    assert torch.equal(repacked.packed, ours.packed) and torch.equal(repacked.absmax, ours.absmax)
    for wanted in DTYPES:
        state.dtype = wanted
        assert torch.equal(ours.dequantize(wanted), bitsandbytes.dequantize_4bit(packed, state))
    assert ours.nbytes == rows * columns // 2 + rows * columns // 16 and ours.shape == source.shape


def test_every_nibble_at_every_place():
    """The order of nibbles, by hand: byte j of a block holds weight j below and weight 32 + j above."""
    levels = torch.tensor(formats.LEVELS)
    nibbles = torch.randint(16, (3, 128))
    nibbles[:, ::64] = 15  # so that every block's scale is 1
    weight = NF4Weight.quantize(levels[nibbles], torch.float32)
    assert torch.equal(weight.dequantize(), levels[nibbles])
    for block in range(2):
        for j in range(32):
            byte = weight.packed[:, 32 * block + j].int()
            assert torch.equal(byte & 15, nibbles[:, 64 * block + j].int())
            assert torch.equal(byte >> 4, nibbles[:, 64 * block + 32 + j].int())


@pytest.mark.parametrize("kind, columns", [(Int8Weight, 45), (NF4Weight, 128)])
def test_rows_split_and_joined_are_the_rows_quantized_apart(kind, columns):
    source = matrix(12, columns)
    whole = kind.quantize(source, torch.bfloat16)
    parts = whole.split([5, 3, 4])
    for part, rows in zip(parts, source.split([5, 3, 4]), strict=True):
        assert torch.equal(part.dequantize(), kind.quantize(rows, torch.bfloat16).dequantize())
    joined = kind.join(parts, "cpu")
    assert torch.equal(joined.dequantize(), whole.dequantize()) and joined.dtype == torch.bfloat16


@pytest.mark.parametrize("columns", [1, 63, 96, 200])
def test_a_width_that_blocks_do_not_fill_is_refused(columns):
    with pytest.raises(ValueError, match=f"multiple of 64 weights, got {columns}"):
        NF4Weight.quantize(matrix(4, columns), torch.float32)
