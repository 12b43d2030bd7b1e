"""Random weights: the same for the same seed, however many threads make them."""

import threading

import pytest
import torch

from dia_engine.weights import synthetic
from dia_engine.weights.synthetic import random_weights, synthetic_config

TINY = synthetic_config("synthetic:tiny")


def test_threads_make_the_same_weights_in_the_same_order(monkeypatch):
    made = []
    for threads in (1, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        made.append(random_weights(TINY, dtype=torch.float32, device="cpu", seed=3))
    assert list(made[0]) == list(made[1])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    other = random_weights(TINY, dtype=torch.float32, device="cpu", seed=4)
    assert not torch.equal(other["decoder.head.weight"], made[0]["decoder.head.weight"])


def test_no_more_are_made_ahead_than_there_are_threads():
    started = threading.Semaphore(0)

    def make(item):
        started.release()
        return item

    results = synthetic._ahead(make, range(100), threads=3)
    assert next(results) == 0
    for _ in range(4):  # the first, and the next three
        assert started.acquire(timeout=60)
    assert not started.acquire(blocking=False)
    assert list(results) == list(range(1, 100))


def test_an_error_reaches_the_reader():
    with pytest.raises(ZeroDivisionError):
        list(synthetic._ahead(lambda item: 1 / item, [1, 0, 1], threads=2))
