"""silu(gate) * up, the activation of an MLP, over the rows of a sequence."""

import torch
import torch.nn.functional as F

from .cpu.matmul import compiled_for_rows, thread_count


def gated_ref(gate_up: torch.Tensor) -> torch.Tensor:
    """See `gated`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [N, 2F], gates first -> [N, F] in the same dtype."""
    functions = compiled_for_rows(gate_up)
    if functions is None:
        return gated_ref(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty((rows, width), dtype=torch.float32, device="cpu")
    functions.gate_rows(gate_up.data_ptr(), y.data_ptr(), rows, width, thread_count())
    return y
