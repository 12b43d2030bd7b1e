"""Which Triton is accepted, what a GPU's architecture is called, and the switch for dependent launches."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dia_engine.kernels import dispatch
from dia_engine.kernels.dispatch import (
    INTERPRETER,
    disable_dependent_launches,
    intercept_launches,
    launches_are_dependent,
    takes_ptx,
)

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_imported(monkeypatch):
    """Every test starts with the switch as a new process has them, and leaves them so."""
    monkeypatch.setattr(dispatch, "_dependent_launches_failed", False)
    monkeypatch.delenv("DIA_PDL", raising=False)
    dispatch._device_architecture.cache_clear()
    yield
    dispatch._device_architecture.cache_clear()


def fake_gpu(monkeypatch, capability=None, amd=None):
    """A GPU that is not there, for `architecture`."""
    monkeypatch.setattr(torch.version, "hip", "6.4" if amd else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=amd))


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.6.0", "3.7.1+gitabcdef", "3.10.0", "4.0.0"])
def test_newer_tritons_are_accepted(version):
    assert dispatch._too_old(version) is None


@pytest.mark.parametrize("version", ["2.1.0", "3.2.0", "3.4.0", "3.4.1+gitabcdef"])
def test_older_tritons_are_not(version):
    assert dispatch._too_old(version) == f"found {version}"


@pytest.mark.parametrize(
    "faked, found",
    [
        ("sys.modules['triton'] = None", "found none (import of triton halted; None in sys.modules)"),
        ("triton = types.ModuleType('triton'); triton.__version__ = '3.4.0'; triton.__path__ = []; "
         "sys.modules['triton'] = triton; sys.modules['triton.language'] = types.ModuleType('triton.language')",
         "found 3.4.0"),
    ],
    ids=["absent", "old"],
)  # fmt: skip
def test_without_a_triton_that_will_do_kernels_are_defined_and_a_launch_says_what_is_missing(faked, found):
    program = (
        f"import sys, types, torch\n{faked}\nimport dia_engine.model.dia\nfrom dia_engine.kernels import dispatch\n"
        "assert not dispatch.uses_triton(torch.zeros(1))\n"
        "with dispatch.intercept_launches(print, 90):\n"
        "    try: dispatch.uses_triton(torch.zeros(1))\n"
        "    except RuntimeError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    message = f"a GPU needs Triton 3.5 or newer, {found}: it comes with torch 2.9, pip install -U 'torch>=2.9'"
    assert result.stdout.strip() == message


@pytest.mark.parametrize(
    "capability, amd, expected, ptx, dependent",
    [
        ((8, 6), None, 86, True, False),
        ((9, 0), None, 90, True, True),
        ((12, 0), None, 120, True, True),
        ((9, 4), "gfx942:sramecc+:xnack-", "gfx942", False, False),
        ((11, 0), "gfx1100", "gfx1100", False, False),
    ],
)
def test_what_a_gpu_is_compiled_for(monkeypatch, capability, amd, expected, ptx, dependent):
    fake_gpu(monkeypatch, capability, amd)
    assert dispatch.architecture(GPU) == expected
    assert takes_ptx(GPU) is ptx
    assert launches_are_dependent(GPU) is dependent


def test_the_interpreter_takes_no_ptx_and_launches_one_after_the_other():
    with intercept_launches(print, INTERPRETER):
        assert not takes_ptx(torch.device("cpu")) and not launches_are_dependent(torch.device("cpu"))


def test_dependent_launches_can_be_turned_off_by_the_environment(monkeypatch):
    fake_gpu(monkeypatch, (9, 0))
    for value, expected in (("1", True), ("0", False)):
        monkeypatch.setenv("DIA_PDL", value)
        assert launches_are_dependent(GPU) is expected
    monkeypatch.setenv("DIA_PDL", "off")
    with pytest.raises(ValueError, match="DIA_PDL must be 0 .* or 1, got 'off'"):
        launches_are_dependent(GPU)


def test_dependent_launches_do_not_appear_where_the_gpu_has_none(monkeypatch):
    fake_gpu(monkeypatch, (8, 9))
    monkeypatch.setenv("DIA_PDL", "1")
    assert not launches_are_dependent(GPU)
    assert not disable_dependent_launches(GPU), "there is nothing to try again without"


def test_disabled_dependent_launches_stay_off(monkeypatch):
    fake_gpu(monkeypatch, (12, 0))
    assert disable_dependent_launches(GPU), "worth another try"
    assert not launches_are_dependent(GPU)
    assert not disable_dependent_launches(GPU), "a second failure has another cause"
    monkeypatch.setenv("DIA_PDL", "1")
    assert not launches_are_dependent(GPU)


def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current one, which a user of a second GPU need not have changed."""
    current, launched = ["cuda:0"], []

    @contextmanager
    def device(wanted):
        before, current[0] = current[0], str(wanted)
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(dispatch.Launch, "run", lambda launch: launched.append(current[0]))
    fake_gpu(monkeypatch, capability=(9, 0))
    dispatch.launch(None, (1,), {}, {}, warps=4, stages=1, device=torch.device("cuda", 1))
    assert launched == ["cuda:1"] and current == ["cuda:0"]
