"""How long a model's pieces are, and what is expected of them. docs/longform.md says where the numbers come from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .messages import listed, shown


@dataclass(frozen=True)
class LongFormSettings:
    """Numbers of a model. Lengths are bytes of text, in which a speaker tag counts as one.

    The defaults are those of the published Dia; a model's own stand in its generation_config.json, under "long_form" in
    the part "dia_engine".

    Attributes:
        good_bytes: the longest script that is generated as one; and the most of an anchor and a piece together.
        piece_bytes: what pieces are filled to.
        anchor_bytes: the most of an anchor that is made here.
        most_turns: turns per piece.
        seconds_per_byte: of speech.
        shortest, longest: what a piece's length may be, as a share of the median of those before it.
        closing_tag: whether the next speaker's tag ends the text of each piece of a planned script; it does for a model
            of Dia's size that says nothing of long scripts.

    Raises:
        TypeError, ValueError: a value that cannot be.
    """

    good_bytes: int = 308
    piece_bytes: int = 160
    anchor_bytes: int = 110
    most_turns: int = 4
    seconds_per_byte: float = 0.065
    shortest: float = 0.5
    longest: float = 2.0
    closing_tag: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            kind: Any = type(field.default)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not kind:
                raise TypeError(f"{field.name} must be of type {kind.__name__}, got {shown(value)}")
            elif not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{field.name} must be over 0, got {shown(value)}")
        if self.piece_bytes + self.anchor_bytes > self.good_bytes + self.piece_bytes // 2:
            raise ValueError(
                f"an anchor of {self.anchor_bytes} bytes and a piece of {self.piece_bytes} do not fit good_bytes, "
                f"{self.good_bytes}"
            )

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> "LongFormSettings":
        """Raises:
        TypeError, ValueError: not an object of known names and possible values.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"long_form must be a JSON object, got {shown(values)}")
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"long_form knows {', '.join(names)}, got {listed(unknown)}")
        return cls(**values)
