"""Decodes codes to audio in windows: a chunk's frames, and the context on both sides that its samples depend on.

On a GPU a window is decoded on its own CUDA stream, concurrently with decode steps, and windows of prepared lengths are
captured in CUDA graphs: launching the codec's 150 small kernels one by one would delay the steps. On a CPU a window is
computed in tiles, which skip the samples that are not emitted.
"""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from ..devices.cuda_graph import GraphPool, lacks_memory
from ..devices.precision import full_float32
from ..devices.refusal import Refusal
from ..devices.workers import Job
from .dac import Codec
from .receptive_field import ReceptiveField, receptive_field
from .tiles import Pieces, finished

logger = logging.getLogger(__name__)

# A caller may ask for any chunk sizes. Windows of other lengths are decoded without a graph.
MOST_GRAPHS = 64
LONGEST_GRAPH = 256  # frames
PRIORITY = -1  # CUDA stream priority above that of the steps: windows are short, and latency matters


class HostCopy:
    """An asynchronous copy of a tensor to the host, enqueued on the current stream."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor, self._done = tensor, None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def ready(self) -> bool:
        return self._done is None or self._done.query()

    def wait(self) -> torch.Tensor:
        """The copy, on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensor

    def cancel(self) -> None:
        """Does nothing; as `Job.cancel`."""


Decoded = HostCopy | Job[torch.Tensor]  # a future: the samples of a window that is being decoded


class CodeWindows:
    """The window decoder of an engine without a codec, which returns the codes; base class of the others."""

    receptive_field = ReceptiveField(0, 0)

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device, priority=PRIORITY) if device.type == "cuda" else None

    @property
    def holds_up_steps(self) -> bool:
        """Whether `decode` blocks the calling thread until the audio is computed."""
        return self._stream is None

    def prepare(self, lengths: Iterable[int]) -> None:
        """Prepare for windows of these lengths in frames."""

    def on_stream(self) -> AbstractContextManager[object]:
        """Context for reading codes and calling `decode`: on a GPU makes the decoder's CUDA stream current."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def widened(self, start: int, stop: int) -> int:
        """The frame at which to start a window for the frames [start, stop): `start`, or earlier if that is faster."""
        return start

    def decode(self, codes: torch.Tensor, first: int, last: int | None) -> HostCopy:
        """Decode a window.

        Args:
            codes: [W, C] int64 in [0, codebook size), on the device.
            first, last: frames [first, last) of the window whose audio is returned; last None is the end of the audio.

        Returns:
            a future of samples [n] float32, or of codes [n, C] int64 without a codec.
        """
        return HostCopy(codes[first:last])

    def pieces(self, codes: torch.Tensor, first: int, last: int | None) -> Pieces:
        """`decode` on a CPU as an interruptible computation: does part of the work between two yields and returns the
        samples. It may be resumed in different threads, one at a time."""
        yield
        return codes[first:last]

    def to_host(self, codes: torch.Tensor) -> HostCopy:
        """Copy codes to the host asynchronously."""
        return HostCopy(codes)

    def samples(self, decoded: Decoded) -> np.ndarray:
        """Wait for a window's samples, check and copy them.

        Raises:
            Exception: what decoding or `check` raised.
        """
        made = decoded.wait().numpy().copy()  # a copy: this may be a view of a larger or pinned buffer
        self.check(made)
        return made

    def check(self, piece: np.ndarray) -> None:
        """Check decoded samples on the host.

        Raises:
            RuntimeError: they are NaN or infinite.
        """


class ContextCodes(CodeWindows):
    """Returns the codes of a window with their context, for a caller that decodes them itself (see `ScriptTask`)."""

    def __init__(self, of: CodeWindows):
        self.receptive_field, self._of = of.receptive_field, of

    def on_stream(self) -> AbstractContextManager[object]:
        return self._of.on_stream()

    def decode(self, codes: torch.Tensor, first: int, last: int | None) -> HostCopy:
        """The codes from frame `first` to the end of the window; `last` is ignored, so that the context is included."""
        return HostCopy(codes[first:])


class SoundWindows(CodeWindows):
    """Decodes windows with a codec."""

    def __init__(self, codec: Codec):
        super().__init__(codec.device)
        self.codec = codec
        self.receptive_field = receptive_field(codec.decoder)
        self._graphs: dict[int, _Graph] = {}
        self._pool: GraphPool | None = None
        self._refusal = Refusal(logger)  # of memory for graphs

    def prepare(self, lengths: Iterable[int]) -> None:
        """On a GPU capture a graph for each length that has none yet, all in one memory pool, if there is memory for
        it."""
        missing = {length for length in lengths if length <= LONGEST_GRAPH} - set(self._graphs)
        if self._stream is None or not missing or self._refusal.holds:
            return
        self._pool = self._pool or GraphPool(self.codec.device, priority=PRIORITY, dependent_launches=False)
        for length in sorted(missing, reverse=True)[: MOST_GRAPHS - len(self._graphs)]:
            try:
                self._graphs[length] = _Graph(self.codec, length, self._pool)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                self._refusal.note("no memory for a graph of windows of %d frames: they take longer", length)

    def widened(self, start: int, stop: int) -> int:
        """The last window of a sound may have any length: with more frames before it it may be a captured one."""
        return widened(start, stop, self._graphs)

    def decode(self, codes: torch.Tensor, first: int, last: int | None) -> HostCopy:
        if self._stream is None:
            with torch.autocast(self.codec.device.type, enabled=False), full_float32():
                return HostCopy(finished(self.pieces(codes, first, last)))
        graph = self._graphs.get(codes.shape[0])
        waveform = self.codec.synthesize(codes.to(self.codec.device)) if graph is None else graph.replay(codes)
        hop = self.codec.hop_length
        # Not a multiple of the length from the end: a codec of odd strides drops samples there.
        return HostCopy(waveform[first * hop : None if last is None else last * hop])

    def pieces(self, codes: torch.Tensor, first: int, last: int | None) -> Pieces:
        codec, hop = self.codec, self.codec.hop_length
        latent = codec.quantizer.decode(codes.to(codec.device)).to(codec.dtype)
        waveform = yield from codec.decoder.tiled.pieces(latent, first * hop, None if last is None else last * hop)
        return waveform[0, 0].float()

    def check(self, piece: np.ndarray) -> None:
        self.codec.check_samples(piece)


class _Graph:
    """The codec captured for windows of one length."""

    def __init__(self, codec: Codec, length: int, pool: GraphPool):
        self._codes = torch.zeros((length, codec.num_codebooks), dtype=torch.int64, device=codec.device)
        self._waveform = torch.zeros_like(codec.synthesize(self._codes))

        def work() -> None:
            self._waveform.copy_(codec.synthesize(self._codes))

        self._graph = pool.capture(work)

    def replay(self, codes: torch.Tensor) -> torch.Tensor:
        """The waveform, valid until the next replay on this stream."""
        self._codes.copy_(codes)
        self._graph.replay()
        return self._waveform


def widened(start: int, stop: int, lengths: Iterable[int]) -> int:
    """The start of the shortest window of one of `lengths` that ends at `stop` and holds `start`, if there is one."""
    fitting = [length for length in lengths if stop - start <= length <= stop]
    return stop - min(fitting) if fitting else start
