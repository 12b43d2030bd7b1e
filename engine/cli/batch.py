"""`dia-engine batch`: a file of scripts to a folder of sound files."""

import argparse
import sys
from typing import Any

from .arguments import add_model_arguments, add_sampling_arguments, add_speech_arguments, check_model, sampling, speech
from .process import cleaning_up_on_sigterm, show

EXIT_LINES_FAILED = 1
BATCH = (
    "Make FOLDER/ID.wav of each line of a file, and FOLDER/manifest.jsonl. A line is a JSON object: id, text, and as "
    "needed seed, audio_prompt, audio_prompt_text, and what the options below set for lines that lack it, such as "
    "temperature, split and speed. A job that was cut off goes on where it was. Exit status 1: some lines failed, the "
    "manifest says why."
)


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    batch = commands.add_parser("batch", help="turn a file of scripts into a folder of sound files", description=BATCH)
    batch.set_defaults(run=run)
    batch.add_argument("scripts", metavar="SCRIPTS", help="file of JSON lines")
    batch.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder, created if it is not there")
    batch.add_argument("--format", default="wav", help="wav, flac, ogg or mp3 (default: %(default)s)")
    batch.add_argument("--slots", type=int, metavar="N", help="scripts at the same time (default: as many as fit)")
    batch.add_argument("--max-rows", type=int, metavar="N", help="decoder rows per slot (default: all of the model's)")
    add_model_arguments(batch, default_model="nari-labs/Dia-1.6B-0626")
    add_sampling_arguments(batch)
    add_speech_arguments(batch)
    batch.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="run on Ray, in the cluster at host:port (default: the one that runs here, else one of this machine)",
    )  # fmt: skip
    batch.add_argument(
        "--actors", type=int, metavar="N", help="engines on Ray (default: one per GPU, or one per machine without any)"
    )
    batch.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def run(options: argparse.Namespace) -> int:
    from ..batch.command import run_batch
    from ..cluster.machines import check_device
    from ..devices.device import resolve_device

    if options.ray is None:
        resolve_device(options.device)
    else:  # this machine computes nothing
        check_device(options.device)
    check_model(options)
    report = None if options.quiet else sys.stdout
    with cleaning_up_on_sigterm():
        lines, failed = run_batch(options, sampling(options), speech(options))
    for line in lines:
        show(line, report)
    return EXIT_LINES_FAILED if failed else 0
