"""What windows of sound wait for on a GPU, with fake streams and events."""

from types import SimpleNamespace

import pytest
import torch

from dia_engine.codec import windowed
from dia_engine.codec.windowed import CodeWindows, HostCopy

GPU = torch.device("cuda", 0)


class FakeStream:
    def __init__(self, device, priority=0):
        self.device, self.priority, self.waits = device, priority, 0

    def synchronize(self):
        self.waits += 1


def test_drain_waits_for_its_two_streams_and_not_for_the_device(monkeypatch):
    """Waiting for the device would break a capture that another engine is in the middle of."""
    steps = FakeStream(GPU)
    asked = []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: (asked.append(device), steps)[1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits for the whole device"))
    windows = CodeWindows(GPU)
    windows.drain()
    assert windows._stream.waits == 1 and steps.waits == 1 and asked == [GPU]
    assert windows._stream.priority < 0, "before the steps"


def test_without_a_gpu_there_is_nothing_to_wait_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: pytest.fail("asks for a stream"))
    CodeWindows(torch.device("cpu")).drain()


def test_a_copy_to_the_host_is_ready_with_the_event_behind_it(monkeypatch):
    log = []
    event = SimpleNamespace(
        record=lambda: log.append("record"), query=lambda: "wait" in log, synchronize=lambda: log.append("wait")
    )
    pinned = SimpleNamespace(copy_=lambda source, non_blocking: log.append(("copy", source, non_blocking)))
    on_gpu = SimpleNamespace(is_cuda=True, shape=(3,), dtype=torch.float32)
    monkeypatch.setattr(windowed.torch, "empty", lambda shape, dtype, device, pin_memory: pin_memory and pinned)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    copy = HostCopy(on_gpu)
    assert log == [("copy", on_gpu, True), "record"] and not copy.ready()
    assert copy.wait() is pinned and copy.ready()
