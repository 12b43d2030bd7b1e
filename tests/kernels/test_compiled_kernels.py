"""Every kernel of a step as compiled for GPUs, run without one: against its reference, and alone against in a batch.

`python -m tools.ptx_emulator.row_bits` and EMULATED_ARCHITECTURE, see CONTRIBUTING.md, run in processes of their own:
Triton's interpreter, which the other tests use, is chosen for a whole process. The quick tests are a sample: a case for
each kernel and architecture, and between them every dtype and format of weights. The slow ones are all there is.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run on the GPU itself")

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = [dtype + quant for quant in ("", ":int8", ":nf4") for dtype in ("bfloat16", "float16", "float32")]
architectures = pytest.mark.parametrize("architecture", ["86", "90"])

SAMPLE = {
    "86": [
        "test_kernels.py::test_norm_linear[6-33-45-bf16]",
        "test_kernels.py::test_gated_linear[4-33-45-fp16]",
        "test_kernels.py::test_residual_linear[6-33-45-rows_with_text-bf16]",
        "test_kernels.py::test_project_qkv[3-3-1-10-33-fp32]",
        "test_kernels.py::test_decode_attention[4-2-16-70-last0-2-64-bf16]",
        "test_kernels.py::test_next_row_rules",
        "test_quant_kernels.py::test_norm_linear[2-48-64-int8-bf16]",
        "test_quant_kernels.py::test_norm_linear[2-48-64-nf4-fp16]",
    ],
    "90": [
        "test_kernels.py::test_norm_linear[1-40-7-fp16]",
        "test_kernels.py::test_gated_linear[2-64-96-bf16]",
        "test_kernels.py::test_residual_linear[2-40-48-all_rows-fp32]",
        "test_kernels.py::test_project_qkv[1-4-2-16-64-bf16]",
        "test_kernels.py::test_decode_attention[3-3-24-40-last2-1-64-fp16]",
        "test_kernels.py::test_decode_attention[6-2-128-600-last4-2-64-bf16]",
        "test_kernels.py::test_next_row_runs_out_as_the_reference_does",
        "test_quant_kernels.py::test_norm_linear[1-7-64-nf4-bf16]",
        "test_quant_kernels.py::test_norm_linear[1-7-33-int8-fp32]",
    ],
}


def run(*arguments, **environment):
    """Run Python from the repository's root; its exit status and output."""
    names = {"OMP_NUM_THREADS": "1", "CC": "none", "TRITON_INTERPRET": "0"} | environment
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | names, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def run_tests(architecture, names):
    tests = [f"tests/kernels/{name}" for name in names]
    return run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, EMULATED_ARCHITECTURE=architecture)


def row_bits(*arguments):
    return run("-m", "tools.ptx_emulator.row_bits", *arguments)


@architectures
def test_kernels_equal_their_references(architecture):
    status, output = run_tests(architecture, SAMPLE[architecture])
    assert status == 0 and f"{len(SAMPLE[architecture])} passed" in output, output


@pytest.mark.slow
@architectures
@pytest.mark.parametrize("file", ["test_kernels.py", "test_quant_kernels.py"])
def test_all_kernels_equal_their_references(file, architecture):
    status, output = run_tests(architecture, [file])
    assert status == 0 and " passed" in output, output


@pytest.mark.parametrize("architecture, weights", [("86", "bfloat16"), ("90", "bfloat16:nf4")])
def test_a_request_has_the_bits_it_has_alone(architecture, weights):
    status, output = row_bits("--arch", architecture, "--weights", weights, "--slots", "5")
    assert status == 0 and f"sm_{architecture} {weights}: equal" in output, output


@pytest.mark.slow
@architectures
@pytest.mark.parametrize("weights", WEIGHTS)
def test_all_requests_have_the_bits_they_have_alone(architecture, weights):
    status, output = row_bits("--arch", architecture, "--weights", weights, "--slots", "2", "5", "9", "20")
    assert status == 0 and f"sm_{architecture} {weights}: equal" in output, output


PLANTED = """
import sys
from tools.ptx_emulator import one_step, row_bits

original = one_step.norm_linear.norm_linear

def adds_in_another_order(residual, weight, eps, out):
    if out.shape[0] > 2:  # more than one request
        residual.z.copy_(residual.z.flip(1))
        weight = weight.flip(1)
    original(residual, weight, eps, out)

one_step.norm_linear.norm_linear = adds_in_another_order
sys.exit(row_bits.main(["--arch", "86", "--weights", "float32", "--slots", "2", "--kernels", "gated", "norm"]))
"""


def test_a_sum_whose_order_follows_the_batch_is_found():
    status, output = run("-c", PLANTED)
    lines = [line for line in output.splitlines() if " differ in slot " in line]
    assert status == 1 and len(lines) == 2, output
    assert all(line.startswith("sm_86 float32: norm: ") for line in lines), output


def test_a_kernel_that_does_not_fit_is_a_line_and_a_failure():
    status, output = run("-c", TOO_LARGE)
    assert status == 1 and "sm_86 float32: norm does not fit" in output and "Traceback" not in output, output


TOO_LARGE = """
import sys
from tools.ptx_emulator import driver, row_bits

driver.SHARED_MEMORY_LIMIT = {86: 1000}  # the device's; the tilings are chosen for the true one
sys.exit(row_bits.main(["--arch", "86", "--weights", "float32", "--slots", "2", "--kernels", "norm"]))
"""
