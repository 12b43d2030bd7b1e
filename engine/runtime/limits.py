"""How much an engine takes on at a time."""

from dataclasses import dataclass, fields

from ..messages import shown
from ..model.config import DiaConfig
from ..sampling_params import require_integer


@dataclass(frozen=True)
class Limits:
    """Limits of an engine; None is the default of each.

    Attributes:
        max_slots: requests that run at the same time, at least 1.
        max_waiting: requests that may wait for a slot, at least 0.
        max_rows: decoder rows per slot, at least what one frame takes.

    Raises:
        TypeError: not an integer.
        ValueError: out of range.
    """

    max_slots: int | None = None
    max_waiting: int | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_waiting" else 1
            if value is not None:
                require_integer(field.name, value)
                if value < least:
                    raise ValueError(f"{field.name} must be at least {least}, got {shown(value)}")

    def rows(self, config: DiaConfig) -> int:
        """Decoder rows per slot of a model.

        Raises:
            ValueError: more than the model has, or too few for a frame.
        """
        most, least = config.decoder.max_position_embeddings, config.max_delay + 2
        if self.max_rows is not None and not least <= self.max_rows <= most:
            raise ValueError(
                f"max_rows must be in [{least}, {most}] (1 + {config.max_delay} rows of delay + 1 frame, and the "
                f"decoder's positions), got {shown(self.max_rows)}"
            )
        return most if self.max_rows is None else self.max_rows
