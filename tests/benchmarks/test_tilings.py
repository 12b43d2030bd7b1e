"""Which ways to cut up a projection are timed; the times themselves need a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import tilings
from dia_engine.kernels.matmul import Tiling
from dia_engine.kernels.quantized import FORMATS
from tests.helpers import run_python


def weight(kind):
    if kind is None:
        return torch.empty((16384, 2048), dtype=torch.bfloat16, device="meta")
    return FORMATS[kind].empty(16384, 2048, torch.bfloat16, "meta")


@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
@pytest.mark.parametrize("architecture", [86, 90])
def test_candidates_keep_the_order_of_sums(kind, architecture):
    for rows in (2, 16, 32, 128):
        chosen = Tiling.choose(weight(kind), 32, rows, architecture)
        changes = list(tilings.candidates("gate, up", weight(kind), rows, architecture))
        assert len(changes) >= 10
        for change in changes:
            assert set(change) == {"tile", "block_m", "block_k", "stages"}
            assert change["tile"] >= 32 and chosen.unit % change["block_k"] == 0
            assert kind != "nf4" or change["block_k"] == 64, "the block of a scale"
        sizes = [tuple(change.values()) for change in changes]
        assert (chosen.tile, chosen.block_m, chosen.block_k, chosen.stages) in sizes
        assert len(set(sizes)) == len(sizes)


def test_a_change_is_forced_and_forgotten():
    before = Tiling.choose(weight(None), 32, 2, 90)
    with tilings._forced({"stages": 7}):
        assert Tiling.choose(weight(None), 32, 2, 90).stages == 7
    assert Tiling.choose(weight(None), 32, 2, 90) == before


def test_equal_times_keep_their_order(monkeypatch):
    changes = [{"tile": 32}, {"tile": 16}, {"tile": 64}]
    seconds = {32: 5.0, 16: 5.0, 64: 4.0, None: 4.5}
    monkeypatch.setattr(tilings, "_candidates", lambda *case: changes)
    monkeypatch.setattr(tilings, "_runs", lambda *case: True)
    monkeypatch.setattr(tilings, "_microseconds", lambda case, change: seconds[change.get("tile")])
    times = tilings.timed("head", None, 1)
    assert times == {"chosen": 4.5, "candidates": [(4.0, changes[2]), (5.0, changes[0]), (5.0, changes[1])]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    result = run_python("-m", "benchmarks.tilings")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "torch finds no CUDA device here" in result.stderr


@pytest.mark.gpu
def test_times_are_measured():
    case = tilings.cases(1, "int8")["o, residual"]
    times = tilings.timed("o, residual", case, 1)
    assert times["chosen"] > 0 and len(times["candidates"]) >= 5
