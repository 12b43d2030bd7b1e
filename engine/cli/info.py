"""`dia-engine info`: what a model is and what it takes."""

import argparse
import sys
from typing import Any

from .process import show

INFO = "Layout, parameters and memory of a model, from its files; a model of the hub is fetched first."


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    info = commands.add_parser("info", help="describe a model", description=INFO)
    info.set_defaults(run=run)
    info.add_argument("model", help="hub id, folder, talker, or synthetic:tiny / synthetic:full")
    info.add_argument("--dtype", default="bfloat16", help="dtype that memory is counted in (default: %(default)s)")
    info.add_argument("--quant", help="count the memory of a quantized model: int8, nf4 or nf4-all")
    info.add_argument("--device", help="whose free memory is looked at (default: cuda if there is one, else cpu)")
    info.add_argument("--max-rows", type=int, metavar="N", help="decoder rows per slot (default: all of the model's)")
    info.add_argument("--revision", help="revision of the hub repository")


def run(options: argparse.Namespace) -> None:
    from ..info import describe

    if sys.stdout is None:
        raise ValueError("standard output is closed, where the description should go")
    text = describe(
        options.model, options.revision, options.dtype, options.quant, device=options.device, max_rows=options.max_rows
    )
    show(text, sys.stdout)
