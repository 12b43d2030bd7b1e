"""Speech at another speed and the same pitch, chunk by chunk: WSOLA.

Overlapping windows of the input are laid down `HOP_SECONDS` apart in the output. Each is taken near the place that the
speed asks for, where it fits best what would have followed the window before it (Verhelst and Roelands, "An overlap-add
technique based on waveform similarity", 1993). A window depends on samples alone and not on how they came, so any
chunks give the same output.
"""

import numpy as np

HOP_SECONDS = 0.020
SEARCH_SECONDS = 0.010  # to both sides
SHIFTED_SECONDS = 2 * HOP_SECONDS + SEARCH_SECONDS  # how far from its place something of the input can be heard


class TimeStretch:
    """Mono sound at `speed` times its pace."""

    def __init__(self, speed: float, sample_rate: int):
        """`speed` over 0; output is 1 / speed times as long, and comes at most 50 ms of input late."""
        self._speed = speed
        self._hop, self._search = round(HOP_SECONDS * sample_rate), round(SEARCH_SECONDS * sample_rate)
        self._fft = 1 << (2 * self._hop + 2 * self._search).bit_length()
        rise = np.arange(self._hop) + 0.5
        self._rise = (0.5 - 0.5 * np.cos(np.pi * rise / self._hop)).astype(np.float32)
        self._input = np.zeros(0, np.float32)
        self._start = 0  # of `_input` in the whole input
        self._received = self._emitted = self._window = 0
        self._place = 0  # in the whole input, of the last window
        self._tail = np.zeros(0, np.float32)  # second half of the last window, not faded

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take samples [n] float32 -> the output that is certain by now [m] float32."""
        self._input = np.concatenate([self._input, samples])
        self._received += len(samples)
        output = self._windows(self._received)
        self._emitted += len(output)
        return output

    def finish(self) -> np.ndarray:
        """The rest of the output: all together it is round(n / speed) samples long."""
        wanted = round(self._received / self._speed) - self._emitted
        padding = int(wanted * self._speed) + 4 * self._hop + 2 * self._search
        self._input = np.concatenate([self._input, np.zeros(padding, np.float32)])
        output = self._windows(self._received + padding)
        output = np.concatenate([output, self._tail])[:wanted]
        self._emitted += len(output)
        return output

    def _windows(self, available: int) -> np.ndarray:
        """Lay down the windows for which there is enough input."""
        parts = []
        while True:
            wanted = round(self._window * self._hop * self._speed)
            # The second: at a high speed a window is wider than what it stands for, which may be all that comes.
            if max(wanted + self._search + 2 * self._hop, (self._window + 1) * self._hop * self._speed) > available:
                break
            place = self._best_place(wanted) if self._window else 0
            window = self._taken(place, 2 * self._hop)
            head = window[: self._hop]
            if self._window:
                parts.append(self._tail * (1 - self._rise) + head * self._rise)
            else:
                parts.append(head)
            self._tail, self._place = window[self._hop :], place
            self._window += 1
            self._forget(min(place + self._hop, round(self._window * self._hop * self._speed) - self._search))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _best_place(self, wanted: int) -> int:
        """Where near `wanted` a window goes on best after the last one."""
        first = max(0, wanted - self._search)
        count = wanted + self._search - first + 1
        natural = self._tail.astype(np.float64)
        region = self._taken(first, count - 1 + self._hop).astype(np.float64)
        likeness = np.fft.irfft(np.fft.rfft(region, self._fft) * np.conj(np.fft.rfft(natural, self._fft)), self._fft)[
            :count
        ]
        squares = np.concatenate([[0.0], np.cumsum(np.square(region))])
        energy = squares[self._hop : self._hop + count] - squares[:count]
        return first + int(np.argmax(likeness / np.sqrt(np.maximum(energy, 1e-9))))

    def _taken(self, place: int, count: int) -> np.ndarray:
        return self._input[place - self._start : place - self._start + count]

    def _forget(self, place: int) -> None:
        """Drop the input before a place, if that is worth a copy."""
        if place - self._start > 65536:
            self._input = self._input[place - self._start :].copy()
            self._start = place
