"""How many kernels a prefill launches on a GPU, counted on tensors without memory."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from dia_engine.kernels.dispatch import intercept_launches
from dia_engine.kernels.quantized import FORMATS
from dia_engine.model.config import DiaConfig
from dia_engine.model.dia import DiaModel
from dia_engine.model.shapes import parameter_shapes
from dia_engine.model.state import DecodeState
from dia_engine.weights.recipes import RECIPES, chosen_formats


class Counter(TorchDispatchMode):
    """Counts torch operations, and those of them that launch a kernel: neither a view nor an allocation."""

    def __init__(self):
        super().__init__()
        self.operations = self.kernels = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        views = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        self.kernels += not (views or "empty" in str(function) or "_unsafe_view" in str(function))
        return function(*args, **(kwargs or {}))


def counted(quant: str | None, prompt: int, monkeypatch) -> tuple[int, int]:
    """(kernels, torch operations and launches) of Dia's full size over 191 bytes of text and a prompt."""
    config = DiaConfig()
    chosen = chosen_formats(RECIPES[quant], config) if quant else {}

    def empty(name, shape):
        if name in chosen:
            return FORMATS[chosen[name]].empty(*shape, torch.bfloat16, "meta")
        kind = torch.float32 if name.endswith("norm.weight") else torch.bfloat16
        return torch.empty(shape, dtype=kind, device="meta")

    model = DiaModel(config, {name: empty(name, shape) for name, shape in parameter_shapes(config).items()})
    state = DecodeState.allocate(config, 1, 400, 200, torch.bfloat16, "meta")
    state = replace(state, position=torch.tensor([prompt]))  # the prefill asks for its value
    # One kernel on a GPU, where the meta device computes it step by step.
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, key, value, **_: torch.empty_like(query))
    launches, counter = [], Counter()
    with intercept_launches(launches.append, 90), counter:
        model.prefill(state, 0, torch.empty(191, dtype=torch.int64, device="meta"))
    return counter.kernels + len(launches), counter.operations + len(launches)


@pytest.mark.parametrize("prompt", [0, 100])
@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_quantized_weights_cost_few_more_kernels(quant, prompt, monkeypatch):
    plain, quantized = (counted(kind, prompt, monkeypatch) for kind in (None, quant))
    assert all(more <= 1.6 * few for more, few in zip(quantized, plain, strict=True)), (plain, quantized)
