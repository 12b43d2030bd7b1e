"""What is quantized and how: recipes, as data.

A recipe maps patterns of weight names to formats; the first pattern that fits a name decides, and what none fits stays
as it is. Norms and embeddings are never quantized.
"""

import fnmatch
import logging
from collections.abc import Mapping

from ..kernels.quantized import BLOCK, FORMATS, NF4Weight
from ..messages import shown
from ..model.config import DiaConfig
from ..model.shapes import parameter_shapes

logger = logging.getLogger(__name__)

PLAIN = "none"
RECIPES = {
    "int8": {"*_attn.*": "int8", "*.mlp.*": "int8"},
    # Dia's attention has no 1/sqrt(d): errors of queries and keys go into its logits undiminished.
    "nf4": {"*_attn.*": "int8", "*.mlp.*": "nf4"},
    # What bitsandbytes quantizes with load_in_4bit: every layer's matrices.
    "nf4-all": {"*_attn.*": "nf4", "*.mlp.*": "nf4"},
}
ALIASES = {"4bit": "nf4", "8bit": "int8"}

Recipe = dict[str, str]


def checked_recipe(quant: str | Mapping[str, str]) -> Recipe:
    """The recipe that a user names or writes.

    Args:
        quant: "int8", "nf4", "nf4-all" (also "8bit", "4bit"), or patterns of weight names with "int8",
            "nf4" or "none", such as {"decoder.layers.0.*": "none", **RECIPES["nf4"]}.

    Raises:
        ValueError: an unknown name or format.
        TypeError: neither a string nor a mapping of strings.
    """
    if isinstance(quant, str):
        name = ALIASES.get(quant, quant)
        if name not in RECIPES:
            raise ValueError(f"quant must be one of {', '.join((*RECIPES, *ALIASES))}, got {shown(quant)}")
        return dict(RECIPES[name])
    if not isinstance(quant, Mapping) or not all(isinstance(item, str) for pair in quant.items() for item in pair):
        raise TypeError(f"quant must be a name or a mapping of weight names to formats, got {shown(quant)}")
    unknown = sorted(set(quant.values()) - {*FORMATS, PLAIN})
    if unknown:
        raise ValueError(f"quant: a format must be one of {', '.join((*FORMATS, PLAIN))}, got {', '.join(unknown)}")
    return dict(quant)


def chosen_formats(recipe: Recipe, config: DiaConfig) -> dict[str, str]:
    """Name of each weight that a recipe quantizes -> its format.

    Rows that blocks of 64 do not fill cannot be NF4 and become int8.

    Raises:
        ValueError: a pattern that fits no weight which can be quantized.
    """
    matrices = {name: shape for name, shape in parameter_shapes(config).items() if is_matrix(name)}
    idle = [pattern for pattern in recipe if not fnmatch.filter(matrices, pattern)]
    if idle:
        raise ValueError(f"quant: no matrix of this model is named like {', '.join(idle)}")
    formats, narrow = {}, []
    for name, shape in matrices.items():
        wanted = next((format for pattern, format in recipe.items() if fnmatch.fnmatchcase(name, pattern)), PLAIN)
        if wanted == "nf4" and not NF4Weight.fits(shape[1]):
            wanted = "int8"
            narrow.append(name)
        if wanted != PLAIN:
            formats[name] = wanted
    if narrow:
        logger.warning("int8 instead of nf4, whose blocks of %d do not fill the rows: %s", BLOCK, ", ".join(narrow))
    return formats


def is_matrix(name: str) -> bool:
    """Whether a weight multiplies, and so can be quantized: neither a norm nor an embedding."""
    return not name.endswith(("norm.weight", "embedding.weight"))
