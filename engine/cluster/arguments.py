"""The arguments of an application: those of `dia-engine serve`, and how many replicas of which size there are."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from ..messages import shown
from ..server.settings import Settings, check, option, parsed, read_settings
from .machines import check_device

# Serve routes by them before a replica has loaded a model: the engine's own default may depend on a GPU's memory.
DEFAULT_SLOTS = 8
# Ray Serve listens, not the application.
OF_THE_PROXY = ("host", "port", "header_timeout", "idle_timeout")
SPARE_REQUESTS = 16  # beyond slots and waiting room, so that our 429 with Retry-After answers and not Serve's 503


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are, and what each of them has.

    Raises:
        ValueError: a number out of range, or two that contradict each other.
    """

    replicas: int | None = option(None, "number of replicas (default: 1)", kind=int, least=1)
    min_replicas: int | None = option(None, "replicas that are always there, with max_replicas", kind=int, least=0)
    max_replicas: int | None = option(None, "scale with the load, up to so many replicas", kind=int, least=1)
    gpus: float | None = option(
        None, "GPUs per replica, such as 1 or 0.5 (default: 1 for a device that is one)", kind=float, least=0
    )
    cpus: float = option(1.0, "CPU cores per replica, as many threads on a CPU", least=0)

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each.name, getattr(self, each.name), each.metadata)
        if self.gpus is not None and self.gpus > 1 and not self.gpus.is_integer():
            raise ValueError(f"gpus must be whole beyond 1, got {self.gpus}")
        if self.max_replicas is None and self.min_replicas is not None:
            raise ValueError("min_replicas needs max_replicas")
        if self.max_replicas is not None and self.replicas is not None:
            raise ValueError("replicas is a fixed number: give either that or max_replicas")
        if self.max_replicas is not None and (self.min_replicas or 0) > self.max_replicas:
            raise ValueError(f"min_replicas must be at most max_replicas {self.max_replicas}, got {self.min_replicas}")


def read_arguments(arguments: Mapping[str, Any]) -> tuple[Settings, Scaling]:
    """What the arguments and the environment (DIA_SERVE_...) say.

    Args:
        arguments: values by name; text is parsed, as `serve run` gives it, other values are of a config file.

    Raises:
        ValueError: an argument that is unknown or has no effect here, or a value that cannot be; the message names it.
    """
    arguments = dict(arguments)
    if "max_slots" in arguments:  # as `Engine.load` calls them
        if "slots" in arguments:
            raise ValueError("slots and max_slots are the same: give one of them")
        arguments["slots"] = arguments.pop("max_slots")
    known: dict[str, Field[Any]] = {each.name: each for each in (*fields(Settings), *fields(Scaling))}
    for name in arguments:
        if name in OF_THE_PROXY:
            raise ValueError(f"{name} has no effect: Ray Serve listens, see its http_options")
        if name not in known:
            names = sorted({*known, "max_slots"} - set(OF_THE_PROXY))
            raise ValueError(f"unknown argument {shown(name)}; there are {', '.join(names)}")
    values = {name: _value(name, given, known[name].metadata) for name, given in arguments.items()}
    scaling = Scaling(**{each.name: values.pop(each.name) for each in fields(Scaling) if each.name in values})
    settings = read_settings(values)
    if settings.slots is None:
        settings = replace(settings, slots=DEFAULT_SLOTS)
    check_device(settings.device)
    return settings, scaling


def most_ongoing(settings: Settings) -> int:
    """Requests that Serve gives to one replica at the same time."""
    slots = settings.slots or DEFAULT_SLOTS
    return slots + settings.waiting_room(slots) + SPARE_REQUESTS


def _value(name: str, given: Any, metadata: Mapping[str, Any]) -> Any:
    kind, many = metadata["kind"], metadata.get("many")
    if isinstance(given, str):
        return parsed(name, given, metadata) if many or kind is not str else given
    if many:
        if isinstance(given, list) and all(isinstance(each, str) for each in given):
            return tuple(given)
        kinds: tuple[type, ...] = ()
    else:
        kinds = (int, float) if kind is float else (kind,)
    if not isinstance(given, kinds) or (isinstance(given, bool) and kind is not bool):
        words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
        raise ValueError(f"{name} must be {words.get(kind, 'a list of strings')}, got {shown(given)}")
    return given
