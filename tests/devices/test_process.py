"""Forked processes: what cannot work says so at once, what can work does."""

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
FORK = """
import os, sys, threading
import torch
from dia_engine import Engine

torch.set_num_threads({parent})
engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
wanted = engine.generate("[S1] Hello.", seed=1, max_tokens=30)
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
torch.set_num_threads({child})
try:
    {work}
except RuntimeError as error:
    print(error)
sys.stdout.flush()
os._exit(0)
"""
GENERATE = "print((engine.generate('[S1] Hello.', seed=1, max_tokens=30) == wanted).all())"
STREAM = "print(engine.stream('[S1] Hello.', max_tokens=30))"
LOAD = "print(Engine.load('synthetic:tiny', load_dac=False))"


@pytest.mark.parametrize(
    ("parent", "child", "work", "shown"),
    [
        (2, 2, GENERATE, 'multiprocessing.get_context("spawn")'),
        (2, 2, STREAM, 'multiprocessing.get_context("spawn")'),
        (2, 2, LOAD, 'multiprocessing.get_context("spawn")'),
        (2, 1, GENERATE, "True"),
        (1, 1, GENERATE, "True"),
    ],
)
def test_a_forked_child(warm_python, parent, child, work, shown):
    done = warm_python.run(FORK.format(parent=parent, child=child, work=work))
    assert shown in done.stdout.decode(), done.stderr


@pytest.mark.parametrize("work", ["codec.decode(codes)", "codec.encode(np.zeros(9000, np.float32), 44100)"])
def test_a_codec_in_a_forked_child(warm_python, work):
    script = """
import os, sys
import numpy as np
import torch
from dia_engine import Engine

torch.set_num_threads(2)
codec = Engine.load("talker", device="cpu").codec
codes = torch.zeros((9, codec.num_codebooks), dtype=torch.int64)
codec.decode(codes)
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
try:
    {work}
except RuntimeError as error:
    print(error)
sys.stdout.flush()
os._exit(0)
"""
    done = warm_python.run(script.format(work=work))
    assert 'multiprocessing.get_context("spawn")' in done.stdout.decode(), done.stderr
