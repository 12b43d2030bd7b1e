"""Weights in large pages."""

import mmap
import sys

import pytest
import torch

from dia_engine.kernels.cpu.pages import PAGE, empty_weight
from dia_engine.kernels.quantized import Int8Weight, NF4Weight

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux' large pages")


@on_linux
@pytest.mark.parametrize("size", [PAGE, PAGE + 10, 3 * PAGE - 2])
def test_a_large_weight_begins_with_a_page(size):
    weights = [empty_weight((size // 2, 1), torch.bfloat16, "cpu") for _ in range(3)]
    for number, weight in enumerate(weights):
        assert weight.data_ptr() % PAGE == 0 and weight.shape == (size // 2, 1) and weight.dtype == torch.bfloat16
        weight.fill_(number)
    assert [weight.unique().tolist() for weight in weights] == [[0], [1], [2]]


@on_linux
def test_weights_of_every_kind_are_in_pages():
    rows, columns = PAGE // 512, 1024
    nf4 = NF4Weight.empty(rows, columns, torch.bfloat16, "cpu")
    joined = NF4Weight.join([nf4, nf4], "cpu")
    for part in (Int8Weight.empty(rows, columns, torch.bfloat16, "cpu").values, nf4.packed, joined.packed):
        assert part.data_ptr() % PAGE == 0 and part.is_contiguous()


def test_small_weights_are_torchs():
    assert empty_weight((10, 3), torch.float32, "cpu").shape == (10, 3)
    assert empty_weight((PAGE, 2), torch.float32, "meta").device.type == "meta"


@pytest.mark.parametrize("refused", [True, False])
def test_without_large_pages_the_memory_is_torchs(monkeypatch, refused):
    if refused:
        monkeypatch.setattr(mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
    else:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert empty_weight((PAGE, 2), torch.float32, "cpu").fill_(1).sum() == 2 * PAGE
