"""Run Dia, the open text-to-dialogue model, fast: `Engine.load(...)`, then `.generate(text)`.

`Dia` is the same class under the reference implementation's name, so that its examples run after changing one import.
`SamplingParams` says how a request is sampled, `Generation` how it ended; `EngineFull` is raised where too many wait.
`AudioStream` is what `Engine.stream` returns, `Plan` and its `Piece`s are what `Engine.plan` does, and the `Generation`
of a planned script has a `PieceResult` per piece; `Progress` says how far it is. `FLUSH` in a
text that arrives in parts means: speak what is there.

Public too are `dia_engine.codec` (the audio codec by itself), `dia_engine.weights.save` (write and quantize
checkpoints), `dia_engine.server.app` and `dia_engine.server.settings` (the ASGI application). Everything else may
change in any version.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .engine import Engine as Dia
    from .longform.planning.plan import Piece, Plan
    from .longform.planning.source import FLUSH
    from .results import Generation, PieceResult, Progress
    from .runtime.engine_thread import EngineFull
    from .runtime.stream import AudioStream
    from .sampling_params import SamplingParams

__all__ = [
    "FLUSH",
    "AudioStream",
    "Dia",
    "Engine",
    "EngineFull",
    "Generation",
    "Piece",
    "PieceResult",
    "Plan",
    "Progress",
    "SamplingParams",
]
__version__ = "0.2.0"  # setup.py reads it here, without an import

_HOMES = {
    "AudioStream": ("runtime.stream", "AudioStream"),
    "Dia": ("engine", "Engine"),
    "Engine": ("engine", "Engine"),
    "EngineFull": ("runtime.engine_thread", "EngineFull"),
    "FLUSH": ("longform.planning.source", "FLUSH"),
    "Generation": ("results", "Generation"),
    "Piece": ("longform.planning.plan", "Piece"),
    "PieceResult": ("results", "PieceResult"),
    "Plan": ("longform.planning.plan", "Plan"),
    "Progress": ("results", "Progress"),
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
