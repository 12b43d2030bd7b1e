"""How a request is sampled: what a caller may set, and what it comes to for a model."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Final

from .messages import shown

MAX_SEED = 2**63 - 1
DEFAULT_MAX_TOKENS = 3072
MAX_SCALE = 1e6  # beyond this, logits times or divided by a parameter leave what float32 can tell apart


class ModelDefault(Enum):
    """The type of MODEL_DEFAULT."""

    MODEL_DEFAULT = "the model's default"

    def __repr__(self) -> str:
        return self.name


# The default of `cfg_filter_top_k` alone, where None already means something else: no limit.
MODEL_DEFAULT: Final = ModelDefault.MODEL_DEFAULT


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. Names are those of the reference's `generate`; what is left out is the model's
    default, see `resolve`.

    Attributes:
        max_tokens: decoder rows, prompt frames + 1 + delay included.
        cfg_scale: strength of guidance by the text; 0 means unguided.
        temperature: 0 takes the likeliest token.
        top_p: in (0, 1], share of the probability that is drawn from.
        cfg_filter_top_k: candidates that guidance lets through, >= 1. None means all, as in the reference; the model's
            default is MODEL_DEFAULT here.
        min_tokens: frames of sound before which the model may not end, prompt excluded; 0 leaves it free.

    Raises:
        TypeError: a value that is no number (of the right kind).
        ValueError: a value outside its range.
    """

    max_tokens: int | None = None
    cfg_scale: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    cfg_filter_top_k: int | ModelDefault | None = MODEL_DEFAULT
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.min_tokens is not None:
            require_integer("min_tokens", self.min_tokens)
            if self.min_tokens < 0:
                raise ValueError(f"min_tokens must be at least 0, got {shown(self.min_tokens)}")
        if self.max_tokens is not None:
            require_integer("max_tokens", self.max_tokens)
        for name in ("cfg_scale", "temperature", "top_p"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _finite_float(name, value))
        scale, temperature, top_p, top_k = self.cfg_scale, self.temperature, self.top_p, self.cfg_filter_top_k
        if scale is not None and abs(scale) > MAX_SCALE:
            raise ValueError(f"cfg_scale must be in [-{MAX_SCALE:g}, {MAX_SCALE:g}], got {scale}")
        if temperature is not None and not 0 <= temperature <= MAX_SCALE:
            raise ValueError(f"temperature must be in [0, {MAX_SCALE:g}], got {temperature}")
        if temperature is not None and 0 < temperature < 1 / MAX_SCALE:
            raise ValueError(f"temperature must be 0 or at least {1 / MAX_SCALE:g}, got {temperature}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        if top_k is not None and top_k is not MODEL_DEFAULT:
            require_integer("cfg_filter_top_k", top_k)
            if top_k < 1:
                raise ValueError(f"cfg_filter_top_k must be >= 1, or None for all, got {shown(top_k)}")
        for name in ("max_tokens", "cfg_filter_top_k", "min_tokens"):
            if isinstance(value := getattr(self, name), numbers.Integral):  # numpy's may be too narrow for sums
                object.__setattr__(self, name, int(value))

    def resolve(self, defaults: Mapping[str, Any]) -> "ResolvedSamplingParams":
        """Every parameter as a number (or None for all candidates).

        Args:
            defaults: the model's own, some or none of them, by name. What they lack is the reference's.
        """
        given = {name: value for name, value in self._values().items() if value is not left_out(name)}
        return ResolvedSamplingParams(**{**defaults, **given})

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class ResolvedSamplingParams(SamplingParams):
    """Sampling parameters of which none is open. Its own defaults are the reference's, which hold for a model without
    others, the published Dia for instance.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    cfg_scale: float = 3.0
    temperature: float = 1.2
    top_p: float = 0.95
    cfg_filter_top_k: int | None = 45
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, value in self._values().items():
            if value is left_out(name):
                raise TypeError(f"{name} must be a number, got {shown(value)}")
        super().__post_init__()

    def rows(self, capacity: int, prompt_frames: int, max_delay: int) -> int:
        """Decoder rows of a request with this prompt, in a model of `capacity` rows. The reference's 3072 stands for as
        many as the model has where it has fewer.

        Raises:
            ValueError: more rows than the model has, or too few for one frame of sound.
        """
        rows = self.max_tokens
        if rows == DEFAULT_MAX_TOKENS:
            rows = min(rows, capacity)
        if rows > capacity:
            raise ValueError(f"max_tokens must be at most {capacity}, the decoder's positions, got {shown(rows)}")
        needed = prompt_frames + 1 + max_delay + 1
        if rows < needed:
            parts = f"{prompt_frames} prompt frames + 1 + {max_delay} rows of delay + 1 frame of sound"
            hint = "use a shorter audio prompt" if needed > capacity else "raise it"
            raise ValueError(f"max_tokens must be at least {needed} ({parts}), got {shown(rows)}; {hint}")
        room = rows - needed + 1
        if self.min_tokens > room:
            raise ValueError(
                f"min_tokens must be at most {room}, the frames that max_tokens leaves room for, "
                f"got {shown(self.min_tokens)}"
            )
        return rows


def defaults_within(defaults: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A model's own defaults where it has so many decoder rows: its `max_tokens` may have been written for more."""
    most = defaults.get("max_tokens")
    return {**defaults} if most is None else {**defaults, "max_tokens": min(most, rows)}


def check_seed(seed: Any) -> int:
    """A seed as the generator takes it.

    Raises:
        TypeError: not an integer.
        ValueError: outside [0, 2^63).
    """
    require_integer("seed", seed)
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, 2^63), got {shown(seed)}")
    return int(seed)


def require_integer(name: str, value: Any) -> None:
    """Raises TypeError for what is not an integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")


def left_out(name: str) -> ModelDefault | None:
    """The value that means "the model's default"."""
    return MODEL_DEFAULT if name == "cfg_filter_top_k" else None


def _finite_float(name: str, value: Any) -> float:
    number = real_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return number


def real_number(name: str, value: Any) -> float:
    """Any real number as a float; inf for what no float can hold.

    Raises:
        TypeError: no number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:  # 10**400 and the like
        return math.inf
