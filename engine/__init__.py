"""Run Dia, the open text-to-dialogue model, fast: `Engine.load(...)`, then `.generate(text)`.

`Dia` is the same class under the reference implementation's name, so that its examples run after changing one import.
"""

import importlib

__all__ = ["Dia", "Engine"]

if __name__ == "engine":
    # The folder's name in a checkout. The package is `dia_engine`; under this name only what is public can be imported,
    # and comes from there, so that no module is loaded twice.
    __path__ = []


def __getattr__(name: str):
    # On first use: the command line answers --help and Ctrl-C without waiting for torch.
    if name in __all__:
        return importlib.import_module("dia_engine.engine").Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
