"""The PTX emulator on hand-written kernels: what it computes and what it refuses."""

import random

import numpy as np
import pytest

from tools.ptx_emulator.arithmetic import rule
from tools.ptx_emulator.errors import EmulationError
from tools.ptx_emulator.execution import Kernel
from tools.ptx_emulator.memory import GlobalMemory

HEAD = """.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid 32
{
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd3, %rd1, %rd2;
    shl.b32 %r2, %r1, 4;
"""


def execute(body, data, dependent=False, early=False):
    """Run 32 threads; %rd3 points to 16 bytes of `data` for each, %r2 to 16 bytes of shared memory."""
    memory = GlobalMemory()
    memory.add("data", data.ctypes.data, data.nbytes, early)
    kernel = Kernel(HEAD + body + "ret;\n}\n")
    kernel.launch((1, 1, 1), [data.ctypes.data], memory, 512, dependent, random.Random(0))
    return data


def words(seed=0, count=128):
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


STORE = "st.global.b32 [%rd3], %r5;\n"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("add.s32 %r5, %r3, %r4;", lambda a, b: a + b),
        ("mul.lo.s32 %r5, %r3, %r4;", lambda a, b: a * b),
        ("mul.hi.u32 %r5, %r3, %r4;", lambda a, b: (a.astype(np.uint64) * b >> np.uint64(32)).astype(np.uint32)),
        ("xor.b32 %r5, %r3, %r4;", lambda a, b: a ^ b),
        ("shr.s32 %r5, %r3, 7;", lambda a, b: (a.view(np.int32) >> 7).view(np.uint32)),
        ("bfe.u32 %r5, %r3, 5, 9;", lambda a, b: a >> np.uint32(5) & np.uint32(511)),
        ("bfe.s32 %r5, %r3, 5, 9;", lambda a, b: (a << np.uint32(18)).view(np.int32) >> 23),
        ("bfe.s32 %r5, %r3, 28, 8;", lambda a, b: a.view(np.int32) >> 28),
        ("bfe.s32 %r5, %r3, 200, 9;", lambda a, b: a.view(np.int32) >> 31),
        ("bfe.s32 %r5, %r3, 5, 0;", lambda a, b: 0 * a),
        ("bfe.s32 %r5, %r3, 0, 40;", lambda a, b: a),
        ("prmt.b32 %r5, %r3, %r4, 0x5140;", lambda a, b: _bytes(a, b, (0, 4, 1, 5))),
        ("shfl.sync.bfly.b32 %r5, %r3, 4, 31, -1;", lambda a, b: a[np.arange(32) ^ 4]),
    ],
)
def test_integer_instructions(line, expected):
    data = words()
    first, second = data[0::4].copy(), data[1::4].copy()
    execute("ld.global.v2.b32 {%r3, %r4}, [%rd3];\n" + line + "\n" + STORE, data)
    assert np.array_equal(data[0::4].view(np.int32), expected(first, second).view(np.int32))


@pytest.mark.parametrize("how, function", [("rmi", np.floor), ("rpi", np.ceil), ("rzi", np.trunc), ("rni", np.rint)])
def test_floats_are_rounded_to_whole_numbers(how, function):
    numbers = np.random.default_rng(0).uniform(-9, 9, 128).astype(np.float32)
    expected = function(numbers[0::4])
    line = f"cvt.{how}.ftz.f32.f32 %r5, %r3;\n"
    data = execute("ld.global.b32 %r3, [%rd3];\n" + line + STORE, numbers.view(np.uint32))
    assert np.array_equal(data[0::4].view(np.float32), expected)


@pytest.mark.parametrize("opcode", [
    "add.rz.f32", "fma.rn.relu.f16", "fma.rn.sat.f32", "max.xorsign.abs.f32", "setp.lt.and.f32", "add.cc.u32",
    "cvt.rz.bf16.f32", "cvt.rn.relu.bf16.f32", "cvt.rn.satfinite.f16.f32", "cvt.rna.tf32.f32", "cvt.rz.f32.s32",
    "cvt.s32.f32", "cvt.sat.s8.s32", "cvt.rmi.f16.f32",
])  # fmt: skip
def test_a_modifier_that_is_not_known_is_refused(opcode):
    with pytest.raises(EmulationError, match=f"{opcode} is not known"):
        rule(tuple(opcode.split(".")))


def _bytes(a, b, chosen):
    pool = np.stack([a, b], 1).view(np.uint8)
    return np.ascontiguousarray(pool[:, list(chosen)]).view(np.uint32)[:, 0]


def test_shared_memory_starts_as_nan():
    data = execute("ld.shared.b32 %r5, [%r2];\n" + STORE, words())
    assert np.isnan(data[0::4].view(np.float32)).all()


COPY = "cp.async.cg.shared.global [%r2 + 0], [%rd3 + 0], 0x10, 16;\ncp.async.commit_group;\n"


@pytest.mark.parametrize("waits", [False, True])
def test_an_asynchronous_copy_lands_at_its_wait(waits):
    data = words()
    before = data.copy()
    wait = "cp.async.wait_group 0;\n" if waits else ""
    execute(COPY + wait + "ld.shared.b32 %r5, [%r2 + 4];\n" + STORE, data)
    assert np.array_equal(data[0::4], before[1::4] if waits else np.full(32, 0xFFFFFFFF, np.uint32))


@pytest.mark.parametrize(
    "body, message",
    [
        ("ld.global.b32 %r5, [%rd3 + 16];\n", "no tensor"),
        ("ld.global.b32 %r5, [%rd3 + 2];\n", "misaligned"),
        ("ld.shared.b32 %r5, [%r2 + 16];\n", "past the end"),
        ("ld.shared.b32 %r5, [%r2 + 2];\n", "misaligned"),
        ("brev.b32 %r5, %r1;\n", "brev"),
    ],
)
def test_what_is_refused(body, message):
    with pytest.raises(EmulationError, match=message):
        execute(body, words())


LOAD = "ld.global.b32 %r5, [%rd3];\n"
BEFORE_THE_WAIT = pytest.mark.parametrize("body", [LOAD, COPY, STORE, "atom.global.add.u32 %r5, [%rd3], 1;\n"])


@BEFORE_THE_WAIT
def test_no_access_ahead_of_the_wait(body):
    with pytest.raises(EmulationError, match="before griddepcontrol.wait"):
        execute(body, words(), dependent=True)
    execute("griddepcontrol.wait;\n" + body, words(), dependent=True)
    execute(body, words(), dependent=False)


@BEFORE_THE_WAIT
def test_only_reads_of_an_early_buffer_may_be_ahead_of_the_wait(body):
    if body in (LOAD, COPY):
        execute(body, words(), dependent=True, early=True)
        return
    with pytest.raises(EmulationError, match="before griddepcontrol.wait"):
        execute(body, words(), dependent=True, early=True)


def test_early_buffers_are_tensors_of_the_launch():
    pytest.importorskip("triton")
    from dia_engine.kernels.dispatch import Launch
    from tools.ptx_emulator.driver import emulate

    for arguments in ({}, {"position_ptr": 3}):
        with pytest.raises(TypeError, match="early must name tensors of the launch, got 'position_ptr'"):
            emulate(Launch(None, (1,), arguments, {}, 4, 1, True, True, early=("position_ptr",)))


def test_threads_that_part_meet_again():
    """Threads below 8 go another way; one of them a longer one."""
    body = """
    mov.b32 %r5, 1;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra $L1;
    mov.b32 %r5, 2;
    bra $L3;
$L1:
    add.s32 %r5, %r5, 10;
    setp.lt.u32 %p2, %r5, 40;
    setp.eq.b32 %p1, %r1, 3;
    and.pred %p2, %p2, %p1;
    @%p2 bra $L1;
$L3:
    shfl.sync.idx.b32 %r6, %r5, 3, 31, -1;
    add.s32 %r5, %r5, %r6;
    st.global.b32 [%rd3], %r5;
"""
    data = execute(".reg .pred %p<3>;\n" + body, words())
    expected = np.full(32, 2)
    expected[:8] = 11
    expected[3] = 41
    assert np.array_equal(data[0::4], expected + 41)


@pytest.mark.parametrize("line", ["bar.sync 0;", "shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;"])
def test_all_threads_must_arrive(line):
    with pytest.raises(EmulationError, match="only a part of a"):
        execute(".reg .pred %p<3>;\nsetp.lt.u32 %p1, %r1, 8;\n@%p1 bra $L1;\n" + line + "\n$L1:\n", words())


def test_atomic_additions_return_what_was_there():
    data = execute("atom.global.gpu.acq_rel.add.u32 %r5, [%rd1 + 4], 1;\n" + STORE, np.zeros(128, np.uint32))
    assert data[1] == 32 and np.array_equal(data[0::4], np.arange(32))


def test_a_matrix_product():
    """The fragments' layouts as the PTX manual has them, lane by lane."""
    rng = np.random.default_rng(0)
    left, right, addend = (rng.integers(-8, 8, shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    fragments = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        for register in range(4):
            place = row + 8 * (register % 2), column + 8 * (register // 2)
            fragments[lane, register] = _halves(left[place], left[place[0], place[1] + 1])
        for register in range(2):
            k = column + 8 * register
            fragments[lane, 4 + register] = _halves(right[k, row], right[k + 1, row])
        for register in range(4):
            value = addend[row + 8 * (register // 2), column + register % 2]
            fragments[lane, 6 + register] = value.view(np.uint32)
    data = fragments.reshape(-1)
    names = [f"%f{i}" for i in range(10)]
    loads = "".join(f"ld.global.b32 {name}, [%rd5 + {4 * i}];\n" for i, name in enumerate(names))
    execute(
        ".reg .b32 %f<14>;\nmul.wide.u32 %rd4, %r1, 40;\nadd.s64 %rd5, %rd1, %rd4;\n" + loads
        + "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f10, %f11, %f12, %f13}, {%f0, %f1, %f2, %f3}, "
        + "{%f4, %f5}, {%f6, %f7, %f8, %f9};\n"
        + "".join(f"st.global.b32 [%rd5 + {4 * i}], %f{10 + i};\n" for i in range(4)),
        data,
    )  # fmt: skip
    expected, found = left @ right + addend, data.reshape(32, 10).view(np.float32)
    for lane in range(32):
        for register in range(4):
            assert found[lane, register] == expected[lane // 4 + 8 * (register // 2), lane % 4 * 2 + register % 2]


def _halves(low, high):
    return np.array([low, high], np.float16).view(np.uint32)[0]


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_fragments_go_to_shared_memory_and_back(transposed):
    """Stored by stmatrix and loaded transposed or not: lane 4 r + c then holds elements 2 c and 2 c + 1 of row r."""
    body = """
    shl.b32 %r6, %r1, 17;
    shl.b32 %r7, %r1, 1;
    or.b32 %r6, %r6, %r7;
    or.b32 %r6, %r6, 65536;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r2], {%r6};
    ldmatrix.sync.aligned.m8n8.x1TRANS.shared.b16 {%r5}, [%r2];
"""
    data = execute(body.replace("TRANS", ".trans" if transposed else "") + STORE, words())
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8)
    expected = np.ascontiguousarray(matrix.T if transposed else matrix).view(np.uint32).reshape(-1)
    assert np.array_equal(data[0::4], expected)
