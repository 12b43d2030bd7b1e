"""A small model computes on one thread, and a program's own threads do not notice."""

import threading

import pytest
import torch

from dia_engine.devices.threads import SMALL, is_small, one_thread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_new_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_inside_and_as_many_as_before_behind(two_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 2
    with one_thread(False):
        assert torch.get_num_threads() == 2


def test_other_threads_compute_as_before(two_threads):
    with one_thread():
        assert in_new_thread(torch.get_num_threads) == 2
    assert in_new_thread(torch.get_num_threads) == 2


def test_another_thread_has_one_thread_of_its_own(two_threads):
    def inside():
        with one_thread():
            return torch.get_num_threads()

    assert in_new_thread(inside) == 1 and torch.get_num_threads() == 2


def test_what_is_small():
    cpu = torch.device("cpu")
    assert is_small([4, 8], cpu) and is_small([int(SMALL)], cpu)
    assert not is_small([int(SMALL), 1], cpu) and not is_small([4], torch.device("meta"))


def test_a_small_model_steps_and_decodes_on_one_thread(two_threads, engine, monkeypatch):
    counts = []
    for owner, name in ((engine.model, "step"), (engine.codec, "decode")):
        function = getattr(owner, name)

        def counted(*given, function=function, **named):
            counts.append(torch.get_num_threads())
            return function(*given, **named)

        monkeypatch.setattr(owner, name, counted)
    engine.generate("[S1] A.", max_tokens=24, seed=1)
    for _ in engine.stream("[S1] A.", max_tokens=24, seed=1):
        assert torch.get_num_threads() == 2
    assert len(counts) > 20 and set(counts) == {1} and torch.get_num_threads() == 2
