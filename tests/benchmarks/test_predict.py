"""The prediction for GPUs that are not here, against figures worked out by hand from the model's sizes."""

import pytest

from benchmarks.predict import CARDS, main, predicted_seconds

# A layer's matrices in millions of weights: qkv 6.29, o 4.19, cross q and o 4.19 each, MLP 50.33; then the head.
WEIGHTS = 18 * (6.291 + 3 * 4.194 + 50.332) * 1e6 + 18.948e6
CACHES = 18 * (2 * 2 * 4 * 128 * 512 + 2 * 16 * 128 * 200) * 2


def test_the_roofline_is_bytes_over_bandwidth():
    for card in CARDS:
        floor, seconds = predicted_seconds(card, None, 512, 200)
        assert floor == pytest.approx((2 * WEIGHTS + CACHES) / card.bandwidth, rel=1e-3)
        assert seconds > floor / 0.9


def test_an_h100_reads_nf4_faster_than_it_decodes_it():
    for card in CARDS:
        floor, seconds = predicted_seconds(card, "nf4", 512, 200)
        reading = floor / 0.9 + 146 * card.gap
        if card.name.startswith("H100"):
            assert seconds > 1.05 * reading
        else:
            assert seconds == pytest.approx(reading)


def test_says_that_it_is_a_prediction(capsys):
    assert main(["--position", "100", "--text", "50"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("predicted, not measured")
    assert printed.count("nf4") == len(CARDS) and "H100" in printed
