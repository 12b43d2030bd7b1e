"""Files of `torch.save`, read without running anything in them: plain values, and tensors that are mapped into memory.

`torch.load(weights_only=True)` is safe from code, but not from a file that asks for memory or whose members are
compressed or shorter than their tensors, which a memory map turns into noise. So the pickle inside is looked through
first: its opcodes, the globals that it names, and whether each storage is as long as its bytes.
"""

import io
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, NamedTuple, cast

import torch

from ..messages import LONGEST_PATH, first_line, shown

# A checkpoint of Dia has 343 tensors in 90 KB and 10,000 opcodes. These bound time and memory for any file.
MAX_PICKLE_BYTES = 16 * 2**20
MAX_OPCODES = 500_000
MAX_DIMS = 16
MAX_INTEGER_KEY = 2**48  # old optimizers used addresses

# What torch.save writes. Python's memo is a table by number, so numbers are bounded too.
_OPCODE_NAMES = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING BINSTRING "
    "EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT "
    "BINGET LONG_BINGET GLOBAL REDUCE BUILD BINPERSID"
)
_OPCODES = frozenset(_OPCODE_NAMES.split())
_UNUSABLE = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor of torch",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no numbers",
}
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}  # fmt: skip


class TorchFileError(ValueError):
    """Why a file cannot be read, without its name."""


class Storage(NamedTuple):
    """The bytes that tensors share, by their name in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class TensorView(NamedTuple):
    """A tensor as a file describes it. Offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class TorchFile:
    """One file of `torch.save`, zipped or in the format before torch 1.6.

    Attributes:
        content: what was saved, with a `TensorView` in place of each tensor; in the old format the tensors themselves.
        mapped: whether tensors are read from a memory map; the old format is held whole.

    Raises:
        ValueError: damaged, compressed, not written by torch.save, or with more than tensors and plain values; the
            message names the file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self.mapped = zipfile.is_zipfile(path)
        try:
            if self.mapped:
                self._archive = _Archive(path)
                self.content: Any = self._archive.content
            else:
                self.content = _load_legacy(path)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # a damaged file can fail with any error, OSError (EINVAL) among them
            reason = first_line(error)[:LONGEST_PATH]  # it may quote the file
            raise ValueError(f"{path}: damaged, or not a file of tensors only ({reason})") from None

    def tensor(self, stored: "TensorView | torch.Tensor") -> torch.Tensor:
        """A tensor of `content`, in the memory of the file."""
        return self._archive.tensor(stored) if isinstance(stored, TensorView) else stored.detach()


class _Archive:
    """The zip format: a pickle `data.pkl`, and each storage as a member of its own."""

    def __init__(self, path: Path):
        with zipfile.ZipFile(path) as archive:
            members = _plain_members(archive)
            pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise TorchFileError("a zip without data.pkl, not written by torch.save")
            folder = pickles[0].removesuffix("data.pkl")
            _require_byte_order(archive, members.get(f"{folder}byteorder"))
            with archive.open(pickles[0]) as stream:
                outline = _Outline(_one_pickle(stream))
        self.content = outline.load()
        with path.open("rb") as file:
            self._starts = {
                key: _data_start(file, members.get(f"{folder}data/{key}"), storage)
                for key, storage in outline.storages.items()
            }
        mapped = cast(
            torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        )
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu").set_(mapped)

    def tensor(self, view: TensorView) -> torch.Tensor:
        start = self._starts[view.storage.key]
        part = self._bytes[start : start + view.storage.nbytes]
        if start % view.dtype.itemsize:  # torch.save aligns by 64 bytes, other writers need not
            part = part.clone()
        return part.view(view.dtype)[view.offset :].as_strided(view.shape, view.strides)


def _plain_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise TorchFileError(f"{member.filename} in it is compressed, which torch.save never does; save it anew")
        if member.filename in members:
            raise TorchFileError(f"{member.filename} is in it twice")
        members[member.filename] = member
    return members


def _require_byte_order(archive: zipfile.ZipFile, member: zipfile.ZipInfo | None) -> None:
    """Check that numbers are laid out as in this machine. A file without the member is older than it.

    Raises:
        TorchFileError: they are not.
    """
    ours = sys.byteorder.encode()
    # Its size comes first: the whole of a member would be read, however long.
    if member is not None and (member.file_size != len(ours) or archive.read(member) != ours):
        raise TorchFileError(f"its numbers are not {sys.byteorder}-endian as this machine's are")


def _data_start(file: BinaryIO, member: zipfile.ZipInfo | None, storage: Storage) -> int:
    """Where a storage's bytes begin: behind the member's own header, whose length the directory does not tell."""
    if member is None or member.file_size != storage.nbytes:
        held = "is missing" if member is None else f"has {member.file_size} bytes"
        raise TorchFileError(f"tensor data {shown(storage.key)} {held} and should have {storage.nbytes}")
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise TorchFileError(f"{member.filename} in it has no header")
    start = member.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    if start + member.file_size > file.seek(0, io.SEEK_END):
        raise TorchFileError(f"{member.filename} in it reaches over the end")
    return start


def _load_legacy(path: Path) -> Any:
    """The format before torch 1.6: five pickles (magic number, version, machine, content, keys), then the data."""
    with path.open("rb") as file:
        outlines = [_Outline(_one_pickle(file)) for _ in range(5)]
        *_, keys = [outline.load() for outline in outlines]
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise TorchFileError("its tensor data is named in an unknown way")
    wanted, size = sum(storage.nbytes for storage in outlines[3].storages.values()), path.stat().st_size
    if wanted > size:
        raise TorchFileError(f"truncated: it has {size} bytes, its tensors {wanted}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _one_pickle(stream: BinaryIO | IO[bytes]) -> io.BytesIO:
    """The bytes of the next pickle, once each of its opcodes is known to be one that torch.save writes."""
    start = stream.tell()
    data = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise TorchFileError(f"it holds more than tensors and plain values: pickle opcode {opcode.name}")
        if count > MAX_OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > MAX_OPCODES):
            raise TorchFileError(f"its pickle has more than {MAX_OPCODES} opcodes")
    stream.seek(start + data.tell())
    return io.BytesIO(data.getvalue()[: data.tell()])


class _Outline(pickle._Unpickler):  # the one in Python: the one in C has no place for a check of keys
    """Reads a pickle's values, and a `TensorView` for each tensor. Nothing that the pickle names is called.

    Raises:
        TorchFileError: from `load`, for what no file of tensors and plain values has.
    """

    stack: list[Any]

    def __init__(self, stream: BinaryIO):
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        what = _UNUSABLE.get(name) or shown(f"{module}.{name}")[1:-1]
        raise TorchFileError(f"it holds more than tensors and plain values: {what}")

    def persistent_load(self, description: Any) -> Storage:
        kind, dtype, key, _, numel, *_ = description
        if kind != "storage" or type(dtype) is not torch.dtype or type(key) is not str:
            raise TorchFileError("its tensor data is described in an unknown way")
        if type(numel) is not int or not 0 <= numel < 2**48:
            raise TorchFileError(f"tensor data {shown(key)} has {shown(numel)} elements")
        storage = Storage(key, dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise TorchFileError(f"tensor data {shown(key)} is described in two ways")
        return storage

    def load_setitem(self) -> None:
        self._set_items(pickle.SETITEM, [self.stack[-2]])

    def load_setitems(self) -> None:
        self._set_items(pickle.SETITEMS, self.stack[::2])  # the stack begins at the last mark

    def load_build(self) -> None:
        """Drop the attributes of a state dict. Others would be set, those of our own stand-ins among them."""
        if type(self.stack[-2]) is not _PlainDict:
            raise TorchFileError("it holds more than tensors and plain values: attributes")
        self.stack.pop()

    def _set_items(self, opcode: bytes, keys: list[Any]) -> None:
        for key in keys:
            _require_plain_key(key)
        cast(Callable[[Any], None], pickle._Unpickler.dispatch[opcode[0]])(self)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BUILD[0]: load_build,
    }


def _require_plain_key(key: Any) -> None:
    """Check that a key is hashed at once and unlike others: a tuple of tuples of one tuple can take forever, and
    integers can be made to share one hash from 2**61 on."""
    if type(key) is not str and (type(key) is not int or abs(key) >= MAX_INTEGER_KEY):
        what = "a large integer" if type(key) is int else f"a {type(key).__name__}"
        raise TorchFileError(f"{what} is the key of a dictionary in it")


class _PlainDict(OrderedDict):
    """A state dict without the attributes that torch pickles along."""


def _empty_dict() -> _PlainDict:
    return _PlainDict()


def _size(dims: tuple[int, ...]) -> tuple[int, ...]:
    if type(dims) is not tuple or len(dims) > MAX_DIMS:  # torch.Size copies it
        raise TorchFileError(f"a shape is not a tuple of at most {MAX_DIMS} sizes")
    return dims


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> TensorView:
    return _view(storage, offset, shape, strides, storage.dtype)


def _tensor_v3(
    storage: Storage, offset: int, shape: tuple, strides: tuple, grad: bool, hooks: Any, dtype: torch.dtype, *rest: Any
) -> TensorView:
    return _view(storage, offset, shape, strides, dtype)


def _parameter(data: TensorView, *rest: Any) -> TensorView:
    return data


def _view(storage: Storage, offset: int, shape: tuple, strides: tuple, dtype: torch.dtype) -> TensorView:
    """A tensor, once it is known to lie inside its storage."""
    sizes = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in sizes):
        raise TorchFileError(f"a tensor has shape {shown(shape)}, strides {shown(strides)} and offset {shown(offset)}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements, odd_bytes = divmod(storage.nbytes, dtype.itemsize)
    if odd_bytes or offset > elements or (0 not in shape and last >= elements):
        raise TorchFileError(f"a tensor of shape {shown(shape)} reaches over its {storage.nbytes} bytes")
    return TensorView(storage, offset, shape, strides, dtype)


_STAND_INS = {
    ("collections", "OrderedDict"): _empty_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
