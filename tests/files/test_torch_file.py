"""Files of torch.save that are damaged, odd or hostile: one line that names the file, and no noise, code or flood."""

import io
import os
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dia_engine.files.paths import read_json, require_file, user_path, user_target
from dia_engine.files.tensors import Checkpoint
from dia_engine.files.torch_file import TorchFile

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def refuses(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Checkpoint([path])
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 400 + len(str(path)) and "\n" not in message
    assert "weights_only" not in message and "\x1b" not in message


def rewritten(path: Path, change) -> Path:
    """A saved file whose members went through `change(name, data)`, each stored as it is."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            data = change(name, data)
            if data is not None:
                new.writestr(name, data)
    return path


def test_reads_what_torch_reads(tmp_path):
    base = torch.arange(24.0)
    tensors = {
        "view": base.view(4, 6)[1:3, ::2],
        "transposed": base.view(4, 6).T,
        "shared": base[5:],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "flags": torch.tensor([True, False]),
        "float8": torch.randn(6).to(torch.float8_e4m3fn),
        "expanded": torch.ones(1).expand(7),
    }
    torch.save(tensors, tmp_path / "a.pth")
    found = Checkpoint([tmp_path / "a.pth"])
    for name, tensor in tensors.items():
        assert found.headers[name] == (tuple(tensor.shape), tensor.dtype)
        read = found.read(name)
        assert torch.equal(read.float(), tensor.float()) and read.dtype == tensor.dtype, name


def test_members_at_odd_places_are_read(tmp_path):
    path = rewritten(tmp_path / "a.pth", lambda name, data: data)
    assert all(torch.equal(Checkpoint([path]).read(name), tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
        (lambda: torch.empty(3, 3, device="meta"), "a tensor on the meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantized tensor of torch"),
        (lambda: bytearray(5), "__builtin__.bytearray"),
        (lambda: torch.device("cpu"), "torch.device"),
        (lambda: b"bytes", "_codecs.encode"),
        (lambda: Path("x"), "pathlib"),
        (lambda: {1, 2}, "more than tensors and plain values"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_plain_tensor(tmp_path, content, message, zipped):
    try:
        torch.save({"a": torch.ones(1), "x": content()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    except (NotImplementedError, RuntimeError):
        pytest.skip("torch does not save this")
    refuses(tmp_path / "a.pth", message)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members(tmp_path, method):
    torch.save(STATE, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refuses(tmp_path / "b.pth", "is compressed, which torch.save never does")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: data[:-4] if name.endswith("data/0") else data, "has 20 bytes and should have 24"),
        (lambda name, data: data + b"1234" if name.endswith("data/1") else data, "has 12 bytes and should have 8"),
        (lambda name, data: None if name.endswith("data/0") else data, "'0' is missing and should have 24"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "a zip without data.pkl"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "not little-endian"),
        (lambda name, data: data[:-9] if name.endswith("data.pkl") else data, "damaged"),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.byteorder == "big", reason="written for little-endian machines")
def test_archives_that_do_not_hold_what_they_say(tmp_path, change, message):
    refuses(rewritten(tmp_path / "a.pth", change), message)


def test_a_long_member_for_the_byte_order_is_not_read(tmp_path, monkeypatch):
    path = rewritten(tmp_path / "a.pth", lambda name, data: b"x" * 99 if name.endswith("byteorder") else data)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("read whole"))
    refuses(path, "its numbers are not .*-endian")


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def tensor_call(shape: bytes, stride: bytes, count: int, offset: int = 0) -> bytes:
    """A dictionary with one tensor, in pickle's opcodes."""
    number = count.to_bytes(4, "little", signed=True)
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ" + number + b"tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + offset.to_bytes(4, "little", signed=True)
    return pickled(b"}X\x01\0\0\0a", rebuild, shape, stride, b"\x89ccollections\nOrderedDict\n)RtRs")


def doubled(times: int) -> bytes:
    """A tuple of twice one tuple of twice one tuple, in pickle's opcodes: what takes it apart comes to no end."""
    return b"K\x01K\x01\x86q\0" + b"".join(b"h%c\x86q%c" % (at, at + 1) for at in range(times))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickled(b"}", doubled(18), b"Ns"), "a tuple is the key of a dictionary"),
        (pickled(b"}(X\x01\0\0\0aN", doubled(18), b"Nu"), "a tuple is the key of a dictionary"),
        (pickled(b"}\x8a\x08", (2**61 - 1).to_bytes(8, "little"), b"Ns"), "a large integer is the key"),
        (pickled(b"}(\x8a\x08", (1 - 2**61).to_bytes(8, "little", signed=True), b"Nu"), "a large integer is the key"),
        (pickled(b"ctorch\nSize\n}X\x04\0\0\0nameNsb"), "more than tensors and plain values: attributes"),
        (pickled(b"}\x88Ns"), "a bool is the key"),
        (tensor_call(doubled(18), b"K\x01\x85", 6), "shape a very large tuple"),
        (tensor_call(b"K\x06\x85", doubled(18), 6), "strides a very large tuple"),
        (tensor_call(b"K\x07\x85", b"K\x01\x85", 6), r"shape \(7,\) reaches over its 24 bytes"),
        (tensor_call(b"K\x06\x85", b"K\x01\x85", 6, 1), "reaches over"),
        (tensor_call(b"J\xff\xff\xff\xff\x85", b"K\x01\x85", 6), r"shape \(-1,\)"),
        (tensor_call(b"K\x06\x85", b"J\xff\xff\xff\xff\x85", 6), r"strides \(-1,\)"),
        (tensor_call(b"K\x06\x85", b"K\x01\x85", 6, -1), "offset -1"),
        (tensor_call(b"K\x06\x85", b"K\x01\x85", -1), "has -1 elements"),
        (tensor_call(b"K\x06\x85", b")", 6), "strides"),
        (pickled(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R"), "builtins.bytearray"),
        (pickled(b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R"), "torch.Tensor"),
        (pickled(b"cos\nsystem\nX\x04\0\0\0true\x85R"), "os.system"),
        (pickled(b"N" * 600_000), "more than 500000 opcodes"),
        (pickled(b"Nr\xff\xff\xff\x7f"), "more than 500000 opcodes"),
        (pickled(b"\x8f"), "EMPTY_SET"),
        (pickled(b"(" * 1000), "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
    ],
)
def test_hostile_pickles(tmp_path, data, message):
    refuses(rewritten(tmp_path / "a.pth", lambda name, old: data if name.endswith("data.pkl") else old), message)


def test_a_dict_that_holds_itself(tmp_path):
    content = {"a": torch.ones(1)}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    assert list(Checkpoint([tmp_path / "a.pth"]).headers) == ["a"]
    torch.save({"other": content}, tmp_path / "b.pth")
    refuses(tmp_path / "b.pth", "with the keys other")


MEASURE = """
import resource, sys, time
from pathlib import Path
import torch, safetensors
import dia_engine.files.tensors as tensors

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

before, started = peak(), time.process_time()
try:
    tensors.Checkpoint([Path(sys.argv[1])])
except ValueError as error:
    print(error, file=sys.stderr)
print(peak() - before, time.process_time() - started)
"""


def flood(kind: str, path: Path) -> None:
    """A small file that asks for much."""
    if kind == "zip bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickled(b"N" * 300_000_000))
    elif kind == "dictionaries":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled(b"(" + b"}" * 490_000 + b"t"))
    elif kind == "copies":  # of one long list
        many = pickled(b"](" + b"N" * 200_000 + b"eq\0(" + b"ctorch\nSize\nh\0\x85R" * 50_000 + b"t")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", many)
    elif kind == "long old tensor":
        stream = io.BytesIO()
        torch.save(STATE, stream, _use_new_zipfile_serialization=False)
        path.write_bytes(stream.getvalue().replace(b"K\x06Ntq", b"J\xff\xff\xff\x7fNtq", 1))
    else:
        header = b"{" + b" " * 90_000_000 + b"}"
        path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("kind", ["zip bomb", "dictionaries", "copies", "long old tensor", "header.safetensors"])
def test_floods_take_neither_time_nor_memory(warm_python, tmp_path, kind):
    path = tmp_path / (kind if kind.endswith(".safetensors") else "a.pth")
    flood(kind, path)
    done = warm_python.run(MEASURE, path)
    assert done.returncode == 0 and done.stderr.count(b"\n") == 1 and str(path) in done.stderr.decode(), done.stderr
    memory, seconds = map(float, done.stdout.split())
    assert memory < 200e6 + path.stat().st_size and seconds < 2, "processor time, which no other load changes"


def old_format(path: Path, number: int, data: bytes) -> Path:
    """A file of the format before torch 1.6 with one of its five pickles replaced."""
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=False)
    stream.seek(0)
    ends = [0]
    for _ in range(5):
        list(pickletools.genops(stream))
        ends.append(stream.tell())
    path.write_bytes(stream.getvalue()[: ends[number]] + data + stream.getvalue()[ends[number + 1] :])
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "tensors",
    [
        lambda: {"a": torch.ones(1).expand(2**10, 2**10)},
        lambda: {"a": torch.ones(1).expand(2**40)},
        lambda: dict(zip(map(str, range(2000)), [torch.ones(500)] * 2000, strict=True)),
        lambda: {"a": torch.ones(600_000), **dict.fromkeys("bcdef", torch.ones(1).expand(600_000))},
    ],
)
def test_small_files_of_large_tensors(tmp_path, tensors, zipped):
    torch.save(tensors(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    refuses(tmp_path / "a.pth", "its tensors share their numbers: they have [0-9]+ bytes, the file [0-9]+")


def test_tied_weights_are_read(tmp_path):
    tied = torch.ones(600_000)
    torch.save({"a": tied, "b": tied, "c": torch.nn.Parameter(tied)[:1000]}, tmp_path / "a.pth")
    assert sorted(Checkpoint([tmp_path / "a.pth"]).headers) == ["a", "b", "c"]


@pytest.mark.parametrize("number", range(5))
def test_all_pickles_of_the_old_format_are_looked_through(tmp_path, number):
    path = old_format(tmp_path / "a.pth", number, pickled(b"]cbuiltins\nbytearray\nJ\0\0\x10\0\x85Ra"))
    refuses(path, "builtins.bytearray")


@pytest.mark.parametrize("keys", [b"N", b"X\x01\0\0\x000", b"]K\x01a", b"]]a"])
def test_odd_keys_of_the_old_format(tmp_path, keys):
    refuses(old_format(tmp_path / "a.pth", 4, pickled(keys)), "its tensor data is named in an unknown way")


def test_long_shapes_are_not_copied_by_the_old_format(tmp_path):
    content = pickled(b"}X\x01\0\0\0actorch\nSize\n(" + b"K\x01" * 17 + b"t\x85Rs")
    refuses(old_format(tmp_path / "a.pth", 3, content), "at most 16 sizes")


def test_old_pickles_of_other_protocols(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": 1}, protocol=5))
    refuses(tmp_path / "a.pth", "FRAME")


def test_torch_file_gives_values_beside_tensors(tmp_path):
    torch.save({"metadata": {"rate": 8, "ratios": [1, 2], "name": "x", "at": 0.5}, "t": torch.ones(2)}, tmp_path / "a")
    content = TorchFile(tmp_path / "a").content
    assert content["metadata"] == {"rate": 8, "ratios": [1, 2], "name": "x", "at": 0.5}


def test_integer_keys_of_optimizers(tmp_path):
    torch.save({"a": torch.ones(1), "optimizer": {"state": {0: {"step": 1}, 2**47 - 1: {}}}}, tmp_path / "a")
    assert TorchFile(tmp_path / "a").content["optimizer"]["state"] == {0: {"step": 1}, 2**47 - 1: {}}


# Paths and JSON


def test_names_that_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_path("~/x") == user_target("~/x") == tmp_path / "home" / "x"
    (tmp_path / "~copy").mkdir()
    for name in ("~copy", "./~copy", Path("~copy")):
        assert user_path(name) == user_target(name) == Path("~copy")
    assert user_target("~copy/new") == Path("~copy/new")
    assert user_path("~nobody-here/x") == Path("~nobody-here/x")
    with pytest.raises(FileNotFoundError, match="~nobody-here/x: no user 'nobody-here'"):
        user_target("~nobody-here/x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b" " * (4 * 2**20 + 1), "at most 4194304"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: "),
        (b"\xff\xfe{}", "is not JSON"),
        (b"", "is not JSON: Expecting value"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer, not the config file; run `git lfs pull`"),
    ],
)
def test_odd_json(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_broken_links_and_folders_are_named_as_such(tmp_path):
    (tmp_path / "link.json").symlink_to("gone.json")
    with pytest.raises(FileNotFoundError, match="no config file at .*link.json: a broken link to gone.json"):
        read_json(tmp_path / "link.json")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        require_file(tmp_path, "weight file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="it is no regular file"):  # and it is not waited for
        require_file(tmp_path / "pipe", "weight file")
