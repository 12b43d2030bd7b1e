"""The memory of a process that makes many sounds of different lengths."""

import os
import subprocess
import sys

import pytest

GENERATIONS = """
import ctypes, os, random
from dia_engine import Engine
from dia_engine.cli.process import limit_primitive_cache

limit_primitive_cache()
chance = random.Random(0)
with Engine.load("talker", device="cpu") as engine:
    for seed in range(300):
        frames = chance.randint(10, 130)
        sound = engine.generate("[S1] Hello, how are you?", seed=seed, min_tokens=frames, max_tokens=frames + 8)
        assert len(sound) >= frames * engine.codec.hop_length
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # holes between what is in use are no leak
        with open("/proc/self/statm") as file:
            print(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory from /proc")
def test_three_hundred_sounds_of_different_lengths_stay_flat():
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    command = [sys.executable, "-c", GENERATIONS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    resident = [int(size) / 2**20 for size in done.stdout.split()]
    print("MB in memory behind each fifty:", [round(size) for size in resident[::50]], round(resident[-1]))
    assert len(resident) == 300
    assert max(resident[150:]) < resident[149] + 40, "it still grows once all lengths have come"
    assert max(resident) < resident[0] + 180, "more than a bounded cache takes"
