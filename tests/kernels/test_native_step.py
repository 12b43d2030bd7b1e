"""Whole steps of a small random model in C alone: the same bits in every variant, also on ARM, and nothing that the
sanitizers of a compiler find."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from dia_engine.kernels.cpu import variants
from dia_engine.kernels.cpu.variants import VARIANTS
from tests.kernels.builds import BUILDS, HERE

SOURCE = Path(__file__).parent / "native" / "run_step.c"
FLAGS = [*variants.FLAGS, f"-I{variants.SOURCES}", "-g"]
CASES = list(product(range(3), range(3)))  # dtypes and quantized formats

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HERE or not shutil.which("gcc"), reason="there is no gcc")]


def compiled(folder: Path, flags: list[str], compiler: str = "gcc") -> Path:
    target = folder / "run_step"
    subprocess.run([compiler, *FLAGS, *flags, str(SOURCE), "-o", str(target), "-lm"], check=True, timeout=600)
    return target


def results(program: list[str], *, slots=3, threads=2, steps=4, callers=1, cases=CASES) -> list[str]:
    """What the program prints for each case."""
    found = []
    for dtype, quant in cases:
        arguments = [*program, *map(str, (dtype, quant, slots, threads, steps, callers))]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Of the variant that this CPU would choose last."""
    program = compiled(tmp_path_factory.mktemp("last"), [*HERE[-1].flags])
    return results([str(program)])


@pytest.mark.parametrize("variant", BUILDS, ids=lambda variant: variant.name)
def test_every_variant_gives_the_same_bits_with_any_threads(tmp_path, expected, variant):
    program = compiled(tmp_path, [*variant.flags])
    for threads in (1, 2, 5):
        assert results([str(program)], threads=threads) == expected


def test_arm_gives_the_same_bits(tmp_path, expected):
    emulator, compiler = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
    if not emulator or not compiler:
        pytest.skip("needs qemu-user and gcc-aarch64-linux-gnu")
    program = compiled(tmp_path, ["-static", *VARIANTS[-1].flags], compiler)
    assert results([emulator, str(program)]) == expected


@pytest.mark.parametrize("variant", BUILDS, ids=lambda variant: variant.name)
def test_reads_and_writes_only_what_it_may(tmp_path, variant):
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1"]
    program = compiled(tmp_path, [*sanitizers, *variant.flags])
    results(["env", "ASAN_OPTIONS=detect_leaks=0", str(program)], threads=3, steps=2)


def test_threads_do_not_race(tmp_path):
    program = compiled(tmp_path, ["-fsanitize=thread", "-O1", *HERE[0].flags])
    results([str(program)], slots=4, threads=4, steps=3, callers=3, cases=[(1, quant) for quant in range(3)])


def test_callers_at_the_same_time_give_what_each_gives_alone(tmp_path):
    program = compiled(tmp_path, [*HERE[0].flags])
    for alone, together in zip(
        results([str(program)], slots=16, steps=20),
        results([str(program)], slots=16, steps=20, callers=4),
        strict=True,
    ):
        assert together == 4 * alone
