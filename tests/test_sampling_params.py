"""Sampling parameters: what is taken, what is refused, and what is left out."""

import copy
import math
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from dia_engine.sampling_params import MODEL_DEFAULT, ResolvedSamplingParams, SamplingParams, check_seed


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"temperature": -0.1}, ValueError, r"temperature must be in \[0, 1e\+06\], got -0.1"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite, got nan"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"temperature": True}, TypeError, "temperature must be a number"),
        ({"temperature": 1e-30}, ValueError, "temperature must be 0 or at least 1e-06, got 1e-30"),
        ({"temperature": 1e300}, ValueError, "temperature must be in"),
        ({"cfg_scale": 1e39}, ValueError, "cfg_scale must be in"),
        ({"cfg_scale": math.inf}, ValueError, "cfg_scale must be finite"),
        ({"top_p": 0}, ValueError, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.01}, ValueError, r"top_p must be in \(0, 1\], got 1.01"),
        ({"top_p": math.nan}, ValueError, "top_p must be finite"),
        ({"cfg_filter_top_k": 0}, ValueError, "cfg_filter_top_k must be >= 1, or None for all, got 0"),
        ({"cfg_filter_top_k": 2.5}, TypeError, "cfg_filter_top_k must be an integer, got 2.5"),
        ({"temperature": 10**400}, ValueError, r"temperature must be finite, got 10{79}\.\.\. \(401 characters\)"),
        ({"cfg_scale": -(10**5000)}, ValueError, "cfg_scale must be finite, got an integer of 16610 bits"),
        ({"top_p": Fraction(10**400)}, ValueError, r"top_p must be finite, got Fraction\("),
        ({"temperature": np.float32("nan")}, ValueError, "temperature must be finite, got .*nan"),
        ({"temperature": Decimal("NaN")}, TypeError, "temperature must be a number"),
        (
            {"temperature": "x" * 9999},
            TypeError,
            r"temperature must be a number, got 'x{79}\.\.\. \(10001 characters\)",
        ),
        ({"cfg_filter_top_k": -(10**5000)}, ValueError, "cfg_filter_top_k must be >= 1, .* got an integer of 16610"),
        ({"min_tokens": -1}, ValueError, "min_tokens must be at least 0, got -1"),
        ({"min_tokens": True}, TypeError, "min_tokens must be an integer, got True"),
        ({"max_tokens": 10.0}, TypeError, "max_tokens must be an integer, got 10.0"),
    ],
)
def test_bad_values(values, error, message):
    for kind in (SamplingParams, ResolvedSamplingParams):
        with pytest.raises(error, match=message):
            kind(**values)


def test_what_is_left_open():
    assert SamplingParams(temperature=1).resolve({"temperature": 2.0, "top_p": 0.5}) == ResolvedSamplingParams(
        temperature=1.0, top_p=0.5
    )
    assert SamplingParams().resolve({"cfg_filter_top_k": None}).cfg_filter_top_k is None
    assert SamplingParams(cfg_filter_top_k=None).resolve({"cfg_filter_top_k": 3}).cfg_filter_top_k is None
    for values in ({"temperature": None}, {"max_tokens": None}, {"cfg_filter_top_k": MODEL_DEFAULT}):
        SamplingParams(**values)
        with pytest.raises(TypeError, match="must be a number, got"):
            ResolvedSamplingParams(**values)
    for copied in (pickle.loads(pickle.dumps(SamplingParams())), copy.deepcopy(SamplingParams())):
        assert copied == SamplingParams() and copied.cfg_filter_top_k is MODEL_DEFAULT


def test_good_values():
    ResolvedSamplingParams(temperature=0, top_p=1, cfg_filter_top_k=None, cfg_scale=-1.5, max_tokens=np.int64(100))
    assert type(ResolvedSamplingParams(temperature=np.float32(0.5)).temperature) is float
    narrow = ResolvedSamplingParams(max_tokens=np.int16(400), min_tokens=np.uint8(200), cfg_filter_top_k=np.int8(45))
    assert narrow.rows(3072, 100, 15) == 400 and narrow.min_tokens + 3072 == 3272, "not in numpy's integers of 8 bits"


def test_rows_fit_model_and_prompt():
    assert ResolvedSamplingParams().rows(3072, 0, 15) == 3072
    assert ResolvedSamplingParams().rows(256, 0, 15) == 256, "the default stands for the model's limit"
    assert ResolvedSamplingParams(max_tokens=17).rows(256, 0, 15) == 17
    with pytest.raises(ValueError, match="at most 256, the decoder's positions, got 257"):
        ResolvedSamplingParams(max_tokens=257).rows(256, 0, 15)
    with pytest.raises(ValueError, match="at least 17 .* got 16; raise it"):
        ResolvedSamplingParams(max_tokens=16).rows(256, 0, 15)
    with pytest.raises(ValueError, match="at least 257 .* got 256; use a shorter audio prompt"):
        ResolvedSamplingParams().rows(256, 240, 15)


def test_seed():
    assert check_seed(np.int64(7)) == 7
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"seed must be in .* got {seed}"):
            check_seed(seed)
    with pytest.raises(ValueError, match="seed must be in .* got an integer of 16610 bits"):
        check_seed(10**5000)
    for seed in (1.0, "1", True):
        with pytest.raises(TypeError, match="seed must be an integer"):
            check_seed(seed)
