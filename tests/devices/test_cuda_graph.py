"""Captures without a GPU: what is done when one fails, with CUDA's part played by fakes."""

import logging
from contextlib import contextmanager

import pytest
import torch

from dia_engine.devices import cuda_graph
from dia_engine.devices.cuda_graph import GraphPool
from dia_engine.kernels import dispatch
from dia_engine.kernels.dispatch import launches_are_dependent

GPU = torch.device("cuda", 0)
REFUSED = "CUDA error: invalid resource handle"


class FakeGraph:
    """A graph that `replay`s."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


class FakeStream:
    def __init__(self, device=GPU, priority=0):
        self.waits = []

    def wait_stream(self, other):
        self.waits.append(other)


class FakeCuda:
    """A GPU of Blackwell's, whose captures `error(dependent)` may fail, as torch has it: where CUDA gives a capture up,
    the stream of the capture stays the current one, and its pool can hold no other capture."""

    def __init__(self):
        self.default = self.current = FakeStream()
        self.captures, self.pools, self.taken = [], 0, set()
        self.error = lambda dependent: None

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        if pool in self.taken:
            raise RuntimeError(f"already recording to {pool}")
        before, self.current = self.current, stream
        yield
        self.captures.append(launches_are_dependent(GPU))
        if error := self.error(self.captures[-1]):
            self.taken.add(pool)
            raise error
        self.current = before

    def set_stream(self, stream):
        self.current = stream


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name, part in (
        ("CUDAGraph", FakeGraph), ("Stream", FakeStream), ("graph", fake.graph), ("stream", fake.stream),
        ("set_stream", fake.set_stream), ("graph_pool_handle", fake.graph_pool_handle), ("synchronize", lambda: None),
        ("current_stream", lambda device=None: fake.current), ("get_device_capability", lambda device: (12, 0)),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, part)
    monkeypatch.setattr(dispatch, "_dependent_launches_failed", False)
    monkeypatch.delenv("DIA_PDL", raising=False)
    dispatch._device_architecture.cache_clear()
    yield fake
    assert fake.current is fake.default, "the current stream is what it was"
    dispatch._device_architecture.cache_clear()


def capture(pool):
    runs = []
    graph = pool.capture(lambda: runs.append(1))
    assert len(runs) % (cuda_graph.WARM_UP_RUNS + 1) == 0 and graph.replays == 1
    return graph


def test_a_driver_that_refuses_dependent_launches_gets_others_with_one_warning(cuda, caplog):
    cuda.error = lambda dependent: RuntimeError(f"{REFUSED}\nmore") if dependent else None
    pool = GraphPool(GPU)
    with caplog.at_level(logging.WARNING):
        capture(pool)
        capture(pool)
    assert cuda.captures == [True, False, False]
    (record,) = caplog.records
    assert REFUSED in record.getMessage() and "more" not in record.getMessage()
    assert not launches_are_dependent(GPU)


def test_a_capture_that_fails_without_them_fails_and_the_next_may_succeed(cuda, caplog):
    cuda.error = lambda dependent: RuntimeError(REFUSED)
    pool = GraphPool(GPU)
    for captures in ([True, False], [True, False, False]):
        with pytest.raises(RuntimeError, match=REFUSED):
            capture(pool)
        assert cuda.captures == captures, "tried again only where they were on"
    assert len(caplog.records) == 1
    cuda.error = lambda dependent: None
    capture(pool)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_no_reason_to_turn_them_off(error, cuda, caplog):
    cuda.error = lambda dependent: error
    with pytest.raises(RuntimeError) as found:
        capture(GraphPool(GPU))
    assert found.value is error
    assert cuda.captures == [True] and launches_are_dependent(GPU) and not caplog.records


def test_work_that_has_none_is_not_tried_again(cuda, caplog):
    cuda.error = lambda dependent: RuntimeError(REFUSED)
    with pytest.raises(RuntimeError, match=REFUSED):
        capture(GraphPool(GPU, dependent_launches=False))
    assert cuda.captures == [True] and launches_are_dependent(GPU) and not caplog.records


def test_a_failed_warm_up_is_waited_for(cuda):
    pool = GraphPool(GPU)

    def work():
        raise ValueError("the third layer is missing")

    with pytest.raises(ValueError, match="third layer"):
        pool.capture(work)
    assert cuda.default.waits == [pool._stream] and not cuda.captures
