"""The prediction for GPUs that are not here, against figures worked out by hand from the model's sizes."""

import pytest

pytest.importorskip("triton")

from benchmarks.predict import CARDS, main, predicted_seconds, roofline_seconds, step_work
from dia_engine.weights.recipes import RECIPES
from tests.helpers import run_python

# A layer's matrices in millions of weights: qkv 6.29, o 4.19, cross q and o 4.19 each, MLP 50.33; then the head.
WEIGHTS = 18 * (6.291 + 3 * 4.194 + 50.332) * 1e6 + 18.948e6
CACHES = 18 * (2 * 2 * 4 * 128 * 512 + 2 * 16 * 128 * 200) * 2
RTX_4090, H100 = CARDS[1:3]
ONE = (1, 512, 200)


def few(launch, architecture):
    """Instructions that no GPU takes any time for."""
    return 1.0


def test_the_roofline_is_bytes_over_bandwidth():
    for card in CARDS:
        floor = roofline_seconds(card, None, *ONE)
        assert floor == pytest.approx((2 * WEIGHTS + CACHES) / card.bandwidth, rel=1e-3)
        assert predicted_seconds(card, None, *ONE, few) > floor / 0.9


@pytest.mark.parametrize("quant", [None, "int8", "nf4"])
@pytest.mark.parametrize("batch", [1, 16])
def test_the_launches_read_what_the_roofline_counts(batch, quant):
    step = step_work(90, quant, batch, 512, 200, few)
    assert len(step) == 146
    expected = roofline_seconds(H100, quant, batch, 512, 200) * H100.bandwidth
    assert sum(work.bytes_read for work in step) == pytest.approx(expected, rel=2e-3)


def test_a_step_by_hand():
    """109 projections, 18 of either attention, which take their least time, and the sampling."""
    expected = 2 * WEIGHTS / (0.9 * 1008e9) + 109 * 3.6e-6 + 36 * 6e-6 + 24e-6 + 0.5e-6
    assert predicted_seconds(RTX_4090, None, *ONE, few) == pytest.approx(expected, rel=1e-3)
    read = 2 * 2 * 4 * 128 * 3000 * 2
    long = next(work for work in step_work(89, None, 1, 3000, 200, few) if "stats_ptr" in work.launch.arguments)
    assert long.seconds(RTX_4090) == pytest.approx(read / (0.9 * 1008e9) + 3.6e-6)
    on_hopper = [work for work in step_work(90, None, 1, 512, 20, few) if "stats_ptr" in work.launch.arguments]
    assert on_hopper[1].seconds(H100) == 5e-6


def test_instructions_limit_a_launch_whose_bytes_come_faster():
    def many(launch, architecture):
        return 10_000.0

    gate_up = next(work for work in step_work(90, "nf4", *ONE, many) if work.launch.grid == (1, 512))
    warps = 512 * gate_up.launch.warps
    assert gate_up.instructions == warps * 10_000
    assert gate_up.seconds(H100) == pytest.approx(warps * 10_000 / (0.6 * 4 * 132 * 1.755e9) + H100.gap)
    assert gate_up.issue_share(H100) == pytest.approx(
        warps * 10_000 / (4 * 132 * 1.755e9) / (16384 * 2048 * 0.5625 / 3350e9)
    )


def test_many_requests_are_limited_by_the_l2_cache():
    """128 input rows: two blocks of them read the weights, each tile of weight rows all of the inputs."""
    gate_up = next(work for work in step_work(90, None, 64, 512, 200, few) if work.bytes_read == 2 * 16384 * 2048)
    blocks, tiles = gate_up.launch.grid
    assert gate_up.bytes_from_l2 == blocks * gate_up.bytes_read + tiles * 128 * 2048 * 2
    assert gate_up.seconds(H100) == pytest.approx(gate_up.bytes_from_l2 / 5.5e12 + H100.gap)


def test_says_that_it_is_a_prediction(capsys):
    assert main(["--position", "100", "--text", "50", "--kernels"], few) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("predicted, not measured")
    assert printed.count(" nf4 ") >= len(CARDS) and "H100" in printed
    assert printed.count("next_row") == 1 + len(RECIPES)


def test_a_position_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        main(["--position", "3073"], few)
    assert "--position must be from 1 to 3072, got 3073" in capsys.readouterr().err


def test_the_interpreter_compiles_nothing(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        main([])
    assert "TRITON_INTERPRET=1 leaves nothing to compile" in capsys.readouterr().err


@pytest.mark.slow
def test_the_compiled_kernels_decode_nf4_slower_than_an_h100_reads_it():
    result = run_python("-m", "benchmarks.predict", "--kernels")
    assert result.returncode == 0, result.stderr
    shares = {}
    for line in result.stdout.splitlines():
        if line.startswith("gated_linear"):
            shares[line.split()[2] if line.split()[2] in ("int8", "nf4") else "bf16"] = [
                int(word[:-1]) for word in line.split() if word.endswith("%")
            ]
    h100 = {name: share[2] for name, share in shares.items()}
    assert h100["bf16"] < h100["int8"] < 100 < h100["nf4"]
