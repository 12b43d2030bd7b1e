"""What both trainings share: a bar with loss and time left, a learning rate's course, a step, stopping and going on."""

import math
from pathlib import Path

import torch
from tqdm import tqdm


class Progress:
    """A bar that shows smoothed figures; tqdm adds the time left."""

    def __init__(self, name: str, done: int, steps: int):
        self._bar = tqdm(desc=name, initial=done, total=steps, unit="step", mininterval=2.0)
        self._smooth: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, **figures: float) -> None:
        for name, value in figures.items():
            self._smooth[name] = 0.97 * self._smooth.get(name, value) + 0.03 * value
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in self._smooth.items()}, refresh=False)
        self._bar.update()


def cosine(step: int, steps: int, *, warm: int, floor: float) -> float:
    """A factor that rises to 1 in `warm` steps and then falls to `floor` along half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def descend(optimizer: torch.optim.Optimizer, module: torch.nn.Module, loss: torch.Tensor, factor: float) -> None:
    """One step down the loss, each group at `factor` times its own `rate`, gradients clipped to a norm of one."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_state(path: Path, step: int, **parts) -> None:
    """Write what `load_state` reads; a file is whole or the one before."""
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    partial.rename(path)


def load_state(path: Path, **parts) -> int:
    """Fill the parts from a file of `save_state`; one that an older file lacks stays as it is. Returns its step, 0 if
    there is no file."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        if name in state:
            part.load_state_dict(state[name])
    return state["step"]
