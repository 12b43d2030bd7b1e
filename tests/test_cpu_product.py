"""A CPU's compiled products: equal to their twins, a row alike in any batch; and what happens without a compiler."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.cpu import library as compiling
from engine.kernels.cpu import product
from engine.kernels.cpu.onednn import PackedInt8Weight, fastest
from engine.kernels.cpu.product import is_compiled, multiply, multiply_digits, multiply_sequence, read
from engine.kernels.formats import BLOCK, FORMATS, Int8Weight, NF4Weight
from engine.kernels.linear import sequence_linear, step_linear

WHOLE = [(48, 64), (1, 128), (7, 192), (45, 1024), (300, 2048), (33, 8192)]
ODD = [(1, 2), (7, 33), (3, 130), (45, 1030)]  # widths that blocks of 64 do not divide
SHAPES = [(format, shape) for format in FORMATS for shape in WHOLE] + [("int8", shape) for shape in ODD]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(compiling.library() is None, reason="there is no C compiler")


def quantised(format, outputs, inputs, dtype=torch.float32):
    return FORMATS[format].quantize(torch.randn(outputs, inputs) * inputs**-0.5, dtype)


def inputs_with_outliers(rows, width, dtype):
    x = torch.randn(rows, width)
    x[:, ::97] *= 50
    x[rows // 2] = 0
    return x.to(dtype)


@functools.cache
def portable_library():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "FLAGS", [flag for flag in compiling.FLAGS if flag != "-march=native"])
        return compiling.library.__wrapped__()


@pytest.fixture(params=["native", "portable"])
def either_code(request, monkeypatch):
    """The code with this CPU's own instructions, and the one that other CPUs get."""
    if request.param == "portable":
        monkeypatch.setattr(product, "library", portable_library)


@pytest.mark.parametrize("format, shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_a_weight_back_bit_for_bit(either_code, format, shape, dtype):
    weight = quantised(format, *shape, dtype)
    assert torch.equal(read(weight), weight.dequantize())


@pytest.mark.parametrize("shape", WHOLE + ODD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_has_the_bits_of_its_twin(either_code, shape, dtype):
    weight = quantised("int8", *shape, dtype)
    x = inputs_with_outliers(5, shape[1], dtype)
    assert torch.equal(multiply(x, weight), multiply_digits(x, weight))


def test_int8_sums_are_exact_where_they_are_largest(either_code):
    values = torch.full((6, product.WIDEST), 127, dtype=torch.int8)
    values[::2] = -127
    weight = Int8Weight(values, torch.full((6,), 127.0), torch.bfloat16)
    x = torch.full((2, product.WIDEST), 3.0)
    x[1] = -1
    torch.testing.assert_close(multiply(x, weight), x @ values.t().float() * weight.scale, rtol=1e-6, atol=0)
    assert not is_compiled(Int8Weight.empty(1, product.WIDEST + 1, torch.bfloat16, "cpu"))


@pytest.mark.parametrize("format, shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loses_less_than_the_dtype_does(either_code, format, shape, dtype):
    """The error is that of the result's own rounding, or of float32."""
    weight = quantised(format, *shape, dtype)
    x = inputs_with_outliers(6, shape[1], dtype)
    matrix = weight.dequantize(torch.float32).double()
    truth = x.double() @ matrix.t()
    found = multiply(x, weight)
    assert found.dtype == torch.float32 and not found[3].any()
    fixed = 4e-5 if format == "int8" and dtype != torch.float32 else 3e-7
    norms = x.double().abs().amax(dim=1, keepdim=True) * matrix.norm(dim=1)
    assert ((found.double() - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + fixed * norms).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs, inputs", [(96, 64), (1030, 1024), (512, 8192)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_in_any_batch(format, outputs, inputs, dtype, threads):
    weight = quantised(format, outputs, inputs, dtype)
    x = torch.randn(40, inputs).to(dtype)
    together = multiply(x, weight)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 3, 5, 8, 9, 17, 33):
            assert torch.equal(step_linear(x[:rows], weight), together[:rows])
        assert torch.equal(multiply(x[1::2], weight), together[1::2])  # not contiguous
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", [64, 3000, 2**22])
def test_a_sequence_is_multiplied_by_the_matrix(monkeypatch, format, part):
    monkeypatch.setattr(product, "PART", part)
    weight = quantised(format, 300, 192)
    x = torch.randn(2, 5, 192)
    expected = x @ weight.dequantize().t()
    torch.testing.assert_close(sequence_linear(x, weight), expected)
    torch.testing.assert_close(multiply_sequence(x[0], weight), expected[0])


def test_not_a_number_stays_one():
    for format in FORMATS:
        x = torch.randn(2, BLOCK)
        x[0, 3] = torch.nan
        found = multiply(x, quantised(format, 8, BLOCK))
        assert found[0].isnan().all() and found[1].isfinite().all()


def test_one_pool_of_threads():
    """A second OpenMP in the process would fight with torch's for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    assert len({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}) == 1


# Without a compiler


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    with pytest.warns(UserWarning, match="for want of a C compiler.*no-such-compiler"):
        assert compiling.library.__wrapped__() is None
    monkeypatch.setattr(product, "library", lambda: None)


def test_without_a_compiler_torch_multiplies(no_compiler):
    x = torch.randn(4, 64)
    for format in FORMATS:
        weight = quantised(format, 32, 64)
        held = fastest(weight)
        assert not is_compiled(weight) and isinstance(held, (PackedInt8Weight, Int8Weight, NF4Weight))
        torch.testing.assert_close(step_linear(x, held), x @ weight.dequantize().t(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "script, said",
    [
        ("echo 'products.c: this is no C' >&2; exit 1", "products.c: this is no C"),
        ("exit 3", "failed"),
        (f"exec {sys.executable} -c 'import time; time.sleep(60)'", "not done after a minute"),
        ("exit 0", "products.so"),  # and writes nothing
    ],
)
def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path, script, said):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    run = subprocess.run
    monkeypatch.setattr(compiling.subprocess, "run", lambda *a, timeout, **k: run(*a, timeout=timeout / 60, **k))
    with pytest.warns(UserWarning, match=said):
        assert compiling.library.__wrapped__() is None


def test_no_compiler_is_looked_for_before_there_is_a_quantised_weight():
    script = """
from engine import Engine
from engine.kernels.cpu import library

library.subprocess.run = None
Engine.load("synthetic:tiny", load_dac=False, device="cpu").generate("[S1] A.", max_tokens=20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_short_memory_is_told(monkeypatch):
    class Short:
        @staticmethod
        def multiply_int8(*_):
            return 0

    monkeypatch.setattr(product, "library", Short)
    with pytest.raises(MemoryError, match="2 rows of 64 inputs"):
        multiply(torch.randn(2, 64), quantised("int8", 8, 64))
