"""What the report on compiled kernels reads, and what it lets pass."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.kernel_report import instructions_per_weight, main
from benchmarks.machine_code import Build, read_amd, read_nvidia
from dia_engine.kernels.dispatch import Launch
from tests.helpers import run_python

USAGE = "Function _k:\n  REG:40 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:400\n"
SASS = """
\t.section\t.nv.info,"",@"SHT_CUDA_INFO"
        /*0000*/ \t.byte\t0x04, 0x2f
        /*0002*/ \t.short\t(.L_4 - .L_3)
.text._k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.64.STRONG.GPU R2, desc[UR4][R2.64] ;
        /*0020*/                   CCTL.E.PF2 [R4] ;
        /*0030*/                   ACQBULK ;
        /*0040*/              @!P0 LDG.E.128 R4, desc[UR4][R4.64] ;
        /*0050*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0060*/                   STG.E desc[UR4][R2.64], R8 ;
        /*0070*/                   EXIT ;
"""
AMD = """
_k:
\ts_load_dwordx8 s[4:11], s[0:1], 0x8
\tglobal_load_dwordx4 v[2:5], v0, s[0:1]
\tv_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]
\ts_endpgm
    .private_segment_fixed_size: 344
    .vgpr_count:     256
"""
SOUND = Build(
    86, registers=40, stack=0, shared=49152, widest_load=128, tensor_core="-", instructions=9, loads_before_wait=None
)


LOOP = """
.text._k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
.L_x_1:
        /*0020*/                   LDGSTS.E.128 [R1], desc[UR4][R4.64] ;
.L_x_2:
        /*0030*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0040*/              @P1 BRA `(.L_x_2) ;
        /*0050*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0070*/              @P0 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
        /*00a0*/                   NOP;
"""


def launch(weight=torch.bfloat16, activations=torch.bfloat16, dependent=False, early=()):
    arguments = {"weight_ptr": torch.empty(0, dtype=weight), "z_ptr": torch.empty(0, dtype=activations)}
    return Launch(None, (1,), arguments, {}, 8, 3, True, dependent, early)


def test_instructions_are_counted_and_data_is_not():
    build = read_nvidia(SASS, USAGE, 1024, 90)
    assert build == Build(90, 40, 8, 1024, 128, "HMMA.16816", 8, loads_before_wait=1, products=1)


def test_instructions_that_are_executed_are_counted_by_the_products_that_are_needed():
    build = read_nvidia(LOOP, USAGE, 1024, 90)
    assert (build.instructions, build.products, build.loop, build.loop_products) == (9, 3, 6, 2)
    # 208 columns of a slice are 13 products: one before the loop, two in each of its 6 turns.
    constants = {"K": 8 * 208, "SLICES": 8, "UNIT": 16, "TILE": 16, "BLOCK_M": 8}
    projection = replace(launch(), constants=constants)
    assert build.executed(projection) == 9 + 5 * 6
    assert instructions_per_weight(build, projection) == (9 + 5 * 6) * 256 / (16 * 8 * 208)
    assert build.executed(launch()) is None, "not a projection"
    unrolled = read_nvidia(SASS, USAGE, 1024, 90)
    assert unrolled.executed(projection) == 8


def test_spills_in_a_loop_are_told_from_those_outside():
    spilled = LOOP.replace("IADD3 R1, R1, 0x1, RZ", "LDL.LU R9, [R1]")
    assert read_nvidia(spilled, USAGE, 1024, 90).loop_spills == 1
    outside = LOOP.replace("LDC R1, c[0x0][0x28]", "STL.64 [R1], R2")
    assert read_nvidia(outside, USAGE, 1024, 90).loop_spills == 0
    assert replace(SOUND, stack=8, loop_spills=1).faults(launch()) == ["spills", "spills in a loop"]
    exact = launch(torch.int8, torch.float32)
    assert replace(SOUND, stack=8, loop_spills=1).faults(exact) == ["spills in a loop"]


def test_a_store_before_the_wait_is_found():
    early_store = SASS.replace("CCTL.E.PF2 [R4]", "STG.E desc[UR4][R2.64], R8")
    assert read_nvidia(early_store, USAGE, 1024, 90).loads_before_wait is None
    assert read_nvidia(SASS.replace("ACQBULK", "NOP"), USAGE, 1024, 90).loads_before_wait is None


def test_amd_assembly():
    assert read_amd(AMD, 16384, "gfx942") == Build(
        "gfx942", 256, 344, 16384, 128, "v_mfma_f32_16x16x16_bf16", 4, loads_before_wait=None
    )


def test_a_build_that_does_not_fit_or_spills_fails():
    assert SOUND.faults(launch()) == []
    assert SOUND.resident(launch()) == 2
    assert replace(SOUND, shared=101376).faults(launch()) == []
    assert replace(SOUND, shared=101377).faults(launch()) == ["101377 bytes of shared memory, 101376 are there"]
    assert replace(SOUND, stack=8).faults(launch()) == ["spills"]
    assert replace(SOUND, widest_load=64).faults(launch()) == ["narrow loads"]


def test_quantized_weights_in_float32_may_spill_sixteen_bytes():
    for weight in (torch.int8, torch.uint8):
        exact = launch(weight, torch.float32)
        assert replace(SOUND, stack=16).faults(exact) == []
        assert replace(SOUND, stack=20).faults(exact) == ["spills"]
        assert replace(SOUND, stack=8).faults(launch(weight, torch.bfloat16)) == ["spills"]
    assert replace(SOUND, stack=8).faults(launch(torch.float32, torch.float32)) == ["spills"]


def test_a_dependent_launch_loads_only_what_it_names_before_it_waits():
    for loads, early, expected in [
        (0, (), []), (None, (), ["does not wait"]), (1, (), ["does not wait"]), (1, ("last_ptr",), []),
        (2, ("last_ptr",), ["does not wait"]),
    ]:  # fmt: skip
        faults = replace(SOUND, architecture=90, loads_before_wait=loads).faults(launch(dependent=True, early=early))
        assert faults == expected


def test_amd_builds_fail_only_where_they_cannot_start():
    build = replace(SOUND, architecture="gfx942", stack=344, widest_load=64)
    assert build.faults(launch()) == []
    assert replace(build, shared=65537).faults(launch()) == ["65537 bytes of shared memory, 65536 are there"]


def report(*arguments):
    return run_python("-m", "benchmarks.kernel_report", *arguments)


def test_an_architecture_that_is_not_known_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--arch", "gfx1"])
    assert left.value.code == 2 and "'gfx1' is none of 75, 80" in capsys.readouterr().err


def test_every_configuration_compiles_without_spills_and_with_wide_loads():
    result = report("--arch", "86", "90", "--slots", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()[2:]
    assert len(lines) == 2 * 10
    assert all("HMMA" in line for line in lines if "_linear" in line or "qkv" in line), result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gfx942", "gfx1100"])
def test_every_kernel_compiles_and_fits_on_amd_gpus(architecture):
    result = report("--arch", architecture, "--slots", "1", "--quant", "none", "int8", "nf4")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()[2:]) == 10 + 6 + 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("architecture", ["80", "86", "89", "90", "120"])
def test_every_configuration_compiles_for_every_architecture_batch_and_dtype(architecture, dtype):
    slots = ["1", "2", "4", "8", "16", "32", "64"]
    result = report("--arch", architecture, "--dtype", dtype, "--slots", *slots, "--quant", "none", "int8", "nf4")
    assert result.returncode == 0, result.stdout + result.stderr
