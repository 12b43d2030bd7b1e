"""How projections are cut up: what fits, what the number of rows may change, and how many kernels that makes."""

import dataclasses
import itertools
import json

import pytest
import torch

pytest.importorskip("triton")

from dia_engine.kernels import gated_linear, norm_linear, qkv, residual_linear
from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.kernels.attention import AttentionScratch, block_sizes, decode_attention, decode_attention_ref
from dia_engine.kernels.dispatch import intercept_launches
from dia_engine.kernels.matmul import MOST_NUMBERS, Tiling, operands
from dia_engine.kernels.quantized import FORMATS
from dia_engine.kernels.rope import rope_table
from dia_engine.model.dia import DiaModel
from dia_engine.model.shapes import parameter_shapes
from tests.helpers import run_python
from tests.kernels.helpers import (
    DEVICE,
    EPS,
    kernels,
    matrix,
    randn,
    random_residual,
    run_launch,
    small_config,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FIXED = ("unit", "slices")  # what decides the order of sums


def empty(kind, outputs, inputs, dtype):
    if kind is None:
        return torch.empty((outputs, inputs), dtype=dtype, device="meta")
    return FORMATS[kind].empty(outputs, inputs, dtype, "meta")


@pytest.mark.parametrize("architecture", [*SHARED_MEMORY_LIMIT, 0, 999])
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_rows_leaves_the_order_of_sums_alone(architecture, kind, dtype):
    for tile, width in itertools.product((16, 32), (64, 2048, 8192)):
        weight = empty(kind, 4096, width, dtype)
        tilings = [Tiling.choose(weight, tile, rows, architecture) for rows in range(1, 140)]
        assert len({tuple(getattr(tiling, name) for name in FIXED) for tiling in tilings}) == 1
        for tiling in tilings:
            assert tiling.unit % tiling.block_k == 0 and tiling.tile % tile == 0
            assert tiling.stages == 2 if isinstance(architecture, str) else tiling.stages >= 3


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_float32_takes_narrow_tiles(architecture, kind):
    """Triton spills 32 x 16 tiles of float32."""
    for rows in (2, 9, 128):
        assert Tiling.choose(empty(kind, 4096, 2048, torch.float32), 32, rows, architecture).block_m == 8


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_large_batches_have_large_tiles_and_enough_programs(architecture, kind):
    """What was fastest on an H200: 64 x 32 where that makes 96 programs, 32 x 16 for small matrices and few rows."""
    expected = {
        (16384, 32): (64, 32),
        (2048, 32): (32, 16),
        (3072, 32): (32, 32),
        (2048, 64): (32, 32),
        (2048, 128): (64, 32),
    }
    for (outputs, rows), tile in expected.items():
        tiling = Tiling.choose(empty(kind, outputs, 2048, torch.bfloat16), 16, rows, architecture)
        assert (tiling.tile, tiling.block_m) == tile, (outputs, rows)
        blocks, tiles = tiling.grid(rows, outputs)
        assert blocks * tiles >= 96


def test_many_programs_have_less_in_flight_each():
    for kind in (None, "int8", "nf4"):
        many, few = (Tiling.choose(empty(kind, outputs, 2048, torch.bfloat16), 16, 2, 90) for outputs in (16384, 2048))
        assert (many.stages - 1) * many.block_k == 128 and (few.stages - 1) * few.block_k == 256
        assert (many.slices, many.warps) == (few.slices, few.warps) == (4, 4)
        long = Tiling.choose(empty(kind, 2048, 8192, torch.bfloat16), 16, 2, 90)
        assert (long.slices, long.warps) == (8, 8)


SLOTS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 32, 33, 48, 63, 64)


def test_distinct_kernels_over_all_slot_counts():
    """Slot counts share kernels: the number of rows is an argument, and only the block of rows is compiled in."""
    program = (
        "import json, torch; from benchmarks.kernel_report import distinct, step_launches; "
        "from dia_engine.model.config import DiaConfig; "
        f"launches = [launch for slots in {SLOTS} for launch in "
        "step_launches(DiaConfig(), slots, torch.bfloat16, 90) if 'weight_ptr' in launch.arguments]; "
        "builds = list(distinct(launches)); "
        "print(json.dumps([len(launches), len(builds), sorted({b.constants['BLOCK_M'] for b in builds})]))"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
    launches, builds, blocks = json.loads(result.stdout)
    # QKV, O, cross-Q, cross-O, gate and up, down, head; O and cross-Q as well as cross-O differ by their rows.
    assert launches == len(SLOTS) * (18 * 6 + 1) and blocks == [8, 16, 32]
    assert builds <= 7 * 5, builds  # 8 and 16 rows, and wide tiles of three kinds


def test_projections_fit_into_shared_memory():
    result = run_python("-m", "tests.kernels.compiled_tilings", "sample")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split()[-2]) == 16, result.stdout


@pytest.mark.slow
def test_all_projections_fit_into_shared_memory():
    result = run_python("-m", "tests.kernels.compiled_tilings", "all")
    assert result.returncode == 0, result.stdout + result.stderr


def all_projections(weights, inputs, residual, rows):
    """What the four kernels give, in one list."""
    head_dim, width = 16, weights[3].shape[0]
    query = torch.full((rows, 2, head_dim), torch.nan, device=DEVICE)
    caches = [torch.zeros((rows, 1, 9, head_dim), device=DEVICE) for _ in range(2)]
    normed = torch.full((rows, weights[1].shape[0]), torch.nan, device=DEVICE)
    hidden = torch.full((rows, weights[2].shape[0] // 2), torch.nan, device=DEVICE)
    changed = random_residual(rows, width)
    changed.write(
        inputs[:, :width] if inputs.shape[1] >= width else randn(rows, width), torch.ones(width, device=DEVICE)
    )
    position = torch.arange(rows // 2, device=DEVICE) % 9
    with kernels():
        qkv.project_qkv(residual, weights[0], EPS, rope_table(9, head_dim, 10000.0, DEVICE), position, query, *caches)
        norm_linear.norm_linear(residual, weights[1], EPS, normed)
        gated_linear.gated_linear(residual, weights[2], EPS, hidden)
        residual_linear.residual_linear(inputs, weights[3], changed, torch.ones(width, device=DEVICE))
    return [query, *caches, normed, hidden, changed.x, changed.z, changed.squares]


TILINGS = {
    "wide": {"tile": 32, "block_m": 32, "stages": 3},
    "widest": {"tile": 64, "block_m": 64, "stages": 2},  # with 3 it does not fit a GPU
    "half_blocks": {},
}


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
@pytest.mark.parametrize("width", [576, 72])
def test_every_tiling_gives_the_same_results(monkeypatch, name, kind, width):
    """Those that float32 in the interpreter would not get by itself, compared with those that it gets."""
    halves = int("half_blocks" in name)
    if kind == "nf4" and (width % 64 or halves):
        pytest.skip("blocks do not fill the rows" if width % 64 else "a block is the unit of a scale")
    rows = 38

    def weight(outputs):
        dense = matrix(outputs, width)
        return dense if kind is None else FORMATS[kind].quantize(dense, torch.float32)

    weights = [weight(outputs) for outputs in (64, 70, 90, 40)]
    inputs, residual = randn(rows, width), random_residual(rows, width)
    torch.manual_seed(1)
    expected = all_projections(weights, inputs, residual, rows)
    choose = Tiling.choose

    def forced(*arguments):
        tiling = choose(*arguments)
        return dataclasses.replace(tiling, block_k=tiling.block_k >> halves, **TILINGS[name])

    monkeypatch.setattr(Tiling, "choose", forced)
    torch.manual_seed(1)
    for ours, theirs in zip(all_projections(weights, inputs, residual, rows), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8, 16, 32, 64, 128])
def test_only_programs_that_would_spill_name_their_registers(rows):
    """Older compilers spill under such a limit elsewhere, and AMD's has no such option."""
    plain, int8 = (empty(kind, 2048, 2048, torch.bfloat16) for kind in (None, "int8"))
    for architecture in (86, 89, 120):
        tiling = Tiling.choose(plain, 16, rows, architecture)
        is_pressed = tiling.tile == 32 or tiling.block_m == 16
        assert tiling.registers(plain, architecture) == (168 if is_pressed else None)
        assert Tiling.choose(int8, 16, rows, architecture).registers(int8, architecture) is None
    for architecture in (80, 90, "gfx942"):
        assert Tiling.choose(plain, 32, rows, architecture).registers(plain, architecture) is None
    tiling = Tiling.choose(int8, 16, rows, 80)
    assert tiling.registers(int8, 80) == (255 if tiling.tile >= 32 and tiling.warps == 4 else None)
    exact = empty(None, 2048, 2048, torch.float32)
    assert Tiling.choose(exact, 32, rows, 86).registers(exact, 86) is None
    for columns in (2048, 8192):
        nf4 = empty("nf4", 2048, columns, torch.bfloat16)
        widest = Tiling.choose(nf4, 16, rows, 90)
        assert widest.registers(nf4, 90) == (252 if widest.block_m == 32 else None)
        assert widest.registers(nf4, 86) == (252 if widest.block_m == 32 and widest.warps == 8 else None)
        assert widest.registers(nf4, 100) is None


@pytest.mark.parametrize("architecture", SHARED_MEMORY_LIMIT)
def test_attention_of_usual_heads_has_32_positions_a_turn(architecture):
    for ratio, itemsize in itertools.product((1, 4), (2, 4)):
        assert block_sizes(128, ratio, itemsize, architecture)["BLOCK_T"] == 32


def test_attention_of_large_heads_is_computed_in_smaller_turns():
    query, keys, values = randn(2, 2, 512), randn(2, 1, 90, 512), randn(2, 1, 90, 512)
    last, found = torch.tensor([70], device=DEVICE), torch.empty(2, 1024, device=DEVICE)
    scratch, launches = AttentionScratch.allocate(2, 1, 2, 512, DEVICE), []
    with intercept_launches(launches.append, 86):
        decode_attention(query, keys, values, last, scratch, found)
    assert launches[0].constants["BLOCK_T"] == 16
    run_launch(launches[0])
    expected = decode_attention_ref(query, keys, values, last)
    torch.testing.assert_close(found.view_as(expected), expected, rtol=1e-4, atol=1e-4)


ATTENTION = """
import torch
from benchmarks.kernel_report import compile_launch
from dia_engine.kernels.architectures import SHARED_MEMORY_LIMIT
from dia_engine.kernels.attention import AttentionScratch, block_sizes, decode_attention
from dia_engine.kernels.dispatch import intercept_launches

def tensor(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")

for head_dim, ratio, dtype, architecture in (
    (256, 16, torch.float32, 86), (512, 4, torch.float32, 86), (1024, 1, torch.bfloat16, 86),
    (1024, 1, torch.float32, 90),
    (1024, 16, torch.bfloat16, 90),
):
    launches = []
    with intercept_launches(launches.append, architecture):
        scratch = AttentionScratch.allocate(2, 1, ratio, head_dim, "meta")
        cache, last = tensor(2, 1, 64, head_dim, dtype=dtype), tensor(1, dtype=torch.int64)
        query, out = tensor(2, ratio, head_dim, dtype=dtype), tensor(2, ratio * head_dim, dtype=dtype)
        decode_attention(query, cache, cache, last, scratch, out)
    used, limit = compile_launch(launches[0], architecture).shared, SHARED_MEMORY_LIMIT[architecture]
    print(head_dim, ratio, dtype, architecture, used, limit, launches[0].constants["BLOCK_T"])
    assert used <= limit
"""


def test_attention_of_large_heads_fits_into_shared_memory():
    result = run_python("-c", ATTENTION)
    assert result.returncode == 0, result.stdout + result.stderr


def model_of(config):
    shapes = parameter_shapes(config)
    return DiaModel(config, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def test_sizes_that_kernels_cannot_take_are_refused_with_the_model():
    with intercept_launches(print, 86):
        model_of(small_config(head_dim=512))
        with pytest.raises(ValueError, match="1 heads of 1024 numbers .* shared memory, and this GPU has 101376"):
            model_of(small_config(heads=2, head_dim=1024))
        with pytest.raises(ValueError, match="a matrix may have 2147483647 numbers on a GPU"):
            model_of(small_config(width=2**20, inner=2**10))
        with pytest.raises(ValueError, match=str(MOST_NUMBERS)):
            operands(empty("int8", 2**16, 2**15, torch.bfloat16))
    model_of(small_config(heads=2, head_dim=1024))
