"""Find a codec by hub id, folder or file, and read its config and tensors."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .config import CodecConfig
from .weights import PACKAGE, TRANSFORMERS, Layout

CONFIG_NAME = "config.json"
SAFETENSORS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PACKAGE_NAME = "weights.pth"
HUB_PATTERNS = [CONFIG_NAME, "*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Checkpoint:
    """A codec as it lies on the disk; `source` names it in messages."""

    config: CodecConfig
    layout: Layout
    tensors: Mapping[str, torch.Tensor]
    source: str


def open_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Read a codec from a local folder or file, or from the Hugging Face hub.

    Raises:
        FileNotFoundError: nothing there, or the hub cannot give it; the message says what to do.
        TypeError: not a string or path.
        ValueError: damaged, not a codec, or a revision asked of something local.
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"codec must be a hub id or a path, got {type(source).__name__}")
    path = Path(source).expanduser()
    if path.exists() and source != "":  # Path("") is the current folder
        if revision is not None:
            raise ValueError(f"revision {revision!r} applies to a hub id only, and {source} is a local path")
        return _open_local(path)
    if isinstance(source, Path) or not _may_be_hub_id(source):
        raise FileNotFoundError(f"no codec at {str(source)!r}: no such file or folder")
    return _open_local(_download(source, revision))


def _may_be_hub_id(source: str) -> bool:
    looks_local = source.startswith((".", "/", "~")) or source.endswith((".pth", ".safetensors"))
    return source != "" and not looks_local and source.count("/") <= 1


def _download(repository: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # hub, transport and disk each raise a family of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        at = "" if revision is None else f" at revision {revision!r}"
        raise FileNotFoundError(
            f"cannot get codec {repository!r}{at} from the Hugging Face hub ({reason}); check the id and the network, "
            f"or pass a local folder (for offline use, download it beforehand: hf download {repository})"
        ) from error


def _open_local(path: Path) -> Checkpoint:
    if not path.is_dir():
        if path.suffix == ".safetensors":
            raise ValueError(f"{path}: pass the folder that holds this file and its {CONFIG_NAME}")
        return _open_package(path)
    for name in (SAFETENSORS_NAME, INDEX_NAME):
        if (path / name).is_file():
            return _open_transformers(path, path / name)
    if (path / PACKAGE_NAME).is_file():
        return _open_package(path / PACKAGE_NAME)
    raise FileNotFoundError(
        f"no codec in {path}: expected {CONFIG_NAME} with {SAFETENSORS_NAME} (or {INDEX_NAME}), or {PACKAGE_NAME}"
    )


def _open_transformers(folder: Path, weights: Path) -> Checkpoint:
    config_path = folder / CONFIG_NAME
    raw = _read_json(config_path)
    try:
        config = CodecConfig.from_transformers(raw)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from None
    if weights.name == SAFETENSORS_NAME:
        tensors = _read_safetensors(weights)
    else:
        tensors = {}
        for shard in _shards(weights):
            tensors |= _read_safetensors(folder / shard)
    return Checkpoint(config, TRANSFORMERS, tensors, str(weights))


def _open_package(path: Path) -> Checkpoint:
    """Open a weights.pth of descript-audio-codec: {"state_dict": ..., "metadata": {"kwargs": ...}}."""
    try:
        # A file in torch's older format is no zip and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{path} cannot be read as a weights file: truncated, corrupt, or more than tensors and plain values"
        ) from error
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not _is_tensor_mapping(tensors) or not isinstance(metadata, dict) or "kwargs" not in metadata:
        raise ValueError(f"{path} is not a weights.pth of descript-audio-codec: it lacks state_dict or metadata.kwargs")
    try:
        config = CodecConfig.from_package(metadata["kwargs"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Checkpoint(config, PACKAGE, tensors, str(path))


def _is_tensor_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no config file at {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not JSON: {error}") from None


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupt: {error}") from None


def _shards(index_path: Path) -> list[str]:
    """File names in a safetensors index, in order, each once."""
    index = _read_json(index_path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_path} has no weight_map")
    shards = list(dict.fromkeys(weight_map.values()))
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index_path}: weight_map must name files of the same folder, got {shard!r}")
    return shards
