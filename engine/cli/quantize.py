"""`dia-engine quantize`: a folder with a smaller copy of a model."""

import argparse
import sys
from typing import Any

from .process import cleaning_up_on_sigterm, show


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    quantize = commands.add_parser(
        "quantize", help="write a quantized copy of a model", description="Write a model in 8 or 4 bits."
    )
    quantize.set_defaults(run=run)
    quantize.add_argument("model", help="hub id, folder, talker, or synthetic:tiny / synthetic:full")
    quantize.add_argument("folder", metavar="OUT", help="folder to create")
    quantize.add_argument("--quant", required=True, help="int8, nf4 or nf4-all")
    quantize.add_argument("--dtype", default="bfloat16", help="of what is not quantized (default: %(default)s)")
    quantize.add_argument("--revision", help="revision of the hub repository")


def run(options: argparse.Namespace) -> None:
    from ..weights.save import quantize_model

    with cleaning_up_on_sigterm():
        size = quantize_model(
            options.model, options.folder, options.quant, dtype=options.dtype, revision=options.revision
        )
    show(f"{options.folder}: {size / 1e6:,.0f} MB of weights, {options.quant}", sys.stdout)
