"""Run Dia, the open text-to-dialogue model, fast: `Engine.load(...)`, then `.generate(text)`.

`Dia` is the same class under the reference's name, so that its examples run after changing one import.
"""

__all__ = ["Dia", "Engine"]


def __getattr__(name: str):
    # On first use: the command line answers --help and Ctrl-C without waiting for torch.
    if name in __all__:
        from .engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
