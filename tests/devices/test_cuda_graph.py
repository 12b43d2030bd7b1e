"""Captures without a GPU: what is done when one fails, with CUDA's part played by fakes."""

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from dia_engine.devices import cuda_graph
from dia_engine.kernels import dispatch
from dia_engine.kernels.dispatch import launches_are_dependent

GPU = torch.device("cuda", 0)
STREAM = SimpleNamespace(device=GPU, wait_stream=lambda other: None)
REFUSED = "CUDA error: invalid resource handle"


class FakeGraph:
    """A graph that holds what was done in its capture, and `replay`s."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def fake_cuda(monkeypatch):
    """A GPU of an architecture, whose captures `refuse(dependent)` may fail; gives the log of captures."""
    log = SimpleNamespace(captures=[], error=lambda dependent: None)

    @contextmanager
    def capture(graph, **params):
        yield
        log.captures.append(launches_are_dependent(GPU))
        if error := log.error(log.captures[-1]):
            raise error

    @contextmanager
    def on_stream(stream):
        yield

    for name, fake in (
        ("CUDAGraph", FakeGraph), ("graph", capture), ("stream", on_stream), ("synchronize", lambda: None),
        ("current_stream", lambda device=None: STREAM), ("get_device_capability", lambda device: (12, 0)),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(dispatch, "_dependent_launches_failed", False)
    monkeypatch.delenv("DIA_PDL", raising=False)
    dispatch._device_architecture.cache_clear()
    yield log
    dispatch._device_architecture.cache_clear()


def capture():
    runs = []
    graph = cuda_graph.captured(lambda: runs.append(1), None, STREAM)
    assert len(runs) % (cuda_graph.WARM_UP_RUNS + 1) == 0 and graph.replays == 1
    return graph


def test_a_driver_that_refuses_dependent_launches_gets_others_with_one_warning(fake_cuda, caplog):
    fake_cuda.error = lambda dependent: RuntimeError(f"{REFUSED}\nmore") if dependent else None
    with caplog.at_level(logging.WARNING):
        capture()
        capture()
    assert fake_cuda.captures == [True, False, False]
    (record,) = caplog.records
    assert REFUSED in record.getMessage() and "more" not in record.getMessage()
    assert not launches_are_dependent(GPU)


def test_a_capture_that_fails_without_them_fails(fake_cuda, caplog):
    fake_cuda.error = lambda dependent: RuntimeError(REFUSED)
    for captures in ([True, False], [True, False, False]):
        with pytest.raises(RuntimeError, match=REFUSED):
            capture()
        assert fake_cuda.captures == captures, "tried again only where they were on"
    assert len(caplog.records) == 1


def test_a_lack_of_memory_is_no_reason_to_turn_them_off(fake_cuda, caplog):
    fake_cuda.error = lambda dependent: torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        capture()
    assert fake_cuda.captures == [True] and launches_are_dependent(GPU) and not caplog.records
