"""The tensors of checkpoint files by name: safetensors and torch's own format, read without filling the memory."""

import errno
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..devices.device import DTYPES
from ..messages import first_line, listed, shown
from .paths import require_file
from .torch_file import TensorView, TorchFile

# Pages of a mapped file count as our memory once they were read, so a mapping is dropped before it has grown by this.
MAPPED_BYTES = 128 * 2**20
# The JSON at the head of a safetensors file, 100 bytes per tensor. Parsed, it takes many times its size.
MAX_HEADER_BYTES = 4 * 2**20

# How many times the bytes of a torch file its tensors may have together, since some may share theirs (tied weights),
# and bytes beyond that for small files. A view of a few bytes can have any shape.
MAX_SHARING = 2
SHARED_BYTES = 2**20

_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
# Where trainers put a state dict, and modules that wrap another and so appear inside its names.
_WRAPPING_KEYS = ("model", "state_dict", "model_state_dict", "module")
_WRAPPING_MODULES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


class Header(NamedTuple):
    """What a file says of a tensor. The dtype is safetensors' own word for it where no weight can have it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


class Checkpoint:
    """The tensors of some files by name. Names lose the parts that torch.compile and FSDP put into them."""

    def __init__(self, files: Sequence[Path], find_tensors: Callable[[Any], Any] | None = None):
        """Read the headers.

        Args:
            files: all files of one checkpoint.
            find_tensors: the dictionary of tensors in the content of a torch file, None if it is not there; by
                default what `find_state_dict` finds.

        Raises:
            FileNotFoundError: a file is absent.
            ValueError: no files, or a file that cannot be read; the message names it.
        """
        if not files:
            raise ValueError("no weight files given")
        paths = [Path(file) for file in files]
        self.title = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        self.headers: dict[str, Header] = {}
        self.duplicates: list[str] = []
        self._find_tensors = find_tensors or find_state_dict
        self._home: dict[str, tuple[Path, str]] = {}  # name -> its file, and its name there
        self._opened: dict[Path, _SafetensorsFile | _TorchTensors] = {}
        self._versions: dict[Path, tuple[int, ...]] = {}
        self._read_bytes = 0
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        for stored, header in self._open(path).headers().items():
            name = ".".join(part for part in stored.split(".") if part not in _WRAPPING_MODULES)
            if name in self._home:
                self.duplicates.append(f"{name} (in {self._home[name][0].name} and {path.name})")
            self._home[name], self.headers[name] = (path, stored), header

    def read(self, name: str) -> torch.Tensor:
        """A tensor in the memory of its file. It must be gone before the next is read, or its mapping stays.

        Raises:
            FileNotFoundError: the file has gone since its header was read.
            ValueError: it has changed since.
        """
        header = self.headers[name]
        size = math.prod(header.shape) * getattr(header.dtype, "itemsize", 8)
        if self._read_bytes + size > MAPPED_BYTES:
            self._opened = {path: file for path, file in self._opened.items() if not file.mapped}
            self._read_bytes = 0
        self._read_bytes += size
        path, stored = self._home[name]
        return self._open(path).tensor(stored)

    def _open(self, path: Path) -> "_SafetensorsFile | _TorchTensors":
        if path not in self._opened:
            require_file(path, "weight file")
            self._require_same_version(path)
            opened = open_tensors(path, self._find_tensors)
            self._require_same_version(path)  # it may have been replaced just before it was opened
            self._opened[path] = opened
        return self._opened[path]

    def _require_same_version(self, path: Path) -> None:
        """Check that a file is the one that was opened first: mappings are dropped, and the name is opened again.

        Raises:
            ValueError: another file has its name, or it was written to.
        """
        found = path.stat()
        version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._versions.setdefault(path, version) != version:
            raise ValueError(f"{path}: the file changed while it was read; load it again")


def require_fit(
    title: str,
    found: Mapping[str, Header],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    formats: Sequence[str] = (),
    duplicates: Sequence[str] = (),
) -> None:
    """Check that tensors are those that a model wants, all of them and no others.

    Args:
        title: what does not fit what, to begin the message with.
        found: what there is, by name.
        wanted: shape by name.
        formats: of quantized weights, which a header may have in place of a dtype.
        duplicates: names that are in several files.

    Raises:
        ValueError: missing, unexpected or duplicate names, other shapes or dtypes; all in one line, ten of a kind.
    """
    common = [(name, found[name], shape) for name, shape in wanted.items() if name in found]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "misshapen": [
            f"{name} {list(header.shape)} instead of {list(shape)}"
            for name, header, shape in common
            if header.shape != shape
        ],
        "not in float16, bfloat16 or float32": [
            f"{name} ({header.dtype})" for name, header, _ in common if header.dtype not in (*formats, *DTYPES.values())
        ],
        "duplicate": list(duplicates),
    }
    parts = [f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names]
    if parts:
        raise ValueError(f"{title}: {'; '.join(parts)}")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, with the permissions that a new file has.

    Raises:
        OSError: the disk is full or fails.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers wants to be told the framework
    except SafetensorError as error:  # its own class, for what the operating system refuses
        raise OSError(errno.EIO, first_line(error)) from None
    path.chmod(mode)  # safetensors 0.8 leaves files that only their owner can read


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating point tensor holds neither NaN nor infinity: one pass over it, without a copy."""
    return not tensor.numel() or all(map(math.isfinite, torch.stack(torch.aminmax(tensor)).tolist()))


def require_finite(name: str, tensor: torch.Tensor, source: str) -> None:
    """Check a tensor of `source`, by the name that it has there.

    Raises:
        ValueError: it has some.
    """
    if not is_finite(tensor):
        raise ValueError(f"{source}: {name} holds NaN or infinity; the file is damaged, or training went wrong")


def find_state_dict(content: object) -> dict[str, TensorView | torch.Tensor] | None:
    """The tensors of a torch file: the content itself, or what lies under a key that trainers use. Plain values beside
    tensors are left out. None if there are no tensors by name."""
    for _ in range(4):
        content = _unwrapped(content)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        return None
    return {name: value for name, value in content.items() if isinstance(value, (TensorView, torch.Tensor))} or None


def _unwrapped(content: object) -> object:
    if isinstance(content, dict):
        return next((content[key] for key in _WRAPPING_KEYS if isinstance(content.get(key), dict)), content)
    return content


def open_tensors(path: Path, find_tensors: Callable[[Any], Any]) -> "_SafetensorsFile | _TorchTensors":
    """The tensors of one file of weights, mapped and not read; every file that is read is opened here."""
    require_file(path, "weight file")
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _TorchTensors(path, find_tensors)


class _SafetensorsFile:
    mapped = True

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if MAX_HEADER_BYTES < length <= size - 8:
            raise ValueError(f"{path}: its header has {length} bytes, more than {MAX_HEADER_BYTES}")
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ValueError(f"{path}: truncated, damaged or no safetensors file ({first_line(error)})") from None

    def headers(self) -> dict[str, Header]:
        names = self._file.keys()
        slices = {name: self._file.get_slice(name) for name in names}
        return {
            name: Header(tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _TorchTensors:
    def __init__(self, path: Path, find_tensors: Callable[[Any], Any]):
        self._file = TorchFile(path)
        self.mapped = self._file.mapped
        found = find_tensors(self._file.content)
        if found is None:
            raise ValueError(f"{path}: expected a dictionary of tensors, found {_described(self._file.content)}")
        self._tensors: dict[str, TensorView | torch.Tensor] = found
        _require_own_bytes(path, self.headers())

    def headers(self) -> dict[str, Header]:
        return {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.tensor(self._tensors[name])


def _require_own_bytes(path: Path, headers: Mapping[str, Header]) -> None:
    """Check that tensors do not become far more than the file that they are in.

    Raises:
        ValueError: they would.
    """
    size = path.stat().st_size
    total = sum(math.prod(header.shape) * getattr(header.dtype, "itemsize", 8) for header in headers.values())
    if total > MAX_SHARING * size + SHARED_BYTES:
        raise ValueError(f"{path}: its tensors share their numbers: they have {shown(total)} bytes, the file {size}")


def _described(content: object) -> str:
    if isinstance(content, dict):
        return f"one with the keys {listed([str(key)[:60] for key in content])}" if content else "an empty one"
    return "a tensor" if isinstance(content, (TensorView, torch.Tensor)) else f"a {type(content).__name__}"
