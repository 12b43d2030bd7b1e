"""How the steps of a runtime are timed, without a GPU: a queue of launches by a clock of its own."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import peers
from dia_engine import Engine
from dia_engine.model.config import DiaConfig

STEP = 2.0**-10  # seconds, a number without rounding
LAUNCHING = STEP / 16


class Queue:
    """A runner whose device takes STEP for each step, launch after launch, while the caller goes on at once."""

    def __init__(self, depth):
        self.max_in_flight, self.max_slots = depth, 1
        self.now = self.free = 0.0  # of the caller's clock; when the device has nothing to do
        self.ends = []

    @property
    def in_flight(self):
        return len(self.ends)

    def decode(self, slots, most):
        self.now += LAUNCHING
        self.free = max(self.free, self.now) + most * STEP
        self.ends.append(self.free)
        return most

    def read_status(self):
        self.now = max(self.now, self.ends.pop(0))

    def synchronize(self, device):
        self.now = max(self.now, self.free)

    def prefill(self, slot, request):
        return iter(())

    def prepare(self, slots):
        pass

    def activate(self, slot, request):
        pass

    def release(self, slot):
        pass

    def forget_launches(self):
        self.ends.clear()


@pytest.mark.parametrize("steps", [8, 20, 40])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_no_step_is_shorter_than_it_is(depth, steps, monkeypatch):
    """However many launches are queued: a stamp is the end of a launch, not when it was enqueued."""
    queue = Queue(depth)
    monkeypatch.setattr(peers, "ModelRunner", lambda model, max_slots: queue)
    monkeypatch.setattr(peers, "synchronize", queue.synchronize)
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: queue.now))
    runtime = peers.Ours(SimpleNamespace(device=torch.device("cuda"), config=DiaConfig()))
    timing = runtime.run(torch.zeros(5, dtype=torch.int64), 1, steps)
    assert timing.first == LAUNCHING + 8 * STEP and timing.first_steps == 8
    assert timing.steps == [STEP] * -(-(steps - 7) // 8) and queue.in_flight == 0


def test_no_slot_ends_before_its_rows_do():
    """The talker would, and steps of a slot that has stopped cost less."""
    with Engine.load("talker", device="cpu", load_dac=False) as engine:
        config = engine.config
        params = peers.without_end(config)
        rows = params.rows(config.decoder.max_position_embeddings, 0, config.max_delay)
        assert rows == 512 and len(engine.generate("[S1] Hello.", min_tokens=params.min_tokens)) == params.min_tokens
