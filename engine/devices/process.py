"""Forked processes: neither OpenMP's threads nor a CUDA context survive a fork, and what needs them waits for ever."""

import os

import torch

_first_process = os.getpid()
_threads = 1  # the most that the first process has worked with
_used_cuda = False


def check_not_forked(device: torch.device | None = None) -> None:
    """Check that this process can compute, and take note of how it does.

    Args:
        device: where the work is done; None where that is not known yet.

    Raises:
        RuntimeError: the process was forked from one in which an engine has worked, in a way that does not survive.
    """
    global _threads, _used_cuda
    on_cuda = device is not None and device.type == "cuda"
    if os.getpid() == _first_process:
        _threads, _used_cuda = max(_threads, torch.get_num_threads()), _used_cuda or on_cuda
    elif on_cuda and _used_cuda:
        raise RuntimeError(
            "this process was forked from one that uses the GPU, which does not survive a fork: "
            'start it with multiprocessing.get_context("spawn") and load the engine in it'
        )
    elif _threads > 1 and torch.get_num_threads() > 1:
        raise RuntimeError(
            "this process was forked from one in which an engine has worked, and OpenMP's threads do not survive a "
            'fork: start it with multiprocessing.get_context("spawn"), or call torch.set_num_threads(1) in it'
        )
