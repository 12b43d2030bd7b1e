"""float32 means float32 in the codec: no TF32, whoever else uses the setting."""

import os
import threading

import numpy as np
import pytest
import torch

from dia_engine.devices import precision
from dia_engine.devices.precision import full_float32
from dia_engine.weights.synthetic import synthetic_codec, synthetic_config

CONV = torch.backends.cudnn.conv


@pytest.fixture(params=["tf32", "ieee"])
def before(request):
    found = CONV.fp32_precision
    CONV.fp32_precision = request.param
    yield request.param
    CONV.fp32_precision = found


def test_the_codec_computes_without_tf32_and_restores_the_setting(before):
    codec = synthetic_codec(synthetic_config("synthetic:tiny"), "synthetic:tiny", "cpu", torch.float32)
    seen = []
    for part in (codec.encoder, codec.decoder):
        part.register_forward_pre_hook(lambda *_: seen.append(CONV.fp32_precision))
    codes = codec.encode(np.zeros(2000, dtype=np.float32), codec.sample_rate)
    assert CONV.fp32_precision == before
    codec.decode(codes)
    assert seen == ["ieee", "ieee"] and CONV.fp32_precision == before


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_products_are_exact_whatever_a_caller_allows(asked):
    matrix = torch.randn(256, 256)
    wanted = matrix @ matrix
    torch.set_float32_matmul_precision(asked)
    try:
        settings = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        with full_float32():
            assert torch.equal(matrix @ matrix, wanted)
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        after = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        assert after == settings and torch.get_float32_matmul_precision() == asked
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_last_thread_to_leave_restores_it(before):
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with full_float32():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    with full_float32():
        thread.start()
        entered.wait()
    assert CONV.fp32_precision == "ieee", "the other is still inside"
    leave.set()
    thread.join()
    assert CONV.fp32_precision == before


def test_an_error_restores_it(before):
    with pytest.raises(ZeroDivisionError), full_float32():
        raise ZeroDivisionError
    assert CONV.fp32_precision == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("locked", [True, False])
def test_a_child_forked_while_another_thread_computes_can_compute_and_has_the_setting(before, locked):
    """That thread is not there in the child: it neither gives the lock back nor restores the setting."""
    inside, leave = threading.Event(), threading.Event()

    def compute():
        with full_float32():
            if locked:
                precision._lock.acquire()
            inside.set()
            leave.wait(60)
            if locked:
                precision._lock.release()

    thread = threading.Thread(target=compute)
    thread.start()
    inside.wait(60)
    child = os.fork()
    if not child:
        code = 1
        try:
            restored = CONV.fp32_precision == before
            entered = threading.Thread(target=lambda: full_float32().__enter__(), daemon=True)
            entered.start()
            entered.join(20)
            code = 0 if restored and not entered.is_alive() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join()
    assert CONV.fp32_precision == before
