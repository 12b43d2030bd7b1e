"""The PTX emulator on hand-written kernels: what it computes and what it refuses; and row_bits, which uses it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
        ("prmt.b32 %r5, %r3, %r4, 0x5140;", lambda a, b: _bytes(a, b, (0, 4, 1, 5))),
        ("shfl.sync.bfly.b32 %r5, %r3, 4, 31, -1;", lambda a, b: a[np.arange(32) ^ 4]),
    ],
)
def test_integer_instructions(line, expected):
    data = words()
    first, second = data[0::4].copy(), data[1::4].copy()
    execute("ld.global.v2.b32 {%r3, %r4}, [%rd3];\n" + line + "\n" + STORE, data)
    assert np.array_equal(data[0::4], expected(first, second))


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


def test_no_access_ahead_of_the_wait():
    load = "ld.global.b32 %r5, [%rd3];\n"
    with pytest.raises(EmulationError, match="before griddepcontrol.wait"):
        execute(load, words(), dependent=True)
    execute("griddepcontrol.wait;\n" + load, words(), dependent=True)


@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
def test_a_request_has_the_bits_it_has_alone(weights):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.ptx_emulator.row_bits", "--weights", weights, "--slots", "5", "9"]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
