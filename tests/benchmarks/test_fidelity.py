"""The benchmark of what quantizing loses measures nothing where nothing differs, and orders the formats."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import fidelity
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.recipes import RECIPES
from dia_engine.weights.synthetic import synthetic_config

CONFIG = synthetic_config("synthetic:tiny")
CONFIG = replace(
    CONFIG,
    encoder=replace(CONFIG.encoder, intermediate_size=128),
    decoder=replace(CONFIG.decoder, hidden_size=128, intermediate_size=256),
)


def test_float32_against_itself_loses_nothing():
    weights = fidelity.heavy_weights(CONFIG)
    (row,) = fidelity.measure(CONFIG, weights, {"same": (torch.float32, {})}, rows=6)
    assert row["agreement"] == row["supports"] == 1.0 and row["cosine"] == pytest.approx(1.0)
    assert abs(row["kl"]) < 1e-12
    assert len(row["channels"]["kl"]) == 9


def test_formats_lose_in_the_order_of_their_bits():
    weights = fidelity.heavy_weights(CONFIG)
    variants = {name: (torch.float32, {"*.mlp.*": name}) for name in ("int8", "nf4")}
    int8, nf4 = fidelity.measure(CONFIG, weights, variants, rows=8)
    assert 0 < int8["kl"] < nf4["kl"] and nf4["cosine"] < int8["cosine"] < 1
    assert nf4["megabytes"] < int8["megabytes"]


def test_measures_by_hand():
    truth, found = torch.zeros(2, 2, 40), torch.zeros(2, 2, 40)
    truth[1, 0, 3] = found[1, 0, 3] = 5.0
    truth[1, 1, 4], found[1, 1, 5] = 5.0, 5.0
    config = replace(
        CONFIG, decoder=replace(CONFIG.decoder, num_channels=2, vocab_size=40), delay_pattern=(0, 1),
        eos_token_id=36, pad_token_id=37, bos_token_id=38,
    )  # fmt: skip
    measures = fidelity.compare(truth, found, ResolvedSamplingParams(cfg_filter_top_k=1, cfg_scale=0.0), config)
    assert measures["agreement"].tolist() == [1, 0] and measures["supports"].tolist() == [1, 0]
    first, second = (logits[1, 1].double().softmax(-1) for logits in (truth, found))
    assert measures["kl"].tolist() == pytest.approx([0, float((first * (first / second).log()).sum())])


def test_rows_are_heavy_tailed():
    weight = fidelity.heavy_weights(CONFIG)["decoder.layers.0.mlp.gate_up.weight"]
    outliers = (weight.abs().amax(dim=1) / weight.square().mean(dim=1).sqrt()).median()
    gaussian = torch.randn(weight.shape)
    assert outliers > 1.2 * (gaussian.abs().amax(dim=1) / gaussian.square().mean(dim=1).sqrt()).median()


def test_the_talker_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr(fidelity, "recipes", lambda: {"bfloat16": (torch.bfloat16, {})})
    assert fidelity.main(["--model", "talker", "--rows", "2"]) == 0
    assert capsys.readouterr().out.startswith("talker, 2 rows x 4 channels against float32")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fidelity, "HEAVY_CONFIG", CONFIG)
    assert fidelity.main(["--rows", "2", "--modules", "--json", str(tmp_path / "x.json")]) == 0
    report = json.loads((tmp_path / "x.json").read_text())
    assert [row["name"] for row in report["recipes"]] == ["bfloat16", *RECIPES]
    assert len(report["modules"]) == 14
    assert "mlp.down in nf4" in capsys.readouterr().out
