"""What a model's folder may hold beside the model: its codec, and its own defaults for generation.

    config.json, model.safetensors    the model
    codec/                            its codec, instead of descript/dac_44khz
    generation_config.json            "dia_engine": {"temperature": 0.8, ...}, names and values as `generate` takes them

transformers' own keys of generation_config.json are left alone: those of the published model differ from the reference.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path

from ..sampling_params import ResolvedSamplingParams

TALKER = "talker"
TALKER_FOLDER = Path(__file__).parents[1] / "assets" / "talker"
_CODEC, _GENERATION, _KEY = "codec", "generation_config.json", "dia_engine"


def packaged(model: str | Path) -> str | Path:
    """The folder of the model that comes with the engine for the name "talker"; any other model as it is."""
    return TALKER_FOLDER if isinstance(model, str) and model == TALKER else model


def own_codec(model: str | Path) -> Path | None:
    """The folder of the codec that a local model brings along, or None."""
    folder = Path(packaged(model)).expanduser() / _CODEC
    return folder if (folder / "config.json").is_file() else None


def own_defaults(config: Path) -> dict[str, float | int | None]:
    """The defaults for generation that lie beside a config.json; none if there are none.

    Raises:
        ValueError: the file is damaged, or names or values are not those of `generate`.
    """
    path = config.parent / _GENERATION
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        defaults = content.get(_KEY, {}) if isinstance(content, dict) else None
        if not isinstance(defaults, dict):
            raise ValueError(f"{_KEY} must be a JSON object, got {defaults!r}")
        names = [field.name for field in fields(ResolvedSamplingParams)]
        unknown = sorted(set(defaults) - set(names))
        if unknown:
            raise ValueError(f"{_KEY} knows {', '.join(names)}, got {', '.join(unknown)}")
        ResolvedSamplingParams(**defaults)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return defaults


def copy_companions(model: str | Path, target: Path) -> None:
    """Copy what a local model's folder holds beside the model into another folder."""
    codec, generation = own_codec(model), Path(packaged(model)).expanduser() / _GENERATION
    if codec is not None:
        shutil.copytree(codec, target / _CODEC)
    if generation.is_file():
        shutil.copy(generation, target / _GENERATION)
