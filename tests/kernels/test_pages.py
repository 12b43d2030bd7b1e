"""Weights in large pages."""

import mmap
import sys

import pytest
import torch

from dia_engine.kernels.cpu import pages
from dia_engine.kernels.cpu.pages import LEAST, empty_weight, use_large_pages
from dia_engine.kernels.quantized import Int8Weight, NF4Weight


@pytest.mark.parametrize("size", [0, 10, mmap.PAGESIZE + 10, LEAST + 10])
def test_whole_pages_within_the_tensor_are_asked_for(size):
    tensor = torch.empty(size, dtype=torch.uint8)
    asked = []
    use_large_pages(tensor, lambda address, count: asked.append((address, count)))
    start, end = tensor.data_ptr(), tensor.data_ptr() + size
    assert len(asked) <= 1 and (asked or size < 2 * mmap.PAGESIZE)
    for address, count in asked:
        assert address % mmap.PAGESIZE == count % mmap.PAGESIZE == 0
        assert start <= address < start + mmap.PAGESIZE and end - mmap.PAGESIZE < address + count <= end


def test_large_weights_of_every_kind_ask(monkeypatch):
    asked = []
    monkeypatch.setattr(pages, "_system_advise", lambda: lambda address, count: asked.append(count))
    assert empty_weight((10, 10), torch.float32, "cpu").shape == (10, 10) and not asked
    rows, columns = 2 * LEAST // 1024, 1024
    for made in (
        empty_weight((rows, columns), torch.bfloat16, "cpu"),
        Int8Weight.empty(rows, columns, torch.bfloat16, "cpu"),
        NF4Weight.empty(rows, columns, torch.bfloat16, "cpu"),
    ):
        assert made.shape == (rows, columns) and len(asked) == 1
        asked.clear()
    NF4Weight.join([made, made], "cpu")
    assert len(asked) == 1


def test_numbers_stay_as_they_are_written():
    weight = empty_weight((LEAST,), torch.int32, "cpu").copy_(torch.arange(LEAST))
    use_large_pages(weight)
    assert torch.equal(weight, torch.arange(LEAST, dtype=torch.int32))


def test_other_systems_are_not_asked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert pages._system_advise.__wrapped__() is None
