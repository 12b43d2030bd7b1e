"""What to say when a model's numbers break: NaN or infinity, which a decode step flags in `DecodeState.broken`."""

import torch

from .state import DecodeState

CAUSES = {
    torch.float16: "float16 cannot hold some activations: use bfloat16 or float32",
    torch.bfloat16: "its weights are damaged, or training went wrong",
    torch.float32: "its weights are damaged, or training went wrong",
}


def non_finite_logits(row: int, dtype: torch.dtype) -> RuntimeError:
    """The error of a request whose slot is broken.

    Args:
        row: decoder row whose logits were not finite: the slot's position + 1.
        dtype: in which the model computes.
    """
    name = str(dtype).removeprefix("torch.")
    return RuntimeError(
        f"the model's numbers are NaN or infinite at decoder row {row}, computed in {name}: {CAUSES[dtype]}"
    )


def require_finite_logits(state: DecodeState, dtype: torch.dtype) -> None:
    """Check slots that have stopped. Waits for the device.

    Raises:
        RuntimeError: a slot is broken.
    """
    broken = state.broken.nonzero()
    if len(broken):
        raise non_finite_logits(int(state.position[broken[0, 0]]) + 1, dtype)
