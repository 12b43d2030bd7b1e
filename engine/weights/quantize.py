"""Write a quantised copy of a model, which loads faster and needs neither the original nor bitsandbytes."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..device import checked_dtype
from ..files.hub import find_model
from ..model.config import DiaConfig
from .load import check_new_folder, save_weights, stored_formats, stream_weights
from .recipes import checked_recipe
from .source import copy_companions
from .synthetic import is_synthetic, stream_random_weights, synthetic_config


def quantize_model(
    model: str | Path,
    folder: str | Path,
    quant: str | Mapping[str, str],
    *,
    dtype: str | torch.dtype = "bfloat16",
    revision: str | None = None,
) -> int:
    """Read a model, quantise it and write it to a folder with safetensors and a config.json that says what was done.

    Args:
        model, quant, revision: as `Engine.load`.
        folder: to be created; an empty one may exist.
        dtype: of the weights that are not quantised.

    Returns:
        Bytes of the weights.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: `folder` is a file or holds something, or cannot be made.
        FileNotFoundError, ValueError: as `Engine.load`, or the model is quantised already.
    """
    recipe, dtype, target = checked_recipe(quant), checked_dtype(dtype), Path(folder).expanduser()
    check_new_folder(target)
    if is_synthetic(model):
        config = synthetic_config(model, revision)
        stream = stream_random_weights(config, dtype=dtype, device="cpu", recipe=recipe)
    else:
        files = find_model(model, revision)
        config = DiaConfig.from_file(files.config)
        held = sorted(set(stored_formats(files.weights, config).values()))
        if held:
            raise ValueError(f"{model} is quantised already, in {' and '.join(held)}; quantise the original")
        stream = stream_weights(files.weights, config, dtype=dtype, device="cpu", recipe=recipe)
    weights = dict(stream)
    save_weights(weights, config, target, quantized={"recipe": recipe, "source": str(model), "revision": revision})
    copy_companions(model, target)
    return sum(weight.nbytes for weight in weights.values())
