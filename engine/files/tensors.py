"""The tensors of checkpoint files by name: safetensors and torch's own format, read without filling the memory."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

# Pages of a mapped file count as our memory once they were read, so a mapping is dropped before it has grown by this.
MAPPED_BYTES = 128 * 2**20

_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_LFS_POINTER = b"version https://git-lfs"


class Header(NamedTuple):
    """What a file says of a tensor. The dtype is safetensors' own word for it where no weight can have it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


class Checkpoint:
    """The tensors of some files by name."""

    def __init__(self, files: Sequence[Path]):
        if not files:
            raise ValueError("no weight files given")
        paths = [Path(file) for file in files]
        self.title = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        self.headers: dict[str, Header] = {}
        self.duplicates: list[str] = []
        self._home: dict[str, Path] = {}
        self._opened: dict[Path, _SafetensorsFile | _TorchFile] = {}
        self._read_bytes = 0
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        for name, header in self._open(path).headers().items():
            if name in self._home:
                self.duplicates.append(f"{name} (in {self._home[name].name} and {path.name})")
            self._home[name], self.headers[name] = path, header

    def read(self, name: str) -> torch.Tensor:
        """A tensor in the memory of its file. It must be gone before the next is read, or its mapping stays."""
        header = self.headers[name]
        size = math.prod(header.shape) * header.dtype.itemsize
        if self._read_bytes + size > MAPPED_BYTES:
            self._opened = {path: file for path, file in self._opened.items() if not file.mapped}
            self._read_bytes = 0
        self._read_bytes += size
        return self._open(self._home[name]).tensor(name)

    def _open(self, path: Path) -> "_SafetensorsFile | _TorchFile":
        if path not in self._opened:
            self._opened[path] = _open_file(path)
        return self._opened[path]


def _open_file(path: Path) -> "_SafetensorsFile | _TorchFile":
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _TorchFile(path)


class _SafetensorsFile:
    mapped = True

    def __init__(self, path: Path):
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ValueError(f"{path}: truncated, damaged or no safetensors file ({_first_line(error)})") from error

    def headers(self) -> dict[str, Header]:
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}
        return {
            name: Header(tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _TorchFile:
    def __init__(self, path: Path):
        self.mapped = zipfile.is_zipfile(path)
        try:
            content = torch.load(path, map_location="cpu", mmap=self.mapped, weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can fail with any error, OSError (EINVAL) among them
            raise ValueError(f"{path}: damaged, or not a file of tensors only ({_first_line(error)})") from error
        self._tensors = _state_dict(content)
        if self._tensors is None:
            raise ValueError(f"{path}: expected a dictionary of tensors, found something else")

    def headers(self) -> dict[str, Header]:
        return {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()


def _state_dict(content: object) -> dict[str, torch.Tensor] | None:
    """The tensors of a loaded file, which trainers put under "model" or "state_dict"; None if there are none."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        return None
    pairs = content.items()
    return content if all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in pairs) else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
