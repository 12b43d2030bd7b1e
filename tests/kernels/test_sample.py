"""Guide, filter, draw: against the recorded reference, against a plain re-statement of the rules, and by statistics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dia_engine.kernels.philox import philox, uniform
from dia_engine.kernels.sample import filter_probabilities, sample_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
RECORDED = json.loads((GOLDEN / "cases.json").read_text())["sampling"]


def parameters(cfg_scale=3.0, temperature=1.2, top_p=0.95, top_k=45, slots=1):
    floats = (torch.full((slots,), float(value)) for value in (cfg_scale, temperature, top_p))
    return *floats, torch.full((slots,), top_k)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"case{case['index']}")
def test_recorded_probabilities(case):
    tensors = load_file(GOLDEN / "cases.safetensors")
    cond, uncond, wanted = (tensors[f"sampling.{case['index']}.{part}"] for part in ("cond", "uncond", "probs"))
    params = parameters(
        case["cfg_scale"], case["temperature"], case["top_p"], case["cfg_filter_top_k"] or cond.shape[-1]
    )
    found = filter_probabilities(torch.stack((uncond, cond)).float(), *params, eos=1024)[0]
    assert torch.equal(found > 0, wanted > 0)
    assert (found - wanted).abs().max() < 1e-6


def rules_in_a_loop(uncond, cond, cfg_scale, temperature, top_p, top_k, eos):
    """The rules of kernels/sample.py for one channel-major pair of logits [C, V], one id at a time."""
    result = torch.zeros_like(cond)
    for channel, (u, c) in enumerate(zip(uncond.double(), cond.double(), strict=True)):
        guided = c + cfg_scale * (c - u)
        guided[guided.isnan()] = -torch.inf
        chosen = sorted(range(len(c)), key=lambda i: (-guided[i].item(), i))[:top_k]
        left = [i for i in chosen if i < eos or (i == eos and channel == 0)]
        if not left:
            result[channel, 0] = 1
            continue
        best = max(left, key=lambda i: (c[i].item(), -i))
        if temperature == 0 or best == eos:
            result[channel, best] = 1
            continue
        left = sorted((i for i in left if i != eos), key=lambda i: (-c[i].item(), i))
        mass = torch.softmax(torch.stack([c[i] for i in left]) / temperature, dim=0)
        kept = [n for n in range(len(left)) if top_p == 1 or mass[:n].sum() <= top_p]
        for n in kept:
            result[channel, left[n]] = (mass[n] / mass[kept].sum()).float()
    return result


@pytest.mark.parametrize("seed", range(40))
def test_rules_on_random_logits(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    channels, vocab = pick(1, 2, 9), pick(7, 20, 33)
    eos = vocab - pick(1, 2, 4)
    logits = torch.randn(2, channels, vocab, generator=generator) * pick(0.5, 3.0)
    if seed % 3 == 0:  # many ties
        logits = logits.round()
    if seed % 4 == 0:
        logits[:, 0, eos] = 30.0
    if seed % 5 == 0:  # forbidden by both rows or by one
        logits[:, :, 2], logits[seed % 2, :, 3] = -torch.inf, -torch.inf
    params = (pick(0.0, 1.0, 3.0, -2.0), pick(0.0, 0.3, 1.2), pick(0.05, 0.5, 0.95, 1.0), pick(1, 2, 5, vocab))
    found = filter_probabilities(logits, *parameters(*params), eos=eos)[0]
    wanted = rules_in_a_loop(*logits, *params, eos)
    assert torch.equal(found > 0, wanted > 0)
    assert (found - wanted).abs().max() < 1e-6


def test_each_slot_has_its_own_parameters():
    logits = torch.randn(8, 3, 21)
    slots = [(3.0, 1.2, 0.95, 5), (0.0, 0.0, 1.0, 21), (1.0, 0.5, 0.4, 1), (2.0, 2.0, 1.0, 9)]
    together = filter_probabilities(logits, *(torch.tensor(column) for column in zip(*slots, strict=True)), eos=18)
    for slot, params in enumerate(slots):
        alone = filter_probabilities(logits[2 * slot : 2 * slot + 2], *parameters(*params), eos=18)
        assert torch.equal(together[slot], alone[0])


def test_nothing_left_gives_id_zero():
    logits = torch.zeros(2, 2, 10)
    logits[:, :, 9] = 5.0
    for temperature in (0.0, 1.0):
        found = filter_probabilities(logits, *parameters(temperature=temperature, top_k=1), eos=7)[0]
        assert torch.equal(found, torch.eye(10)[[0, 0]])


@pytest.mark.parametrize("cfg_scale", [0.0, 3.0, -2.0])
def test_an_id_that_is_forbidden_takes_no_place_of_top_k(cfg_scale):
    logits = torch.zeros(2, 1, 12)
    logits[1] = -(torch.arange(12.0) - 5.2).abs()
    without = filter_probabilities(logits, *parameters(cfg_scale, top_p=1.0, top_k=3), eos=11)
    logits[:, :, 3] = -torch.inf
    assert torch.equal(filter_probabilities(logits, *parameters(cfg_scale, top_p=1.0, top_k=3), eos=11), without)


def test_draws_follow_the_probabilities():
    slots = 4000
    logits = torch.randn(2, 3, 12).repeat(slots, 1, 1)
    params = parameters(top_k=6, slots=slots)
    draws = sample_tokens(logits, *params, seed=torch.arange(slots), row=torch.full((slots,), 5), eos=11)
    wanted = filter_probabilities(logits[:2], *parameters(top_k=6), eos=11)[0]
    frequency = torch.stack([(draws == token).float().mean(dim=0) for token in range(12)], dim=1)
    assert not frequency[wanted == 0].any()
    # Five standard deviations of a frequency at most.
    assert ((frequency - wanted).abs() <= 5 * (wanted * (1 - wanted) / slots).sqrt()).all()


def test_draws_depend_on_seed_row_and_channel_only():
    logits = torch.zeros(2, 9, 1028)
    params = parameters(top_k=1028, top_p=1.0, slots=1)

    def draw(seed, row):
        return sample_tokens(logits, *params, seed=torch.tensor([seed]), row=torch.tensor([row]), eos=1024)[0].tolist()

    assert draw(7, 3) == draw(7, 3)
    different = [draw(7, 3), draw(7, 4), draw(8, 3), draw(7 + 2**32, 3), draw(2**62, 3)]
    assert len({tuple(tokens) for tokens in different}) == 5
    assert len(set(draw(7, 3))) > 5, "channels draw apart from one another"


def test_philox_known_answers():
    """The published vectors of Random123 (kat_vectors, philox4x32 with 10 rounds)."""
    vectors = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0x299F31D0 << 32 | 0xA4093822),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, wanted in vectors:
        words = philox(torch.tensor(key), tuple(torch.tensor(word) for word in counter))
        assert tuple(word.item() for word in words) == wanted


def test_uniform_is_inside_the_open_interval():
    u = uniform(torch.tensor(1), (torch.arange(200_000), *(torch.zeros(1, dtype=torch.int64),) * 3))
    assert u.dtype == torch.float32
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert torch.isfinite(-u.log()).all() and (-u.log() > 0).all()


def test_triton_makes_the_same_numbers():
    """`tl.randint4x` in Triton's interpreter, which must be chosen before triton is imported: hence a process."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("triton_philox.py")
    seeds, offsets = [0, 7, 2**40 + 3, 2**63 - 1], list(range(64))
    output = subprocess.run(
        [sys.executable, script, json.dumps(seeds), json.dumps(offsets)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    theirs = torch.tensor(json.loads(output), dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    ours = torch.stack(philox(torch.tensor(seeds)[:, None], (torch.tensor(offsets)[None], zero, zero, zero)), dim=1)
    assert torch.equal(ours, theirs)
