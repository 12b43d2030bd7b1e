"""Forked processes: what cannot work says so at once, what can work does."""

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
FORK = """
import os, sys
import numpy as np
import torch
from dia_engine import Engine

torch.set_num_threads({parent})
{setup}
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
ENGINE = """
engine = Engine.load("synthetic:tiny", device="cpu", load_dac=False)
wanted = engine.generate("[S1] Hello.", seed=1, max_tokens=30)
"""
CODEC = """
codec = Engine.load("talker", device="cpu").codec
codes = torch.zeros((9, codec.num_codebooks), dtype=torch.int64)
codec.decode(codes)
"""
GENERATE = "print((engine.generate('[S1] Hello.', seed=1, max_tokens=30) == wanted).all())"
STREAM = "print(engine.stream('[S1] Hello.', max_tokens=30))"
LOAD = "print(Engine.load('synthetic:tiny', load_dac=False))"
DECODE = "codec.decode(codes)"
ENCODE = "codec.encode(np.zeros(9000, np.float32), 44100)"


@pytest.mark.parametrize(
    ("setup", "parent", "child", "work", "shown"),
    [
        (ENGINE, 2, 2, GENERATE, 'multiprocessing.get_context("spawn")'),
        (ENGINE, 2, 2, STREAM, 'multiprocessing.get_context("spawn")'),
        (ENGINE, 2, 2, LOAD, 'multiprocessing.get_context("spawn")'),
        (ENGINE, 2, 1, GENERATE, "True"),
        (ENGINE, 1, 1, GENERATE, "True"),
        (CODEC, 2, 2, DECODE, 'multiprocessing.get_context("spawn")'),
        (CODEC, 2, 2, ENCODE, 'multiprocessing.get_context("spawn")'),
    ],
)
def test_a_forked_child(warm_python, setup, parent, child, work, shown):
    done = warm_python.run(FORK.format(setup=setup, parent=parent, child=child, work=work))
    assert shown in done.stdout.decode(), done.stderr
