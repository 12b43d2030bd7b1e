"""A CPU's compiled products: equal to their references, a row alike in any batch; and what happens without
a compiler."""

import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dia_engine import Engine
from dia_engine.kernels.cpu import build as compiling
from dia_engine.kernels.cpu import features, variants
from dia_engine.kernels.cpu import matmul as product
from dia_engine.kernels.cpu.limbs import digits_of, write_digits
from dia_engine.kernels.cpu.matmul import is_compiled, multiply, read
from dia_engine.kernels.cpu.onednn import PackedInt8Weight, pack_for_device
from dia_engine.kernels.cpu.structures import WIDEST
from dia_engine.kernels.linear import step_linear
from dia_engine.kernels.quantized import BLOCK, FORMATS, PER_ABSMAX, Int8Weight, NF4Weight
from tests.helpers import run_python
from tests.kernels.builds import BUILDS, HERE

WHOLE = [(48, 64), (1, 128), (7, 192), (45, 1024), (300, 2048), (33, 8192)]
ODD = [(1, 1), (7, 33), (3, 130), (45, 1030)]  # widths that blocks of 64 do not divide
SHAPES = [(format, shape) for format in FORMATS for shape in WHOLE] + [("int8", shape) for shape in ODD]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
compiled = pytest.mark.skipif(compiling.library() is None, reason="there is no C compiler")


def int8_reference(x: torch.Tensor, weight: Int8Weight) -> torch.Tensor:
    """What `multiply_int8` computes, to the last bit: float64 holds its sums exactly."""
    lines, unit = write_digits(x, digits_of(weight.dtype))
    total, *lower = (lines.double() @ weight.values.double().t()).unflatten(0, (-1, len(x))).unbind()
    for part in lower:
        total = 256 * total + part
    return total.float() * unit * (weight.absmax * PER_ABSMAX)


def quantized(format, outputs, inputs, dtype=torch.float32):
    return FORMATS[format].quantize(torch.randn(outputs, inputs) * inputs**-0.5, dtype)


def inputs_with_outliers(rows, width, dtype):
    x = torch.randn(rows, width)
    x[:, ::97] *= 50
    x[rows // 2] = 0
    return x.to(dtype)


@pytest.fixture(params=BUILDS, ids=lambda variant: variant.name)
def any_build(request, monkeypatch):
    """The code with this CPU's own instructions, and what others get."""
    library = compiling.library_of(request.param)
    monkeypatch.setattr(product, "library", lambda: library)


def defined(weight: torch.Tensor | Int8Weight | NF4Weight) -> torch.Tensor:
    """The matrix that a weight is multiplied as, float64. NF4 in bfloat16 has levels of that, as on a GPU."""
    if isinstance(weight, torch.Tensor):
        return weight.double()
    if not isinstance(weight, NF4Weight) or weight.dtype != torch.bfloat16:
        return weight.dequantize(torch.float32).double()
    ones = NF4Weight(weight.packed, torch.ones_like(weight.absmax), torch.bfloat16)
    return ones.dequantize().double() * weight.absmax.double().repeat_interleave(BLOCK, dim=1)


def plain_or_quantized(format, outputs, inputs, dtype):
    if format == "plain":
        return (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    return quantized(format, outputs, inputs, dtype)


@compiled
@pytest.mark.parametrize("format, shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_a_weight_back_bit_for_bit(any_build, format, shape, dtype):
    weight = quantized(format, *shape, dtype)
    assert torch.equal(read(weight), weight.dequantize())


@compiled
def test_subnormal_numbers_are_read_back_too_by_any_thread(any_build, monkeypatch):
    """Behind a product, in which they count as zero."""
    weight = Int8Weight(
        torch.randint(-127, 128, (2048, 512), dtype=torch.int8), torch.full((2048,), 1e-38), torch.float32
    )
    expected = weight.dequantize()
    monkeypatch.setattr(product, "thread_count", lambda: 4)
    for _ in range(5):
        multiply(torch.randn(4, 512), weight)
        assert torch.equal(read(weight), expected)


@compiled
@pytest.mark.parametrize("rows", [1, 5, 33, 64])  # 3, 15, 99 and 192 lines of digits in float32
@pytest.mark.parametrize("shape", [*WHOLE, *ODD, (16, 64), (17, 100), (100, 1030)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_has_the_bits_of_its_reference(any_build, rows, shape, dtype):
    weight = quantized("int8", *shape, dtype)
    x = inputs_with_outliers(rows, shape[1], dtype)
    assert torch.equal(multiply(x, weight), int8_reference(x, weight))


@compiled
def test_int8_sums_are_exact_where_they_are_largest(any_build):
    values = torch.full((6, WIDEST), 127, dtype=torch.int8)
    values[::2] = -127
    weight = Int8Weight(values, torch.full((6,), 127.0), torch.bfloat16)
    x = torch.full((2, WIDEST), 3.0)
    x[1] = -1
    torch.testing.assert_close(multiply(x, weight), x @ values.t().float() * weight.scale, rtol=1e-6, atol=0)
    assert not is_compiled(Int8Weight.empty(1, WIDEST + 1, torch.bfloat16, "cpu"))


@compiled
@pytest.mark.parametrize("format, shape", SHAPES + [("plain", shape) for shape in WHOLE + ODD])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_as_exact_as_float32(any_build, format, shape, dtype):
    weight = plain_or_quantized(format, *shape, dtype)
    x = inputs_with_outliers(6, shape[1], dtype)
    matrix = defined(weight)
    truth = x.double() @ matrix.t()
    found = multiply(x, weight)
    assert found.dtype == torch.float32 and not found[3].any()
    fixed = 4e-5 if format == "int8" and dtype != torch.float32 else 3e-7
    norms = x.double().abs().amax(dim=1, keepdim=True) * matrix.norm(dim=1)
    assert ((found.double() - truth).abs() <= 1e-6 * truth.abs() + fixed * norms).all()


@compiled
@pytest.mark.parametrize("format, shape", SHAPES + [("plain", shape) for shape in WHOLE + ODD])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_variants_give_the_same_bits(monkeypatch, format, shape, dtype):
    weight = plain_or_quantized(format, *shape, dtype)
    x = inputs_with_outliers(9, shape[1], dtype)
    x[4] *= 1e-37  # subnormal products, which some instructions take for zero
    found = []
    for variant in HERE:
        monkeypatch.setattr(product, "library", lambda variant=variant: compiling.library_of(variant))
        found.append(multiply(x, weight))
    for other in found[1:]:
        assert torch.equal(other, found[0])


@compiled
@pytest.mark.parametrize("format", [*FORMATS, "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs, inputs", [(96, 64), (1030, 1024), (512, 8192)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_in_any_batch(monkeypatch, format, outputs, inputs, dtype, threads):
    weight = plain_or_quantized(format, outputs, inputs, dtype)
    x = torch.randn(130, inputs).to(dtype)
    together = multiply(x, weight)
    monkeypatch.setattr(product, "thread_count", lambda: threads)
    for rows in (1, 2, 3, 5, 8, 9, 17, 33, 128):
        assert torch.equal(multiply(x[:rows], weight), together[:rows])
    assert torch.equal(multiply(x[1::2], weight), together[1::2])  # not contiguous
    if format != "plain":
        assert torch.equal(step_linear(x[:4], weight), together[:4])


@compiled
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_one(any_build, value, dtype):
    for format in FORMATS:
        x = torch.randn(2, BLOCK).to(dtype)
        x[0, 3] = value
        found = multiply(x, quantized(format, 8, BLOCK, dtype))
        assert not found[0].isfinite().any() and found[1].isfinite().all()


@compiled
def test_a_program_may_have_other_defaults():
    """The compiled code is given addresses: what lies there must not follow torch.set_default_dtype or _device."""
    params = {"max_tokens": 40, "seed": 1}
    for quant in FORMATS:
        expected = Engine.load("synthetic:tiny", quant=quant, device="cpu").generate("[S1] A.", **params)
        for change in (
            lambda: torch.set_default_dtype(torch.float64),
            lambda: torch.set_default_dtype(torch.bfloat16),
            lambda: torch.set_default_device("meta"),
        ):
            try:
                change()
                engine = Engine.load("synthetic:tiny", quant=quant, device="cpu")
                found = engine.generate("[S1] A.", **params)
            finally:
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
            assert np.array_equal(found, expected)


@pytest.mark.skipif(not HERE or not shutil.which(compiling._compiler()[0]), reason="there is no C compiler")
def test_a_compiler_that_is_there_compiles():
    """Otherwise the tests above would be skipped without a word."""
    assert compiling.library() is not None


@compiled
def test_one_pool_of_threads():
    """A second OpenMP in the process would fight with torch's for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    files = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "/" in line}
    assert len([name for name in files if re.match(r"lib(g|i)?omp", name)]) <= 1


# Without a compiler


@pytest.fixture
def no_kept_library(monkeypatch, tmp_path):
    """Nothing on disk that an earlier run has compiled; and quickly compiled, without optimization."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in compiling.FLAGS))


def compile_anew():
    return compiling.library_of.__wrapped__(HERE[0])


@pytest.fixture
def no_compiler(monkeypatch, no_kept_library, caplog):
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    assert compile_anew() is None
    assert "have no compiled code" in caplog.text and "no-such-compiler" in caplog.text
    monkeypatch.setattr(product, "library", lambda: None)


def test_without_a_compiler_torch_multiplies(no_compiler):
    x = torch.randn(4, 64)
    for format in FORMATS:
        weight = quantized(format, 32, 64)
        held = pack_for_device(weight)
        assert not is_compiled(weight) and isinstance(held, (PackedInt8Weight, Int8Weight, NF4Weight))
        torch.testing.assert_close(step_linear(x, held), x @ weight.dequantize().t(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "script, said",
    [
        ("echo 'In file included' >&2; echo 'error: this is no C' >&2; exit 1", "error: this is no C"),
        ("exit 3", "compiler failed"),
        (f"exec {sys.executable} -c 'import time; time.sleep(60)'", "not done after 1 s"),
        ("exit 0", "wrote no step.so"),  # and writes nothing
        (r"printf '\377 error' >&2; exit 1", "error"),
    ],
)
def test_a_compiler_that_fails_is_quoted(monkeypatch, no_kept_library, tmp_path, caplog, script, said):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    if "sleep" in script:
        monkeypatch.setattr(compiling, "SECONDS", 1)
    assert compile_anew() is None
    (record,) = caplog.records
    assert said in record.getMessage()


def test_quotes_that_do_not_match(monkeypatch, no_kept_library, caplog):
    monkeypatch.setenv("CC", "gcc '-O3")
    assert compile_anew() is None
    assert 'CC is "gcc \'-O3": No closing quotation' in caplog.text


@compiled
@pytest.mark.skipif(len(HERE) < 2, reason="this CPU runs one variant only")
@pytest.mark.parametrize("part", ["compiler", "assembler"])
def test_a_compiler_older_than_the_cpu_makes_another_variant(monkeypatch, no_kept_library, tmp_path, caplog, part):
    """An older assembler refuses what the compiler makes of the code, not the flags."""
    newest = next(flag for flag in HERE[0].flags if flag not in HERE[1].flags)
    refused = f"*{newest}*" if part == "compiler" else f"*{newest}*step.c*"
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in {refused}) echo "error: {newest}?" >&2; exit 1;; esac\nexec gcc "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert compiling.library.__wrapped__() is not None
    (kept,) = (tmp_path / "cache" / "dia-engine").glob("step-*.so")
    assert kept.name.startswith(f"step-{HERE[1].name}-") and not caplog.records


@pytest.fixture
def package(monkeypatch, no_kept_library, tmp_path):
    """A folder of the package, in which a wheel may have libraries."""
    folder = tmp_path / "native"
    shutil.copytree(compiling.SOURCES, folder, ignore=shutil.ignore_patterns("*.so"))
    monkeypatch.setattr(compiling, "SOURCES", folder)
    return folder


@compiled
@pytest.mark.skipif(len(HERE) < 2, reason="this CPU runs one variant only")
@pytest.mark.parametrize("first", ["absent", "cut off"])
def test_without_a_compiler_the_next_variant_of_the_package_runs(monkeypatch, package, caplog, first):
    """A wheel whose builder did not know the newest variant, or whose library of it cannot be loaded."""
    compiling._compile(compiling._command(HERE[1]), package / f"step-{HERE[1].name}.so")
    if first == "cut off":
        (package / f"step-{HERE[0].name}.so").write_bytes((package / f"step-{HERE[1].name}.so").read_bytes()[:5000])
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiling.library.__wrapped__()._name == str(package / f"step-{HERE[1].name}.so")
    assert not caplog.records


@compiled
def test_a_library_of_the_package_that_cannot_be_loaded_is_compiled(package, caplog):
    (package / f"step-{HERE[0].name}.so").write_bytes(b"of another system" * 10)
    assert compile_anew() is not None and not caplog.records


@compiled
def test_a_library_without_the_functions(monkeypatch, no_kept_library, tmp_path, caplog):
    (tmp_path / "step.c").write_text("int nothing;")
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    assert compile_anew() is None
    assert "scratch_bytes" in caplog.text


@compiled
def test_a_library_is_kept(no_kept_library, tmp_path):
    assert compile_anew() is not None
    (kept,) = (tmp_path / "cache" / "dia-engine").glob("step-*.so")
    compiled_once = kept.stat().st_mtime_ns
    assert compile_anew() is not None and kept.stat().st_mtime_ns == compiled_once


@compiled
def test_a_kept_library_that_is_broken_is_compiled_again(no_kept_library, tmp_path):
    folder = tmp_path / "cache" / "dia-engine"
    folder.mkdir(parents=True, mode=0o700)
    kept = folder / f"step-{HERE[0].name}-{compiling._fingerprint(compiling._command(HERE[0]))}.so"
    kept.write_bytes(b"cut off")
    assert compile_anew() is not None
    assert kept.stat().st_size > 1000


@compiled
def test_a_kept_library_that_lost_its_end_is_compiled_again(no_kept_library, tmp_path):
    """Loaded, it can end the process."""
    assert compile_anew() is not None
    (kept,) = (tmp_path / "cache" / "dia-engine").glob("step-*.so")
    content = kept.read_bytes()
    for size in (0, 63, 5000, len(content) // 2, len(content) - 1):
        other = tmp_path / f"{size}.so"
        other.write_bytes(content[:size])
        assert not compiling._is_whole(other)
    assert compiling._is_whole(kept)
    kept.unlink()  # a file of its own: the other one is in use
    kept.write_bytes(content[:5000])
    assert compile_anew() is not None and kept.read_bytes() == content


@compiled
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_there_may_be_any_number_of_rows(kind):
    """What a product keeps on the stack does not grow with them: a thread may have 2 MB."""
    x, weight = torch.randn(20_000, 64), torch.randn(64, 64)
    weight = weight if kind is None else FORMATS[kind].quantize(weight, torch.float32)
    found = multiply(x, weight)
    for first in (0, 511, 512, 1023, 19_999):
        assert torch.equal(found[first : first + 2], multiply(x[first : first + 2], weight))


# In a thread with the least stack that a system gives: rows of a million numbers, the longest text of a config,
# and steps with large vocabularies, heads and groups of them.
LARGE = """
import threading
import torch
from dia_engine.kernels.cpu.matmul import multiply
from dia_engine.kernels.cpu.build import library
from dia_engine.kernels.sequence_attention import attend_compiled, sequence_attention_ref
from dia_engine.model.dia import DiaModel
from tests.kernels.helpers import GREEDY, random_weights, small_config, started

def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

@torch.no_grad()
def main():
    x, weight = torch.ones(2, 2**20), torch.ones(3, 2**20)
    close(multiply(x, weight), x @ weight.t())
    query, key, value = torch.randn(24, 1, 2), torch.randn(65_536, 1, 2), torch.randn(65_536, 1, 2)
    close(attend_compiled(query, key, value, True, library()), sequence_attention_ref(query, key, value, True))
    for sizes in ({"vocab": 600_000, "width": 2}, {"head_dim": 40_000}, {"heads": 2400, "head_dim": 2}):
        config = small_config(**{"channels": 1, "layers": 1, "heads": 1, "groups": 1, **sizes})
        model = DiaModel(config, random_weights(config))
        states = [started(model, [(3, 2, GREEDY)]) for _ in range(2)]
        model.step(states[0])
        model.compiled_step = None
        model.step(states[1])
        assert torch.equal(states[0].grid, states[1].grid)
        close(states[0].residual.x, states[1].residual.x)
    print("done")

torch.manual_seed(0)
threading.stack_size(2 << 20)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


@compiled
def test_a_thread_has_room_for_any_sizes():
    done = run_python("-c", LARGE)
    assert done.returncode == 0 and done.stdout == "done\n", (done.returncode, done.stderr)


@compiled
def test_no_library_is_taken_from_where_others_write(no_kept_library, tmp_path):
    folder = tmp_path / "cache" / "dia-engine"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compile_anew() is not None
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "torchs, linuxs, name",
    [
        ("avx2 avx512 vnni avx512_bf16 amx", "amx_int8", "amx"),
        ("avx2 avx512 vnni avx512_bf16", "amx_int8", "avx512bf16"),  # Linux does not let this process use it
        ("avx2 avx512 vnni avx512_bf16 amx", "amx_bf16", "avx512bf16"),
        ("avx2 avx512 vnni avx512_bf16", "avx_vnni", "avx512bf16"),
        ("avx2 avx512 vnni", "", "avx512"),
        ("avx2 avx512", "", "avx2"),
        ("avx2", "avx_vnni", "avx2vnni"),
        ("avx2", "avx512_vnni", "avx2"),
        ("", "avx_vnni", None),
    ],
)
def test_the_rule(monkeypatch, torchs, linuxs, name):
    monkeypatch.delenv("DIA_CPU", raising=False)
    monkeypatch.setattr(variants.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        features, "_supported", lambda query: query[len("_init_") :] in torchs.split() or query[4:-10] in torchs.split()
    )
    monkeypatch.setattr(features, "_linux_flags", lambda: frozenset(linuxs.split()) | features.X86_64_V3)
    chosen = variants.chosen_variant()
    assert (chosen and chosen.name) == name


@pytest.mark.parametrize("missing", ["fma", "f16c", "bmi2", "abm"])
def test_a_cpu_that_lacks_a_part_of_what_compilers_are_told_gets_none(missing, monkeypatch):
    """Hypervisors may hide some."""
    monkeypatch.delenv("DIA_CPU", raising=False)
    monkeypatch.setattr(variants.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(features, "_supported", lambda query: True)
    monkeypatch.setattr(features, "_linux_flags", lambda: features.X86_64_V3 - {missing})
    assert variants.chosen_variant() is None


@pytest.mark.parametrize("title", ["flags\t", "Features"])
def test_features_by_linux_names(monkeypatch, title):
    said = f"processor\t: 0\n{title}\t: fpu avx2 avx_vnni\nbugs\t\t: spectre_v1\n\n{title}\t: other\n"
    monkeypatch.setattr(features, "open", lambda *args, **kwargs: io.StringIO(said), raising=False)
    assert features._linux_flags.__wrapped__() == {"fpu", "avx2", "avx_vnni"}

    def refused(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(features, "open", refused)
    assert features._linux_flags.__wrapped__() == frozenset()


@pytest.mark.skipif(not HERE, reason="no variant for this CPU")
def test_a_variant_can_be_chosen(monkeypatch):
    monkeypatch.setenv("DIA_CPU", HERE[-1].name)
    assert variants.chosen_variant() == HERE[-1]
    monkeypatch.setenv("DIA_CPU", "none")
    assert variants.chosen_variant() is None
    monkeypatch.setenv("DIA_CPU", "avx1024")
    with pytest.raises(ValueError, match="DIA_CPU must name a variant .* got 'avx1024'"):
        variants.chosen_variant()
