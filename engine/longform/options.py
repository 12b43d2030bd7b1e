"""What a caller may give and ask for beside the sampling of a script."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from ..audio.loudness import require_meter
from ..messages import shown
from ..runtime.prompts import AudioPrompt
from ..sampling_params import real_number
from .planning.source import Flush

Value = TypeVar("Value")
PerText: TypeAlias = Value | Sequence[Value]
Text: TypeAlias = str | Sequence[str] | Iterator[str | Flush] | AsyncIterator[str | Flush]
OnePrompt: TypeAlias = AudioPrompt | Mapping[str, AudioPrompt]
AudioPrompts: TypeAlias = OnePrompt | Sequence[OnePrompt | None] | None
Transcript: TypeAlias = str | Mapping[str, str]
Transcripts: TypeAlias = Transcript | Sequence[Transcript | None] | None

FADE_SECONDS, SILENT_SECONDS = 0.010, 0.020  # in which a cut end fades, and the silence that ends it
SLOWEST, FASTEST = 0.25, 4.0
LONGEST_SILENCE = 60.0
QUIETEST, LOUDEST = -70.0, 0.0  # LUFS; what is quieter, BS.1770 takes for silence


@dataclass(frozen=True)
class SpeechOptions:
    """Attributes:
        split: whether a script that is too long for the model to speak well is planned in pieces.
        speed: pace of the speech, at the same pitch.
        pause: silence between turns in seconds, in addition to what the model makes; turns are then pieces.
        tail_silence: silence at the end in seconds.
        trim_cut_end: whether sound that `max_tokens` cut loses its last frames, which forced rows damage, and fades
            out. None: of planned scripts.
        closing_tag: whether the next speaker's tag ends the text of every piece. None: planned scripts of Dia.
        loudness: of the whole sound in LUFS. None: as the model made it.

    Raises:
        TypeError, ValueError: a value of another kind, or out of range.
        RuntimeError: a loudness without the package that measures it.
    """

    split: bool = True
    speed: float = 1.0
    pause: float = 0.0
    tail_silence: float = 0.0
    trim_cut_end: bool | None = None
    closing_tag: bool | None = None
    loudness: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.split, bool):
            raise TypeError(f"split must be True or False, got {shown(self.split)}")
        for name in ("trim_cut_end", "closing_tag"):
            if not (getattr(self, name) is None or isinstance(getattr(self, name), bool)):
                raise TypeError(f"{name} must be True, False or None, got {shown(getattr(self, name))}")
        for name, least, most in (
            ("speed", SLOWEST, FASTEST), ("pause", 0.0, LONGEST_SILENCE), ("tail_silence", 0.0, LONGEST_SILENCE)
        ):  # fmt: skip
            value = real_number(name, getattr(self, name))
            if not least <= value <= most:
                raise ValueError(f"{name} must be in [{least:g}, {most:g}], got {shown(getattr(self, name))}")
            object.__setattr__(self, name, value)
        if self.loudness is not None:
            self._check_loudness()

    def _check_loudness(self) -> None:
        value = real_number("loudness", self.loudness)
        if not QUIETEST <= value <= LOUDEST:
            raise ValueError(f"loudness must be in [{QUIETEST:g}, {LOUDEST:g}] LUFS, got {shown(self.loudness)}")
        object.__setattr__(self, "loudness", value)
        require_meter()

    @property
    def changes_sound(self) -> bool:
        """Whether a script that is not planned sounds otherwise than as the model made it."""
        return self.speed != 1 or self.tail_silence > 0 or bool(self.trim_cut_end) or self.loudness is not None

    @property
    def changes_text(self) -> bool:
        """Whether a short script is not generated as it is."""
        return bool(self.closing_tag) or self.pause > 0
