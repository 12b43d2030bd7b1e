"""Run Dia, the open text-to-dialogue model, fast: `Engine.load(...)`, then `.generate(text)`.

`Dia` is the same class under the reference's name, so that its examples run after changing one import.
"""

from pathlib import Path

__all__ = ["Dia", "Engine"]

# In a checkout `kernels/` stands beside this folder, and installs inside it: found there too, so that what is run from
# the repository's root is the repository's own code, installed or not.
_HERE = Path(__file__).parent
if not (_HERE / "kernels").is_dir() and (_HERE.parent / "kernels").is_dir():
    __path__.append(str(_HERE.parent))


def __getattr__(name: str):
    # On first use: the command line answers --help and Ctrl-C without waiting for torch.
    if name in __all__:
        from .engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
