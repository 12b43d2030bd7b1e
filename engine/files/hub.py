"""Where the files of a model or a codec are: in a local folder, or on the Hugging Face hub and in its cache."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..messages import first_line, listed
from .paths import read_json, user_path

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"

_BIN = "pytorch_model.bin"
_BIN_INDEX = "pytorch_model.bin.index.json"
_SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin|pth|pt)$")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".json")


class Kind(NamedTuple):
    """What is looked for: the word for it in messages, and the hub id that they give as an example."""

    noun: str
    example: str


MODEL = Kind("model", "nari-labs/Dia-1.6B-0626")
CODEC = Kind("codec", "descript/dac_44khz")
DEFAULT_MODEL, DEFAULT_CODEC = MODEL.example, CODEC.example


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model. `source` is what messages call it: the folder or the hub id."""

    config: Path
    weights: list[Path]
    source: str


def local_path(name: str | Path, kind: Kind, revision: str | None = None) -> Path | None:
    """The path that a name means, or None for a hub id: the one rule for models and codecs.

    A `Path`, and a string that exists or looks like a path (starts with `.`, `/` or `~`, holds a backslash or not
    exactly one `/`, or ends like a file or with `/`), is local. Any other `owner/name` is a hub id.

    Raises:
        FileNotFoundError: the name is local and nothing is there.
        ValueError: an empty name, or a revision of something local.
        TypeError: neither a string nor a path.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"{kind.noun} must be a folder or a hub id, got {type(name).__name__}")
    if not str(name).strip():
        raise ValueError(f"{kind.noun} must be a folder or a hub id such as {kind.example}, got an empty string")
    path = user_path(name)
    if not os.path.lexists(path):
        if isinstance(name, str) and not _looks_local(name):
            return None
        raise FileNotFoundError(
            f"no {kind.noun} at {name}: no such file or folder; a {kind.noun} on the hub is named owner/name, "
            f"such as {kind.example}"
        )
    if revision is not None:
        raise ValueError(f"revision {revision!r} has no meaning for {name}, which is local; it applies to hub ids only")
    return path


def _looks_local(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.endswith(("/", *_FILE_SUFFIXES))
        or name.count("/") != 1
    )


def find_config(model: str | Path, revision: str | None = None) -> Path:
    """The config.json of a model: no weights are looked for or fetched. Arguments and errors as `find_model`."""
    path = local_path(model, MODEL, revision)
    if path is None:
        config = download(str(model), MODEL, revision, [CONFIG, GENERATION_CONFIG]) / CONFIG
        if not config.is_file():
            raise FileNotFoundError(f"no {CONFIG} in the hub's {model}; it is not a model that this engine can read")
        return config
    if path.is_file():
        raise ValueError(f"{path} is a file; give the folder that holds it and its {CONFIG}")
    if not os.path.lexists(path / CONFIG):
        raise FileNotFoundError(f"no {CONFIG} in {path}")
    return path / CONFIG


def find_model(model: str | Path, revision: str | None = None) -> ModelFiles:
    """Find a model's config.json and weights, and fetch from the hub what is not in its cache.

    What is local says `local_path`. Which weights are taken, in a folder as on the hub, is the first of:
    `model.safetensors`; the files that `model.safetensors.index.json` names; the only other `*.safetensors`;
    `pytorch_model.bin`; the files that `pytorch_model.bin.index.json` names; the only `*.pth`; the only `*.bin`. Names
    that begin with a dot are no weights. These, config.json and generation_config.json are all that is fetched; the
    codec that a model may have is for `fetch_folder`.
    Without a network, the cache serves.

    Args:
        model: local folder or hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: no such folder or hub repository, no access, a file is absent, or the hub is out of reach
            and the cache does not hold the model.
        ValueError: a malformed id, a `revision` for a local folder, several files that could be the weights, or a
            damaged index.
        TypeError: `model` is neither a string nor a path.
    """
    config = find_config(model, revision)
    return ModelFiles(config, find_weights(model, config), str(model))


def find_weights(model: str | Path, config: Path) -> list[Path]:
    """The weights that belong to what `find_config` found. Arguments and errors as `find_model`."""
    if local_path(model, MODEL) is not None:
        return _weights_in(config.parent)
    return _weights_of_hub(str(model), config.parent)


def fetch_folder(model: str | Path, config: Path, folder: str) -> None:
    """Fetch what a model on the hub has in a folder beside what `find_config` found, of the same commit. Nothing
    happens for a local model, nor without a network, where the cache has to do.

    Raises:
        OSError: the disk is full or may not be written.
    """
    if local_path(model, MODEL) is None:
        with suppress(FileNotFoundError):
            download(str(model), MODEL, config.parent.name, [f"{folder}/*"])


def index_files(index: Path) -> list[Path]:
    """The files that an index of shards names, in its folder, each once.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: not an index.
    """
    content = read_json(index, "index of weight files")
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: not an index of weight files (it has no weight_map)")
    for name in names.values():
        if not isinstance(name, str) or name in ("", ".", "..") or "\\" in name or Path(name).name != name:
            raise ValueError(
                f"{index}: not an index of weight files (weight_map must name files of the same folder, got {name!r})"
            )
    return [index.parent / name for name in sorted(set(names.values()))]


def require_shards(index: Path) -> list[Path]:
    """`index_files`, all of which must be there."""
    shards = index_files(index)
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names {listed(absent)}, not there")
    return shards


def _weights_in(folder: Path) -> list[Path]:
    chosen = _choose_weights([path.name for path in folder.iterdir()], str(folder))
    return require_shards(folder / chosen) if chosen.endswith(".json") else [folder / chosen]


def _choose_weights(present: Iterable[str], place: str) -> str:
    """The one file to start from, weights or the index of several, by the rule in `find_model`."""
    names = {name for name in present if not name.startswith(".")}  # macOS puts ._NAME beside NAME
    shards = {name for name in names if _SHARD.search(name)}
    whole = names - shards
    for candidates in (
        names & {SAFETENSORS},
        names & {SAFETENSORS_INDEX},
        _ending(whole, ".safetensors"),
        _ending(shards, ".safetensors"),
        names & {_BIN},
        names & {_BIN_INDEX},
        _ending(whole, ".pth"),
        _ending(whole, ".bin"),
        shards,
    ):
        if candidates & shards:
            index = SAFETENSORS_INDEX if _ending(candidates, ".safetensors") else _BIN_INDEX
            raise FileNotFoundError(f"no {index} in {place} beside {listed(sorted(candidates))}")
        if len(candidates) > 1:
            raise ValueError(f"several files in {place} could be the weights, keep one: {listed(sorted(candidates))}")
        if candidates:
            return candidates.pop()
    raise FileNotFoundError(f"no weights (*.safetensors, *.pth or *.bin) in {place}")


def _ending(names: set[str], suffix: str) -> set[str]:
    return {name for name in names if name.endswith(suffix)}


def _weights_of_hub(name: str, folder: Path) -> list[Path]:
    """The weights beside a cached config.json, of the same commit though the branch may have moved on.

    `folder` is <cache>/models--owner--name/snapshots/<commit>.
    """
    try:
        names = _list_files(name, folder.name)
    except Exception as error:  # network errors have other classes in every huggingface_hub
        return _cached_weights(name, folder, error)
    chosen = _choose_weights(names, f"the hub's {name}")
    download(name, MODEL, folder.name, [GENERATION_CONFIG, chosen])
    if chosen.endswith(".json"):
        download(name, MODEL, folder.name, [path.name for path in index_files(folder / chosen)])
    return _weights_in(folder)


def _cached_weights(name: str, folder: Path, reason: Exception) -> list[Path]:
    try:
        return _weights_in(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is only partly in the cache ({error}) and the hub is out of reach ({_named(reason)})"
        ) from reason


def _list_files(name: str, revision: str) -> list[str]:
    """Names at the top of a repository. `list_repo_files` would retry for half a minute without a network."""
    from huggingface_hub import model_info

    files = [file.rfilename for file in model_info(name, revision=revision).siblings or ()]
    return [file for file in files if "/" not in file]


def download(name: str, kind: Kind, revision: str | None, files: list[str]) -> Path:
    """Fetch from the hub those of the files, or patterns of file names, that are not in the cache yet.

    Returns:
        the snapshot's folder, with those of the files that the repository has.

    Raises:
        FileNotFoundError: no such repository or revision, no access, or out of reach and not in the cache.
        ValueError: not a hub id.
        OSError: the disk is full or may not be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder nor a hub id such as {kind.example}") from error
    except Exception as error:  # a proxy's or a broken connection's error has another class in every huggingface_hub
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's own: full, read-only
        raise FileNotFoundError(_reason(name, kind, revision, error)) from error


def _reason(name: str, kind: Kind, revision: str | None, error: Exception) -> str:
    """Why the hub did not give a repository, and what to do."""
    from huggingface_hub.utils import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} at revision {revision}" if revision else name
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: ask for access at https://huggingface.co/{name}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"no folder and no hub {kind.noun} {name}; check the name, or log in with `hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the hub's {name} has no revision {revision}"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{kind.noun} {at} is not a folder and not in the hub's cache, and the hub is out of reach "
            f"({_named(error.__cause__ or error)}); connect once to fetch it (hf download {name}), "
            "or pass a local folder"
        )
    return f"could not fetch {kind.noun} {at} from the hub: {_named(error)}"


def _named(error: BaseException) -> str:
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"
