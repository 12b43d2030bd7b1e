"""`dia-engine serve`: speech over HTTP."""

import argparse
from typing import Any


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    from ..server.settings import add_arguments

    serve = commands.add_parser(
        "serve",
        help="serve speech over HTTP",
        description="Serve speech to OpenAI's and ElevenLabs' clients. docs/server.md lists the routes.",
        epilog="Each option is also read from the environment: DIA_SERVE_PORT for --port.",
    )
    serve.set_defaults(run=run)
    add_arguments(serve)


def run(options: argparse.Namespace) -> None:
    from ..server.command import run

    run({name: value for name, value in vars(options).items() if name != "run"})
