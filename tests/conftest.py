"""Fixtures, and where kernels run: in Triton's interpreter, in the PTX emulator, or on a GPU."""

import dataclasses
import logging
import os
import shutil

import pytest

# Before torch, whose threads else keep a core busy while they wait for one that another test's process has.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

# Commands that tests run have buffered output, as a user's have.
os.environ.pop("PYTHONUNBUFFERED", None)
# Without a compiler each of them would warn that torch runs the decode step.
if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "cc", "clang"))):
    os.environ.setdefault("DIA_CPU", "none")

# A failed assertion of a helper shows its values, as one of a test does.
pytest.register_assert_rewrite("tests.kernels.helpers", "tests.weights.helpers")


def mend_interpreter():
    """Let Triton's interpreter run the tests, and without work that changes nothing."""
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError:
        return
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
        convert_indices(interpreter)
    # It calculates whether sums of integers overflow, and drops what it finds unless it debugs.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    if hasattr(interpreter, "_LangPatchScope"):
        patch_the_language_once(interpreter)


def patch_the_language_once(interpreter):
    """Spare the interpreter of Triton 3.6 and newer a third of its time: at each call from a kernel to another function
    it replaces the language by what interprets it, which the launch of the kernel has done already."""
    from triton import language

    patch = interpreter._patch_lang

    def patch_what_is_left(function):
        used = [each for each in function.__globals__.values() if each is language or each is language.core]
        if not used or any(language.core.is_builtin(each.load) for each in used):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_what_is_left


def convert_indices(interpreter):
    """Let the interpreter of Triton 3.5 and 3.6 loop over `range` with numpy 2.4, which does not convert arrays of
    shape [1] to integers any more. Triton 3.7 takes care of that itself."""
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, *scope):
        patch(tensor, *scope)  # at each launch, and undone behind it by 3.6
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_with_index


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
    mend_interpreter()

# The models of the tests are so small that a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def repeatable():
    """Every test starts from the same random state and needs no gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def loggers_as_before():
    """`dia-engine serve` in this process sends its logs to standard error, and -q silences some."""
    ours = [logging.getLogger(name) for name in ("dia_engine", "dia_engine.runtime.call")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in ours]
    yield
    for logger, (handlers, propagate, level) in zip(ours, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def engine():
    """An engine of random weights."""
    from dia_engine import Engine

    return Engine.load("synthetic:tiny", device="cpu")


@pytest.fixture(scope="module")
def engine_without_codec():
    """The same without a codec."""
    from dia_engine import Engine

    return Engine.load("synthetic:tiny", device="cpu", load_dac=False)


@pytest.fixture(scope="session")
def warm_python():
    """Runs programs in processes that have loaded torch."""
    from tests.warm_python import WarmPython

    python = WarmPython()
    yield python
    python.close()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or EMULATED:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
