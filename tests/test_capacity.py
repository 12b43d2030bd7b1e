"""`dia-engine info`: what the parts take is what they take once loaded, and what fits fits."""

import pytest
import torch

from dia_engine import Engine
from dia_engine.capacity import codec_bytes, footprint, free_memory, verdict
from dia_engine.info import describe, total_bytes
from dia_engine.model.config import DiaConfig
from dia_engine.model.state import DecodeState
from dia_engine.runtime.runner import ModelRunner, default_slots
from dia_engine.weights.recipes import RECIPES, chosen_formats
from dia_engine.weights.source import resolve_model

FULL, GPU = DiaConfig(), torch.device("cuda")


def planned(quant: str | None = None, rows: int = 3072):
    formats = {} if quant is None else chosen_formats(RECIPES[quant], FULL)
    weights = total_bytes(FULL, torch.bfloat16, formats)
    codec = codec_bytes(resolve_model("synthetic:full").codec_config())
    return footprint(FULL, torch.bfloat16, weights=weights, codec=codec, rows=rows)


OTHERS = [(name, planned(name)) for name in RECIPES]


@pytest.mark.parametrize("rows", [None, 200])
def test_counted_bytes_are_those_of_a_loaded_engine(rows, monkeypatch):
    monkeypatch.setattr(
        "dia_engine.codec.network.Decoder.pack", lambda self: None
    )  # what is packed has no sizes to ask for
    engine = Engine.load("synthetic:tiny", device="cpu", dtype="float32", max_rows=rows)
    source = resolve_model("synthetic:tiny")
    assert codec_bytes(source.codec_config()) == sum(
        tensor.nbytes
        for part in (engine.codec.encoder, engine.codec.quantizer, engine.codec.decoder)
        for tensor in part.state_dict().values()
    )
    weights = total_bytes(engine.config, torch.float32, {})
    assert weights == sum(weight.nbytes for weight in engine.weights.values())
    plan = footprint(engine.config, torch.float32, weights=weights, codec=0, rows=rows or 3072)
    text = engine.config.encoder.max_position_embeddings
    state = DecodeState.allocate(engine.config, 3, plan.rows, text, torch.float32, "meta")
    assert 3 * plan.self_cache == state.self_cache.keys.nbytes + state.self_cache.values.nbytes
    assert 3 * plan.cross_cache == state.cross_cache.keys.nbytes + state.cross_cache.values.nbytes
    assert plan.slot == ModelRunner(engine.model, max_rows=rows).slot_bytes() > plan.self_cache + plan.cross_cache


def test_a_gpu_that_is_large_enough():
    plan, free = planned(), 16 * 10**9
    (line,) = verdict(plan, free, GPU, OTHERS)
    most = plan.most_slots(free)
    assert plan.weights + plan.codec + most * plan.slot <= free < plan.weights + plan.codec + (most + 1) * plan.slot
    assert (
        line.split()
        == f"fits cuda, 16.00 GB free: at most {most} slots, {plan.default_slots(free, True)} by default".split()
    )
    assert 1 <= plan.default_slots(free, True) <= most / 2 + 1


def test_a_gpu_that_needs_a_quantization():
    free = 3 * 10**9
    size, hint = verdict(planned(), free, GPU, OTHERS)
    assert "too large" in size and "3.00 GB free: with one slot it needs" in size
    assert "fits with --quant int8 (at most" in hint and "nf4 (at most" in hint
    assert next(verdict(planned("int8"), free, GPU)).startswith("fits")


def test_a_gpu_that_is_too_small():
    assert list(verdict(planned(), 10**9, GPU, OTHERS))[1].strip() == "no --quant makes it fit"


def test_the_default_of_a_cpu_may_be_more_than_its_memory_holds():
    cpu, plan = torch.device("cpu"), planned()
    lines = list(verdict(plan, plan.weights + plan.codec + 3 * plan.slot, cpu))
    assert "at most 3 slots, 8 by default" in lines[0] and "max_slots=3" in lines[1]
    assert len(list(verdict(plan, 10**12, cpu))) == 1


def test_fewer_rows_leave_room_for_more_slots():
    assert planned(rows=1200).most_slots(16 * 10**9) > 1.5 * planned().most_slots(16 * 10**9)


def test_the_engine_of_a_gpu_takes_as_many_slots_by_default():
    engine, free = Engine.load("synthetic:tiny", device="cpu", load_dac=False), 10**8
    slot_bytes = ModelRunner(engine.model).slot_bytes()
    plan = footprint(engine.config, engine.dtype, weights=10**9, codec=0, rows=3072)
    assert default_slots(free, slot_bytes) == plan.default_slots(free + 10**9, True) > 1


def test_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9))
    assert free_memory(GPU) == 5 and 10**6 < free_memory(torch.device("cpu")) < 10**14
    with pytest.raises(ValueError, match="'meta'"):
        free_memory(torch.device("meta"))


def test_all_of_it_is_described(monkeypatch):
    monkeypatch.setattr("dia_engine.info.free_memory", lambda device: 4 * 10**9)
    monkeypatch.setattr("dia_engine.info.resolve_device", lambda device: torch.device("cuda", 0))
    text = describe("synthetic:full", None, "bfloat16", max_rows=1200)
    for piece in (
        "codec",
        "one slot",
        "1200 rows at most",
        "keys/values of rows",
        "prompts used again",
        "by default",
        "cuda:0, 4.00 GB free",
    ):
        assert piece in text
    with pytest.raises(ValueError, match="max_rows must be in"):
        describe("synthetic:full", None, "bfloat16", max_rows=4000)


def test_slots_that_no_memory_holds_are_refused_before_anything_is_loaded():
    for slots in (10**6, 10**30, 10**5000):
        with pytest.raises(ValueError, match=r"max_slots must be at most \d+, got .*: cpu has .* GB of memory"):
            Engine.load("synthetic:full", device="cpu", max_slots=slots)
