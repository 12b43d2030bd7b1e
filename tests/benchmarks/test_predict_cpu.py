"""The prediction for CPUs that are not here, against figures worked out by hand."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import predict, predict_cpu
from benchmarks.predict_cpu import MACHINES, PER_CORE, Machine, bytes_by_format, predicted_seconds
from dia_engine.kernels.cpu.build import library
from dia_engine.weights.synthetic import stream_random_weights, synthetic_config

# Of a layer in millions of weights, as in test_predict.py: attention, MLP; then the head, which stays bfloat16.
ATTENTION, MLP, HEAD = 18 * (6.291 + 3 * 4.194) * 1e6, 18 * 50.332e6, 18.948e6
CACHES = 18 * (2 * 2 * 4 * 128 * 1500 + 2 * 16 * 128 * 200) * 2


def test_bytes_of_a_step():
    nf4 = bytes_by_format("nf4", 1500, 200)
    assert nf4["bfloat16"] == pytest.approx(2 * HEAD, rel=2e-2)  # norms are with it
    assert nf4["int8"] == pytest.approx(ATTENTION, rel=3e-3) and nf4["nf4"] == pytest.approx(MLP * 0.5625, rel=1e-3)
    assert nf4["caches"] == pytest.approx(CACHES, rel=1e-3)
    assert bytes_by_format(None, 1500, 200)["bfloat16"] == pytest.approx(2 * (ATTENTION + MLP + HEAD), rel=1e-3)


def test_a_step_by_hand(monkeypatch):
    speeds = {"bfloat16": 10e9, "int8": 20e9, "nf4": 5e9, "caches": 8e9}
    monkeypatch.setitem(PER_CORE, "avx2", speeds)
    rest = predict_cpu.REST
    slow_memory, few_cores = Machine("", 10e9, 64, "avx2"), Machine("", 1e12, 2, "avx2")
    weights = ATTENTION + MLP * 0.5625 + 2 * HEAD
    assert predicted_seconds(slow_memory, "nf4", 1500, 200) == pytest.approx(
        rest + (weights + CACHES) / 9.3e9, rel=2e-3
    )
    assert predicted_seconds(few_cores, "nf4", 1500, 200) == pytest.approx(
        rest + 2 * HEAD / 20e9 + ATTENTION / 40e9 + MLP * 0.5625 / 10e9 + CACHES / 16e9, rel=2e-3
    )


def test_every_machine_has_its_speeds():
    assert {machine.variant for machine in MACHINES} <= set(PER_CORE)
    kinds = {kind for quant in (None, *predict_cpu.RECIPES) for kind in bytes_by_format(quant, 30, 200)}
    assert all(set(speeds) == kinds for speeds in PER_CORE.values())


def test_says_that_it_is_a_prediction(capsys):
    assert predict.main(["--cpus", "--text", "50"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("predicted, not measured: one request, 50 bytes of text")
    assert printed.count("laptop, 60 GB/s") == 1 + len(predict_cpu.RECIPES)


def test_measures_cpus_only(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--measure"])
    assert "--measure needs --cpus" in capsys.readouterr().err


@pytest.mark.skipif(library() is None, reason="there is no compiled code")
def test_this_machine_beside_its_prediction(monkeypatch):
    variant = predict_cpu.chosen_variant().name
    monkeypatch.setitem(PER_CORE, variant, dict.fromkeys(PER_CORE["avx512bf16"], 1e12))
    monkeypatch.setattr(predict_cpu, "read_bandwidth", lambda: 7e9)
    monkeypatch.setattr(predict_cpu, "measured_seconds", lambda model, row: 1.0)
    lines = list(predict_cpu.comparison("synthetic:tiny"))
    assert len(lines) == 1 + 3 * (1 + len(predict_cpu.RECIPES)) and variant in lines[0]
    assert lines[1].startswith("bf16     row 30    measured 1000.0, predicted 0.") and "at 7.0 GB/s" in lines[1]
    monkeypatch.delitem(PER_CORE, variant)
    with pytest.raises(ValueError, match="only for the variants"):
        next(predict_cpu.comparison("synthetic:tiny"))


def test_steps_from_a_row_on(monkeypatch):
    from dia_engine.model.dia import DiaModel

    config = synthetic_config("synthetic:tiny")
    weights = stream_random_weights(config, dtype=torch.bfloat16, device="cpu")
    model, positions = DiaModel(config, dict(weights)), []
    step = model.step
    monkeypatch.setattr(model, "step", lambda state: (positions.append(int(state.position[0])), step(state)))
    assert predict_cpu.measured_seconds(model, 2000, steps=3) > 0
    assert positions == [2000, 2001, 2002, 2003]
