"""Where a model's files are: in a local folder, or on the Hugging Face hub and its cache."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..model.config import DiaConfig
from ..weights.source import TALKER, packaged

DEFAULT_MODEL = "nari-labs/Dia-1.6B-0626"

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_BIN = "pytorch_model.bin"
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".json")


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model. `source` is what messages call it: the folder or the hub id."""

    config: Path
    weights: list[Path]
    source: str


def find_model(model: str | Path, revision: str | None = None) -> ModelFiles:
    """Find a model's config.json and weights, and fetch from the hub what is not in its cache.

    A `Path`, and a string that exists or looks like a path (starts with `.`, `/` or `~`, holds a backslash or more
    than one `/`, or ends like a file), is local. Any other `owner/name` is a hub id. Which weights are taken, in a
    folder as on the hub, is the first of: `model.safetensors`; the files that `model.safetensors.index.json` names;
    the only other `*.safetensors`; `pytorch_model.bin`; the only `*.pth`; the only `*.bin`. These, config.json and
    generation_config.json are all that is fetched, and no weights before config.json is known to be of a Dia model.
    Without a network, the cache serves.

    Args:
        model: local folder, hub id, or "talker" for the model that comes with the engine.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: no such folder or hub repository, no access, a file is absent, or the hub is out of reach
            and the cache does not hold the model.
        ValueError: a malformed id, a `revision` for a local folder, several files that could be the weights, a damaged
            index, or (hub only) a config.json of another kind of model.
        TypeError: `model` is neither a string nor a path.
    """
    config = find_config(model, revision)
    if _is_local(packaged(model)):
        return ModelFiles(config, _weights_in(config.parent), str(model))
    return ModelFiles(config, _weights_of_hub(str(model), config), str(model))


def find_config(model: str | Path, revision: str | None = None) -> Path:
    """`find_model(...).config` alone: no weights are looked for or fetched. Arguments and errors as there."""
    if not isinstance(model, (str, Path)):
        raise TypeError(f"model must be a folder or a hub id, got {type(model).__name__}")
    if not str(model).strip():
        raise ValueError(f"model must be a folder or a hub id such as {DEFAULT_MODEL}, got an empty string")
    if model == TALKER and revision is not None:
        raise ValueError(f"revision {revision!r} has no meaning for {model}, which comes with the engine")
    model = packaged(model)
    if not _is_local(model):
        return _config_of_hub(str(model), revision)
    if revision is not None:
        raise ValueError(f"revision {revision!r} has no meaning for the local folder {model}")
    return _config_of_folder(model)


def _is_local(model: str | Path) -> bool:
    if isinstance(model, Path) or os.path.exists(os.path.expanduser(model)):
        return True
    looks_like_path = model.startswith((".", "/", "~")) or "\\" in model or model.endswith(("/", *_FILE_SUFFIXES))
    return looks_like_path or model.count("/") != 1


def _config_of_folder(model: str | Path) -> Path:
    folder = Path(os.path.expanduser(model))
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the folder that holds it and its {_CONFIG}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {model}; a model on the hub is named owner/name, such as {DEFAULT_MODEL}")
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(f"no {_CONFIG} in {folder}")
    return folder / _CONFIG


def _weights_in(folder: Path) -> list[Path]:
    chosen = _choose_weights([path.name for path in folder.iterdir()], str(folder))
    if chosen != _INDEX:
        return [folder / chosen]
    shards = [folder / name for name in _shard_names(folder / _INDEX)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise FileNotFoundError(f"{folder / _INDEX} names {', '.join(absent)}, not there")
    return shards


def _choose_weights(names: Iterable[str], place: str) -> str:
    """The one file to start from, weights or the index of several, by the rule in `find_model`."""
    names = set(names)
    for name in (_SINGLE, _INDEX):
        if name in names:
            return name
    safetensors = _ending(names, ".safetensors")
    shards = {name for name in safetensors if _SHARD.search(name)}
    if shards and shards == safetensors:
        raise FileNotFoundError(f"no {_INDEX} in {place} beside {', '.join(sorted(shards))}")
    for found in (safetensors - shards, names & {_BIN}, _ending(names, ".pth"), _ending(names, ".bin")):
        if len(found) > 1:
            raise ValueError(f"several files in {place} could be the weights, keep one: {', '.join(sorted(found))}")
        if found:
            return found.pop()
    raise FileNotFoundError(f"no weights (*.safetensors, *.pth or *.bin) in {place}")


def _ending(names: set[str], suffix: str) -> set[str]:
    return {name for name in names if name.endswith(suffix)}


def _shard_names(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("weight_map must name files of this folder")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files ({error})") from error
    return sorted(names)


def _config_of_hub(name: str, revision: str | None) -> Path:
    config = _download(name, revision, [_CONFIG]) / _CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"no {_CONFIG} in the hub's {name}; it is not a model that this engine can read")
    return config


def _weights_of_hub(name: str, config: Path) -> list[Path]:
    """The weights that belong to a cached config.json, of the same commit though the branch may have moved on."""
    DiaConfig.from_file(config)
    folder = config.parent  # <cache>/models--owner--name/snapshots/<commit>
    try:
        listed = _list_files(name, folder.name)
    except Exception as error:  # network errors have other classes in every huggingface_hub
        return _cached_weights(name, folder, error)
    chosen = _choose_weights(listed, f"the hub's {name}")
    _download(name, folder.name, ["generation_config.json", chosen])
    if chosen == _INDEX:
        _download(name, folder.name, _shard_names(folder / _INDEX))
    return _weights_in(folder)


def _cached_weights(name: str, folder: Path, reason: Exception) -> list[Path]:
    try:
        return _weights_in(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is only partly in the cache ({error}) and the hub is out of reach ({_first_line(reason)})"
        ) from reason


def _list_files(name: str, revision: str) -> list[str]:
    """Names at the top of a repository. `list_repo_files` would retry for half a minute without a network."""
    from huggingface_hub import model_info

    files = [file.rfilename for file in model_info(name, revision=revision).siblings]
    return [file for file in files if "/" not in file]


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    """The snapshot's folder, with those of the files that the repository has."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} at revision {revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder nor a hub id such as {DEFAULT_MODEL}") from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{name} is gated: ask for access at https://huggingface.co/{name}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"no folder and no hub model {name}; check the name, or log in with `hf auth login` if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the hub's {name} has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{at} is not a folder and not in the hub's cache, and the hub is out of reach "
            f"({_first_line(error.__cause__ or error)}); connect once to fetch it, or give a local folder"
        ) from error
    except Exception as error:  # a proxy's or a broken connection's error has another class in every huggingface_hub
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's own: full, read-only
        raise FileNotFoundError(f"could not fetch {at} from the hub: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
