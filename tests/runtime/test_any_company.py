"""The main promise: a request gives the same codes alone and in any company, which comes and goes at any time."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dia_engine import Engine
from dia_engine.codec.windowed import CodeWindows
from dia_engine.runtime.call import Call
from dia_engine.runtime.chunking import ChunkSizes
from dia_engine.runtime.request import Request
from dia_engine.runtime.runner import ModelRunner
from dia_engine.runtime.scheduler import Scheduler
from dia_engine.sampling_params import ResolvedSamplingParams


@dataclass(frozen=True)
class Arrival:
    """A request that comes at a turn of the scheduler, and perhaps leaves at a later one."""

    turn: int
    kind: int
    leaves_after: int | None
    streaming: bool


KINDS = 6
arrivals = st.lists(
    st.builds(
        Arrival,
        turn=st.integers(0, 40),
        kind=st.integers(0, KINDS - 1),
        leaves_after=st.one_of(st.none(), st.integers(0, 30)),
        streaming=st.booleans(),
    ),
    min_size=2,
    max_size=8,
)
FORMATS = [("float32", None), ("bfloat16", None), ("float16", None), ("float32", "int8"), ("bfloat16", "int8"),
           ("float32", "nf4"), ("bfloat16", "nf4")]  # fmt: skip


@functools.cache
def tiny(dtype: str, quant: str | None) -> Engine:
    return Engine.load("synthetic:tiny", dtype=dtype, quant=quant, device="cpu", load_dac=False)


@functools.cache
def kind_of_request(kind: int) -> Request:
    """Requests of different texts, prompts, lengths and parameters."""
    generator = torch.Generator().manual_seed(kind)
    text = torch.randint(1, 250, (3 + 17 * kind,), generator=generator)
    prompt = torch.randint(1024, (30 * (kind % 3), 9), generator=generator)
    params = ResolvedSamplingParams(
        max_tokens=20 + 7 * kind + len(prompt),
        temperature=[0.0, 1.2, 0.7][kind % 3],
        cfg_filter_top_k=[45, None][kind % 2],
    )
    return Request(text, prompt, params, seed=kind)


def codes_in_company(engine: Engine, schedule: list[Arrival], max_slots: int) -> dict[int, np.ndarray]:
    """Codes by the arrival's number, of those that stay to their end."""
    scheduler = Scheduler(
        ModelRunner(engine.model, max_slots=max_slots), CodeWindows(engine.device), max_delay=15, frames_per_second=86
    )
    calls: dict[int, Call] = {}
    turn = 0
    while scheduler.unfinished or len(calls) < len(schedule):
        for number, arrival in enumerate(schedule):
            if arrival.turn == turn:
                calls[number] = Call(1, streaming=arrival.streaming)
                scheduler.add(kind_of_request(arrival.kind), 0, calls[number], ChunkSizes(9, 4))
            elif arrival.leaves_after is not None and turn == arrival.turn + arrival.leaves_after:
                calls[number].abort()
        scheduler.step()
        turn += 1
    found = {}
    for number, call in calls.items():
        chunks = [chunk.audio for chunk in call]
        (result,) = call.results
        if result is not None:
            assert np.array_equal(np.concatenate(chunks), result.codes)
            found[number] = result.codes
    return found


@functools.cache
def codes_alone(dtype: str, quant: str | None, kind: int) -> np.ndarray:
    return codes_in_company(tiny(dtype, quant), [Arrival(0, kind, None, True)], max_slots=1)[0]


def check_any_company(dtype: str, quant: str | None, schedule: list[Arrival], max_slots: int) -> None:
    for number, codes in codes_in_company(tiny(dtype, quant), schedule, max_slots).items():
        assert np.array_equal(codes, codes_alone(dtype, quant, schedule[number].kind))


relaxed = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize(("dtype", "quant"), FORMATS)
@relaxed(max_examples=3)
@given(schedule=arrivals, max_slots=st.integers(1, 5))
def test_the_same_codes_in_any_company(dtype, quant, schedule, max_slots):
    check_any_company(dtype, quant, schedule, max_slots)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "quant"), FORMATS)
@relaxed(max_examples=100)
@given(schedule=arrivals, max_slots=st.integers(1, 8))
def test_the_same_codes_in_any_of_many_companies(dtype, quant, schedule, max_slots):
    check_any_company(dtype, quant, schedule, max_slots)
