"""Global and shared memory. Every access is checked for bounds and alignment before it happens."""

import bisect
import ctypes
from dataclasses import dataclass

import numpy as np

from .errors import EmulationError
from .numeric import I64, U8, UNSIGNED


@dataclass(frozen=True)
class Region:
    """A buffer of the process that a launch was given."""

    name: str
    start: int
    end: int
    data: np.ndarray  # its bytes
    early: bool  # may be read before griddepcontrol.wait


class GlobalMemory:
    """The buffers that a launch may touch, by address."""

    def __init__(self) -> None:
        self._regions: dict[int, Region] = {}
        self._starts: list[int] = []

    def add(self, name: str, start: int, size: int, early: bool = False) -> None:
        """Let kernels use `size` bytes from address `start`, which the caller keeps alive.

        Args:
            early: whether a dependent launch may read them before it waits. If two arguments share a buffer, one
                suffices.

        Raises:
            ValueError: the address is not a multiple of 16.
        """
        if start % 16:
            raise ValueError(f"{name} must start at a multiple of 16 bytes, got address {start:#x}")
        if size == 0:
            return
        known = self._regions.get(start)
        data = np.frombuffer((ctypes.c_uint8 * size).from_address(start), dtype=U8)
        self._regions[start] = Region(name, start, start + size, data, early or bool(known and known.early))
        self._starts = sorted(self._regions)

    def load(self, addresses: np.ndarray, width: int, count: int, early: np.ndarray | None = None) -> np.ndarray:
        """`count` elements of `width` bytes from each address, [N, count] unsigned.

        Args:
            addresses: [N] uint64.
            early: [N] bool, which threads have not waited; None if all have.
        """
        result = np.empty((len(addresses), count), UNSIGNED[width])
        for chosen, region in self._by_region(addresses, width * count):
            if early is not None and not region.early and early[chosen].any():
                raise EmulationError(f"reads {region.name} before griddepcontrol.wait")
            elements, places = _elements(region.data, width, addresses[chosen] - np.uint64(region.start), count)
            result[chosen] = elements[places]
        return result

    def store(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write values [N, count] to addresses [N]; of two threads at one address the later wins."""
        width, count = values.dtype.itemsize, values.shape[1]
        for chosen, region in self._by_region(addresses, width * count):
            elements, places = _elements(region.data, width, addresses[chosen] - np.uint64(region.start), count)
            elements[places] = values[chosen]

    def _by_region(self, addresses: np.ndarray, size: int):
        """(which addresses, their region) for every region that is touched."""
        if (addresses & np.uint64(size - 1)).any():
            raise EmulationError(f"misaligned access of {size} bytes to global memory")
        first = self._region(int(addresses.min()))
        if int(addresses.max()) + size <= first.end:
            yield slice(None), first
            return
        left = np.ones(len(addresses), bool)
        while left.any():
            region = self._region(int(addresses[left].min()))
            chosen = left & (addresses < region.end)
            if int(addresses[chosen].max()) + size > region.end:
                raise EmulationError(f"{size} bytes past the end of {region.name}")
            yield chosen, region
            left &= ~chosen

    def _region(self, address: int) -> Region:
        place = bisect.bisect_right(self._starts, address) - 1
        region = self._regions[self._starts[place]] if place >= 0 else None
        if region is None or address >= region.end:
            raise EmulationError(f"address {address:#x} is in no tensor of the launch")
        return region


class SharedMemory:
    """`size` bytes for each of several programs. They start as NaN: whoever reads what nobody wrote, shows it."""

    def __init__(self, size: int, program_of_thread: np.ndarray) -> None:
        self.size = size
        self._stride = -(-size // 16) * 16
        self._bases = program_of_thread.astype(I64) * self._stride
        self._data = np.full((int(program_of_thread.max()) + 1) * max(self._stride, 16), 0xFF, U8)

    def load(self, threads, addresses: np.ndarray, width: int, count: int) -> np.ndarray:
        """`count` elements of `width` bytes for each thread, [N, count] unsigned.

        Args:
            threads: their indices [N], or a slice.
            addresses: [N] uint32, within a program's memory.
        """
        elements, places = _elements(self._data, width, self._places(threads, addresses, width * count), count)
        return elements[places]

    def store(self, threads, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write values [N, count]; of two threads at one address the later wins."""
        width, count = values.dtype.itemsize, values.shape[1]
        elements, places = _elements(self._data, width, self._places(threads, addresses, width * count), count)
        elements[places] = values

    def _places(self, threads, addresses: np.ndarray, size: int) -> np.ndarray:
        addresses = addresses.astype(I64)
        if (addresses & (size - 1)).any():
            raise EmulationError(f"misaligned access of {size} bytes to shared memory")
        if int(addresses.max()) + size > self.size:
            raise EmulationError(f"{size} bytes at {addresses.max()} are past the end of shared memory, {self.size}")
        return addresses + self._bases[threads]


def _elements(data: np.ndarray, width: int, offsets: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory as elements of `width` bytes, and the places [N, count] of those that start at byte offsets [N]."""
    elements = data[: len(data) // width * width].view(UNSIGNED[width])
    places = (offsets.astype(I64) // width)[:, None]
    return elements, places if count == 1 else places + np.arange(count)
