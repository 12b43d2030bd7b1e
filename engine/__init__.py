"""Run Dia, the open text-to-dialogue model, fast: `Engine.load(...)`, then `.generate(text)`.

`Dia` is the same class under the reference implementation's name, so that its examples run after changing one import.
`SamplingParams` says how a request is sampled, `Generation` how it ended, `Progress` how far a long script is; `EngineFull` is raised where too many wait.
`FLUSH` in a text that arrives in parts means: speak what is there.
The audio codec by itself is `dia_engine.codec.Codec`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .engine import Engine as Dia
    from .longform.source import FLUSH
    from .runtime.call import Generation, Progress
    from .runtime.engine_thread import EngineFull
    from .sampling_params import SamplingParams

__all__ = ["FLUSH", "Dia", "Engine", "EngineFull", "Generation", "Progress", "SamplingParams"]
__version__ = "0.1.0"  # setup.py reads it here, without an import

_HOMES = {
    "Dia": ("engine", "Engine"),
    "Engine": ("engine", "Engine"),
    "EngineFull": ("runtime.engine_thread", "EngineFull"),
    "FLUSH": ("longform.source", "FLUSH"),
    "Generation": ("runtime.call", "Generation"),
    "Progress": ("runtime.call", "Progress"),
    "SamplingParams": ("sampling_params", "SamplingParams"),
}

if __name__ == "engine":
    # The folder's name in a checkout. The package is `dia_engine`; under this name only what is public can be imported,
    # and comes from there, so that no module is loaded twice.
    __path__ = []


def __getattr__(name: str) -> Any:
    # On first use: the command line answers --help and Ctrl-C without waiting for torch.
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(f"dia_engine.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
