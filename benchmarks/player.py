"""What a listener hears of a stream: the definitions that all benchmarks of concurrent streams share.

Times are seconds since the request was made, which in an open loop is when it was due, whether or not anything was
ready for it. A player starts with the first chunk and takes samples at their rate:

    first audio     when the first chunk with samples arrives
    audible         when the player reaches the first sample that can be heard: two windows of 20 ms in a row, 10 ms
                    apart, above -45 dBFS, their mean removed
    underrun        a chunk arrives after the player has played all that came before it; it goes on with that chunk
    stalled         how long the player stood still in underruns
    kept            a stream that ended well and had no underrun

These are the definitions of nari-labs/benchmarks (tts-bench), so that figures can stand beside its tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW_SECONDS, HOP_SECONDS, AUDIBLE_DBFS = 0.020, 0.010, -45.0


@dataclass(frozen=True)
class Heard:
    """A stream as its listener had it; times in seconds since the request was made.

    Attributes:
        first_audio: None if there was no sample.
        audible: None if nothing could be heard.
        end: when the stream had ended, or failed.
        duration: seconds of audio.
        underruns, stalled: how often, and how long, the player stood still.
        error: what went wrong; empty if nothing did.
    """

    first_audio: float | None
    audible: float | None
    end: float
    duration: float
    underruns: int
    stalled: float
    error: str = ""

    @property
    def kept(self) -> bool:
        return not (self.error or self.underruns) and self.first_audio is not None


def heard(chunks: Sequence[tuple[float, np.ndarray]], sample_rate: int, end: float, error: str = "") -> Heard:
    """Play a stream in simulation.

    Args:
        chunks: arrival, and samples [n] float32 in [-1, 1], of each chunk in order.
        sample_rate: in Hz.
        end: when the stream had ended.
        error: what it ended with.
    """
    chunks = [(arrival, samples) for arrival, samples in chunks if len(samples)]
    if not chunks:
        return Heard(None, None, end, 0.0, 0, 0.0, error)
    onset = audible_from(np.concatenate([samples for _, samples in chunks]), sample_rate)
    underruns, stalled, audible, given = 0, 0.0, None, 0
    dry = chunks[0][0]  # when the player has played all that has arrived
    for arrival, samples in chunks:
        if arrival > dry:
            underruns, stalled, dry = underruns + 1, stalled + arrival - dry, arrival
        if onset is not None and given <= onset < given + len(samples):
            audible = dry + (onset - given) / sample_rate
        dry += len(samples) / sample_rate
        given += len(samples)
    return Heard(chunks[0][0], audible, end, given / sample_rate, underruns, stalled, error)


def audible_from(audio: np.ndarray, sample_rate: int) -> int | None:
    """The sample [n] from which on audio can be heard, None if none."""
    window, hop = round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    if len(audio) < window:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
    loud = windows.std(axis=1) >= 10 ** (AUDIBLE_DBFS / 20)
    (onsets,) = np.nonzero(loud[:-1] & loud[1:])
    return int(onsets[0]) * hop if len(onsets) else None


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 by nearest rank; None of no values."""
    ordered = sorted(values)
    ranks = {percent: math.ceil(percent * len(ordered) / 100) for percent in (50, 95, 99)}
    return {f"p{percent}": ordered[rank - 1] if ordered else None for percent, rank in ranks.items()}


def summary(streams: Sequence[Heard], starts: Sequence[float]) -> dict:
    """The figures of some streams.

    Args:
        streams: of which there is one at least.
        starts: when the request of each was made, on one clock.
    """
    failed = [stream for stream in streams if stream.error]
    span = max(start + stream.end for start, stream in zip(starts, streams, strict=True)) - min(starts)
    return {
        "requests": len(streams),
        "failed": len(failed),
        "kept": sum(stream.kept for stream in streams),
        "underrun_share": sum(stream.underruns > 0 for stream in streams) / len(streams),
        "stalled_seconds": sum(stream.stalled for stream in streams),
        "first_audio_seconds": percentiles([each.first_audio for each in streams if each.first_audio is not None]),
        "audible_seconds": percentiles([each.audible for each in streams if each.audible is not None]),
        "end_seconds": percentiles([stream.end for stream in streams if not stream.error]),
        "audio_seconds": sum(stream.duration for stream in streams),
        "span_seconds": span,
        "times_real_time": sum(stream.duration for stream in streams) / span,
        "peak_streams": _most_at_once(streams, starts),
        "errors": sorted({stream.error for stream in failed}),
    }


def _most_at_once(streams: Sequence[Heard], starts: Sequence[float]) -> int:
    changes = [(start, 1) for start in starts]
    changes += [(start + stream.end, -1) for start, stream in zip(starts, streams, strict=True)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
