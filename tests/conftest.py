import os

import pytest
import torch

# A GPU's architecture, such as 86: kernels then run as compiled for it, in the PTX emulator.
EMULATED = int(os.environ.get("EMULATED_ARCHITECTURE", "0"))

if EMULATED:
    os.environ["TRITON_INTERPRET"] = "0"
    # References as they are on a GPU. Compiled products of quantized weights, which a CPU has, round less than the
    # kernels do in half precision.
    os.environ["CC"] = "none"
    from tools.ptx_emulator.driver import activate

    activate(EMULATED)
elif not torch.cuda.is_available():
    # The kernels then run in Triton's interpreter, which Triton has to know before anyone imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The models of the tests are so small that a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def repeatable():
    """Every test starts from the same random state and needs no gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def speaker():
    """An engine of random weights."""
    from dia_engine import Engine

    return Engine.load("synthetic:tiny", device="cpu")


@pytest.fixture(scope="module")
def mute():
    """The same without a codec."""
    from dia_engine import Engine

    return Engine.load("synthetic:tiny", device="cpu", load_dac=False)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or EMULATED:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
