"""Properties of the decode step: a slot's independence, what it allocates, that it never waits, how it ends."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.batch import start_batch
from dia_engine.kernels.advance import RUNNING, advance
from dia_engine.model.dia import DiaModel
from dia_engine.runtime.request import Request
from dia_engine.sampling_params import ResolvedSamplingParams
from dia_engine.weights.synthetic import random_weights, synthetic_config

CONFIG = synthetic_config("synthetic:tiny")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    with torch.no_grad():
        return DiaModel(CONFIG, random_weights(CONFIG, dtype=request.param, device="cpu"))


def make_request(index: int, max_tokens: int) -> Request:
    generator = torch.Generator().manual_seed(index)
    text = torch.randint(1, 250, (9 + 31 * index,), generator=generator)
    prompt = torch.randint(1024, (5 * index, 9), generator=generator)
    return Request(text, prompt, ResolvedSamplingParams(max_tokens=max_tokens), seed=index)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "batch"), [(1, 2), (1, 3), (1, 7), (2, 7)], indirect=["threads"])
def test_a_row_has_the_same_bits_in_any_batch(model, batch, threads):
    requests = [make_request(index % 4, max_tokens=80) for index in range(batch)]
    together = start_batch(model, requests)
    alone = [start_batch(model, [request]) for request in requests]
    for _ in range(12):
        logits = model.logits(together)
        for slot, state in enumerate(alone):
            assert torch.equal(logits[2 * slot : 2 * slot + 2], model.logits(state))
        for state in (together, *alone):
            model.step(state)
    for slot, state in enumerate(alone):
        assert torch.equal(together.grid[slot], state.grid[0])


def test_what_lies_beyond_the_valid_rows_is_not_read(model):
    clean, poisoned = (start_batch(model, [make_request(1, max_tokens=40)]) for _ in range(2))
    valid, text = int(poisoned.position[0]) + 1, int(poisoned.last_text[0]) + 1
    for cache, length in ((poisoned.self_cache, valid), (poisoned.cross_cache, text)):
        cache.keys[:, :, :, length:] = float("nan")
        cache.values[:, :, :, length:] = float("nan")
    for _ in range(10):
        assert torch.equal(model.logits(clean), model.logits(poisoned))
        model.step(clean)
        model.step(poisoned)


class Watch(TorchDispatchMode):
    """Adds up the bytes that operations allocate, and collects those that wait for a tensor's value."""

    WAITS = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"})

    def __init__(self):
        super().__init__()
        self.bytes, self.waits = 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation._schema.name.split("::")[1]
        if name in self.WAITS:
            self.waits.add(name)
        aliases = any(output.alias_info is not None for output in operation._schema.returns)
        if not aliases:
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            self.bytes += sum(output.nbytes for output in outputs if isinstance(output, torch.Tensor))
        return result


def test_a_step_allocates_alike_at_every_position_and_never_waits(model):
    state = start_batch(model, [make_request(0, max_tokens=400)])
    model.step(state)  # a CPU's first step of a state allocates what all of them work with
    allocated = []
    for _ in range(299):
        with Watch() as watch:
            model.step(state)
        assert not watch.waits
        allocated.append(watch.bytes)
    assert len(set(allocated)) == 1, "the bytes of a step depend on the position"
    assert state.position.item() == 300


def countdown_states(delay, tokens, rows, max_tokens):
    """Grids and flags after feeding the drawn `tokens` [steps, C] to `advance`, starting at row 0."""
    channels = len(delay)
    grid = torch.full((1, rows + 1, channels), -1)
    grid[0, 0] = 99
    fields = {name: torch.tensor([value]) for name, value in (("position", 0), ("countdown", RUNNING), ("end_row", 0))}
    for drawn in tokens:
        advance(
            drawn[None].clone(),
            grid,
            fields["position"],
            fields["countdown"],
            fields["end_row"],
            torch.tensor([max_tokens]),
            torch.tensor(delay),
            max(delay),
            eos=50,
            pad=51,
        )
    return grid[0], {name: value.item() for name, value in fields.items()}


def test_eos_starts_the_countdown_and_the_slot_stops():
    tokens = torch.full((10, 3), 7)
    tokens[2, 0] = 50
    grid, fields = countdown_states([0, 2, 3], tokens, rows=12, max_tokens=12)
    assert fields == {"position": 4, "countdown": 0, "end_row": 3}
    assert grid.T.tolist() == [
        [99, 7, 7, 50, 51, 51] + [-1] * 7,
        [99, 7, 7, 7, 7, 50] + [-1] * 7,
        [99, 7, 7, 7, 7, 7] + [-1] * 7,
    ]


def test_the_row_limit_starts_the_countdown():
    grid, fields = countdown_states([0, 2], torch.full((20, 2), 7), rows=10, max_tokens=10)
    assert fields == {"position": 8, "countdown": 0, "end_row": 8}
    assert grid[:, 0].tolist() == [99] + [7] * 7 + [50, 51, -1]
    assert grid[:, 1].tolist() == [99] + [7] * 9 + [-1]


def test_without_delay_the_end_is_one_row():
    grid, fields = countdown_states([0], torch.full((20, 1), 7), rows=5, max_tokens=5)
    assert fields == {"position": 4, "countdown": 0, "end_row": 5}
    assert grid[:, 0].tolist() == [99, 7, 7, 7, 7, 7]


def test_forced_cells_stay():
    grid = torch.full((2, 6, 2), -1)
    grid[0, 1, 1] = 42
    position = torch.zeros(2, dtype=torch.int64)
    countdown = torch.tensor([RUNNING, 0])
    advance(
        torch.full((2, 2), 7), grid, position, countdown, torch.zeros(2, dtype=torch.int64), torch.tensor([6, 6]),
        torch.tensor([0, 1]), 1, eos=50, pad=51,
    )  # fmt: skip
    assert grid[0, 1].tolist() == [7, 42]
    assert (grid[1] == -1).all() and position.tolist() == [1, 0], "a stopped slot is left alone"
