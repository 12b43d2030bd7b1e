"""One warning for a decode step that takes ten times the median. Times are numbers here: nothing is measured."""

import pytest
import torch

from dia_engine.devices.slow_steps import FEWEST, SLOW, WINDOW, SlowSteps


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def watched(*seconds: float) -> SlowSteps:
    steps = SlowSteps()
    for each in seconds:
        steps.record(each)
    return steps


def test_steady_steps_are_not_told(caplog):
    watched(*[0.1, 0.11, 0.5, 0.99] * FEWEST)
    assert not caplog.records


def test_the_first_slow_step_is_told_and_no_other(caplog):
    steps = watched(*[0.05] * FEWEST)
    for _ in range(3):
        steps.record(0.05 * SLOW + 0.1)
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelname == "WARNING" and "600 ms, 12 times the median" in said
    assert "2 OpenMP threads" in said and "OMP_WAIT_POLICY=PASSIVE" in said and "OMP_NUM_THREADS" in said


def test_one_thread_is_not_judged(monkeypatch, caplog):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    watched(*[0.05] * FEWEST, 1.0)
    assert not caplog.records


@pytest.mark.parametrize("before, told", [(FEWEST - 1, 0), (FEWEST, 1)])
def test_first_steps_are_not_judged(caplog, before, told):
    watched(*[0.05] * before, 5.0)
    assert len(caplog.records) == told


def test_the_median_is_that_of_recent_steps(caplog):
    """Steps get slower as the cache fills, or when the machine is throttled."""
    watched(*[0.01] * WINDOW, *[0.09] * WINDOW, 0.8)
    assert not caplog.records


def test_batches_of_other_sizes_are_not_compared(caplog):
    steps = watched(*[0.05] * WINDOW)
    for _ in range(FEWEST):
        steps.record(1.0, slots=32)
    assert not caplog.records
    steps.record(10.0, slots=32)
    assert len(caplog.records) == 1
