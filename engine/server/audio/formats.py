"""The encodings that a client may ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import ApiError

MIN_RATE, MAX_RATE = 8000, 96_000
DEFAULT_RATE = 24_000  # what OpenAI's clients take pcm to be
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
MP3_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
AAC_RATES = (*MP3_RATES, 64_000, 88_200, 96_000)
RATES = {"mp3": MP3_RATES, "aac": AAC_RATES, "opus": OPUS_RATES}
CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "ulaw": "audio/basic",
}


@dataclass(frozen=True)
class AudioFormat:
    """An encoding.

    Attributes:
        name: mp3, opus, aac, flac, wav, pcm or ulaw.
        sample_rate: in Hz.
        bit_rate: in bits per second, of those that have one; None for the encoder's own.
    """

    name: str
    sample_rate: int
    bit_rate: int | None = None

    def __post_init__(self) -> None:
        allowed = RATES.get(self.name)
        if allowed is not None and self.sample_rate not in allowed:
            rates = ", ".join(str(rate) for rate in allowed)
            raise ApiError(
                400, f"sample_rate of {self.name} must be one of {rates}, got {self.sample_rate}", param="sample_rate"
            )
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise ApiError(
                400, f"sample_rate must be in [{MIN_RATE}, {MAX_RATE}], got {self.sample_rate}", param="sample_rate"
            )

    @property
    def continued(self) -> "AudioFormat":
        """Of audio that goes on where other audio of this format has ended: a WAV's header comes once."""
        return replace(self, name="pcm") if self.name == "wav" else self

    @property
    def content_type(self) -> str:
        """As in the header."""
        return CONTENT_TYPES.get(self.name, f"audio/pcm;rate={self.sample_rate};channels=1")


def openai_format(name: str, sample_rate: int | None) -> AudioFormat:
    """What `response_format` and `sample_rate` of a request name.

    Raises:
        ApiError: 400.
    """
    if name not in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        raise ApiError(
            400, f"response_format must be mp3, opus, aac, flac, wav or pcm, got {name[:40]!r}", param="response_format"
        )
    default = 48_000 if name == "opus" else DEFAULT_RATE
    return AudioFormat(name, default if sample_rate is None else sample_rate)


def _elevenlabs_formats() -> Mapping[str, AudioFormat]:
    found = {f"pcm_{rate}": AudioFormat("pcm", rate) for rate in (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)}
    found |= {
        f"wav_{rate}": AudioFormat("wav", rate) for rate in (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
    }
    found |= {f"mp3_{rate}_{kbit}": AudioFormat("mp3", rate, 1000 * kbit)
              for rate, kbit in ((22_050, 32), (24_000, 48), (44_100, 32), (44_100, 64), (44_100, 96), (44_100, 128),
                                 (44_100, 192))}  # fmt: skip
    found |= {f"opus_48000_{kbit}": AudioFormat("opus", 48_000, 1000 * kbit) for kbit in (32, 64, 96, 128, 192)}
    return found | {"ulaw_8000": AudioFormat("ulaw", 8000)}


ELEVENLABS_FORMATS = _elevenlabs_formats()


def elevenlabs_format(name: str) -> AudioFormat:
    """What ElevenLabs' `output_format` names.

    Raises:
        ApiError: 400.
    """
    if name not in ELEVENLABS_FORMATS:
        known = ", ".join(ELEVENLABS_FORMATS)
        raise ApiError(400, f"output_format must be one of {known}, got {name[:40]!r}", param="output_format")
    return ELEVENLABS_FORMATS[name]
