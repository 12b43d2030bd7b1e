"""How fast the memory is: what is copied, how it is timed, and what the data sheet says."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import roofline
from benchmarks.roofline import bandwidth_in_words, copy_bandwidth, data_sheet_bandwidth

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def fake_gpu(monkeypatch, name, **properties):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))


def test_the_data_sheet_is_found_by_the_whole_name(monkeypatch):
    fake_gpu(monkeypatch, "NVIDIA H100 80GB HBM3")
    assert data_sheet_bandwidth(GPU) == 3352e9
    fake_gpu(monkeypatch, "NVIDIA GeForce RTX 4090 Laptop GPU", memory_clock_rate=9001000, memory_bus_width=256)
    assert data_sheet_bandwidth(GPU) == pytest.approx(576e9, rel=1e-3)
    fake_gpu(monkeypatch, "a GPU of which torch tells nothing")
    assert data_sheet_bandwidth(GPU) is None and data_sheet_bandwidth(CPU) is None


def test_the_share_of_the_data_sheet_is_named_where_it_is_known(monkeypatch):
    fake_gpu(monkeypatch, "NVIDIA RTX A4000")
    assert bandwidth_in_words(403.2e9, GPU) == "403 GB/s copied, 90% of the data sheet's 448"
    assert bandwidth_in_words(20e9, CPU) == "20 GB/s copied"


def test_reads_and_writes_are_counted_and_the_best_run_taken(monkeypatch):
    seconds = iter([0.5, 0.25, 1.0])
    monkeypatch.setattr(roofline, "_seconds", lambda work: (work(), next(seconds))[1])
    assert copy_bandwidth(CPU, bytes_moved=8000, repeats=3) == 8000 / 0.25


def test_a_copy_on_a_gpu_is_timed_by_the_gpu_and_fits_into_half_of_what_is_free(monkeypatch):
    sizes = []

    class Tensor:
        def __init__(self, count):
            self.nbytes = 4 * count

        def copy_(self, source):
            sizes.append(source.nbytes)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.copies = len(sizes)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            assert end.copies == self.copies + 1
            return 2.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "ones", lambda count, device: Tensor(count))
    monkeypatch.setattr(torch, "ones_like", lambda source: Tensor(source.nbytes // 4))
    for free, moved in ((80 * 10**9, 4 * 10**9), (10**9, 5 * 10**8)):
        sizes.clear()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 * 10**9))
        assert copy_bandwidth(GPU, repeats=2) == pytest.approx(moved / 2e-3)
        assert sizes == [moved // 2] * 2
