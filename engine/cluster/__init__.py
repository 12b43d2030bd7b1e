"""More than one machine, with Ray: answers by Ray Serve (`app`), many scripts by Ray Data (`batch.run_on_ray`).

    serve run dia_engine.cluster:app model=talker quant=int8 replicas=2 max_slots=8
    dia-engine batch scripts.jsonl -o speech --ray

A replica and an actor each have an engine of their own; nothing is shared but the folder of voices. docs/scaling.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def app(arguments: dict[str, Any]) -> "Application":
    """The server as an application of Ray Serve, which calls this with the arguments of `serve run` or a config file.

    Args:
        arguments: values by name, as text or of their type: settings of `dia-engine serve` and those of `Scaling`.

    Raises:
        ArgumentError: an argument that is unknown, or a value that cannot be; one line, which names it.
        RuntimeError: Ray Serve or the server's packages are not installed.
    """
    from ..packages import require

    require("Ray", "ray", "ray.serve", "av", "fastapi", "prometheus_client")
    from .serving import application

    return application(arguments)
