"""A GPU's launcher is compiled on this machine: what is missing for that is said before a model is loaded."""

import pytest
import torch

from dia_engine.devices.device import resolve_device
from dia_engine.kernels.driver import load_driver

triton = pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has loaded its driver")
@pytest.mark.parametrize("compiler", [None, "false"])
def test_without_a_c_compiler_or_headers(compiler, monkeypatch, tmp_path):
    from triton.backends.nvidia.driver import CudaDriver

    monkeypatch.setattr(type(triton.runtime.driver), "active", property(lambda self: CudaDriver()))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    if compiler:
        monkeypatch.setenv("CC", compiler)
    else:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs a C compiler and Python's headers.* it says: (Failed|Command)"):
        load_driver()
    monkeypatch.setattr(torch, "empty", lambda size, device: None)  # as if there were a GPU
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here: .* apt install gcc python3-dev"):
        resolve_device("cuda")
