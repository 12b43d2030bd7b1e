"""The knobs of a generation, checked before any work starts."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

MAX_SEED = 2**63 - 1
DEFAULT_MAX_TOKENS = 3072
MAX_SCALE = 1e6  # beyond this, logits times or divided by a knob leave what float32 can tell apart


class DefaultFloat(float):
    """A default that nobody asked for by name: a model's own default takes its place, a caller's number stays."""


class DefaultInt(int):
    """As `DefaultFloat`."""


# The reference's defaults, by the names of `generate`.
REFERENCE_DEFAULTS = {
    "max_tokens": DefaultInt(DEFAULT_MAX_TOKENS),
    "cfg_scale": DefaultFloat(3.0),
    "temperature": DefaultFloat(1.2),
    "top_p": DefaultFloat(0.95),
    "cfg_filter_top_k": DefaultInt(45),
}


@dataclass(frozen=True)
class GenerationOptions:
    """How one request is generated. Names and defaults are those of the reference's `generate`.

    Attributes:
        max_tokens: decoder rows, prompt frames + 1 + delay included; the default stands for "as many as the model
            has" where a model has fewer than 3072.
        cfg_scale: strength of guidance by the text; 0 means unguided.
        temperature: 0 takes the likeliest token.
        top_p: in (0, 1].
        top_k: candidates that guidance lets through, >= 1, or None for all.

    Raises:
        TypeError: a value that is no number (of the right kind).
        ValueError: a value outside its range.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    cfg_scale: float = 3.0
    temperature: float = 1.2
    top_p: float = 0.95
    top_k: int | None = 45

    def __post_init__(self):
        require_integer("max_tokens", self.max_tokens)
        for name in ("cfg_scale", "temperature", "top_p"):
            _require_number(name, getattr(self, name))
            object.__setattr__(self, name, float(getattr(self, name)))
        if abs(self.cfg_scale) > MAX_SCALE:
            raise ValueError(f"cfg_scale must be in [-{MAX_SCALE:g}, {MAX_SCALE:g}], got {self.cfg_scale}")
        if self.temperature < 0 or self.temperature > MAX_SCALE:
            raise ValueError(f"temperature must be in [0, {MAX_SCALE:g}], got {self.temperature}")
        if 0 < self.temperature < 1 / MAX_SCALE:
            raise ValueError(f"temperature must be 0 or at least {1 / MAX_SCALE:g}, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k is not None:
            require_integer("cfg_filter_top_k", self.top_k)
            if self.top_k < 1:
                raise ValueError(f"cfg_filter_top_k must be >= 1, or None for all, got {self.top_k}")

    @classmethod
    def resolve(cls, own: Mapping[str, float | int | None], **given) -> "GenerationOptions":
        """The knobs that a caller gave, by the names of `generate`; what is left at the reference's default is the
        model's own where it has one.

        Args:
            own: a model's own defaults, some or none of them.
            given: what the caller passed or left.

        Raises:
            TypeError, ValueError: as the class.
        """
        knobs = {
            name: own.get(name, value) if isinstance(value, (DefaultFloat, DefaultInt)) else value
            for name, value in (REFERENCE_DEFAULTS | given).items()
        }
        return cls(top_k=knobs.pop("cfg_filter_top_k"), **knobs)

    def rows(self, capacity: int, prompt_frames: int, max_delay: int) -> int:
        """Decoder rows of a request with this prompt, in a model of `capacity` rows.

        Raises:
            ValueError: more rows than the model has, or too few for one frame of sound.
        """
        rows = self.max_tokens
        if rows == DEFAULT_MAX_TOKENS:
            rows = min(rows, capacity)
        if rows > capacity:
            raise ValueError(f"max_tokens must be at most {capacity}, the decoder's positions, got {rows}")
        needed = prompt_frames + 1 + max_delay + 1
        if rows < needed:
            parts = f"{prompt_frames} prompt frames + 1 + {max_delay} rows of delay + 1 frame of sound"
            hint = "use a shorter audio prompt" if needed > capacity else "raise it"
            raise ValueError(f"max_tokens must be at least {needed} ({parts}), got {rows}; {hint}")
        return rows


def check_seed(seed) -> int:
    """A seed as the generator takes it.

    Raises:
        TypeError: not an integer.
        ValueError: outside [0, 2^63).
    """
    require_integer("seed", seed)
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return int(seed)


def require_integer(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")


def _require_number(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
