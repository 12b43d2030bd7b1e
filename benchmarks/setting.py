"""What the speed benchmarks share: the script that is read, the runtimes beside ours, and the machine."""

import argparse
import platform
from datetime import date
from importlib.util import find_spec

import torch

from dia_engine import Engine
from dia_engine.devices.environment import cores, processor
from dia_engine.runtime.runner import STEPS_PER_LAUNCH

from .nari import Nari, check_nari, load_nari
from .peers import Transformers, transformers_model, without_end

SCRIPT = (
    "[S1] Dia is an open weights text to dialogue model. [S2] You get full control over scripts and voices. "
    "[S1] Wow. Amazing. (laughs) [S2] Try it now on Git hub or Hugging Face. [S1] I will, this very evening!"
)
PEERS = ("transformers", "transformers-compiled", "nari", "nari-compiled")
STEPS_PER_SECOND_OF_SOUND = 44100 / 512


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What is loaded, the talker unless told."""
    parser.add_argument("--model", default="talker", help="hub id, folder, talker or synthetic:... (%(default)s)")
    parser.add_argument("--dtype", help="default: what suits the device")
    parser.add_argument("--quant", help="int8 or nf4")
    parser.add_argument("--device", help="default: cuda if there is one")


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--against", nargs="*", default=[], choices=PEERS, metavar="PEER", help=" ".join(PEERS))
    parser.add_argument("--reference", metavar="PATH", help="checkout of nari-labs/dia, for the peers nari...")


def check_peer_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if any(peer.startswith("nari") for peer in options.against) and options.reference is None:
        parser.error("the peers nari and nari-compiled need --reference PATH, a checkout of nari-labs/dia")
    if options.reference is not None:
        check_nari(options.reference)
    if any(peer.startswith("transformers") for peer in options.against) and find_spec("transformers") is None:
        parser.error("the peers transformers and transformers-compiled need the package: pip install transformers")


def peers(options: argparse.Namespace, engine: Engine) -> list[Transformers | Nari]:
    """The runtimes that the options name, on the engine's weights."""
    runtimes = []
    if {"transformers", "transformers-compiled"} & set(options.against):
        model = transformers_model(engine.config, engine.weights)
        if "transformers" in options.against:
            padded = engine.config.encoder.max_position_embeddings
            runtimes += [Transformers(model), Transformers(model, pad_to=padded)]
        if "transformers-compiled" in options.against:
            runtimes.append(Transformers(model, compiled=True))
    if {"nari", "nari-compiled"} & set(options.against):
        reference = load_nari(options.reference, engine.config, engine.weights)
        runtimes += [Nari(reference, compiled=False)] if "nari" in options.against else []
        runtimes += [Nari(reference, compiled=True)] if "nari-compiled" in options.against else []
    return runtimes


def check_steps(option: str, steps: int, engine: Engine, untimed: int = 0) -> None:
    """
    Args:
        untimed: how many of the steps are not timed whatever the device.

    Raises:
        ValueError: none would be timed: with graphs a time is that of a launch of several steps, from the second on.
            Or the model has no rows for so many.
    """
    launch = STEPS_PER_LAUNCH[0] if engine.device.type == "cuda" else 1
    rows = without_end(engine.config).rows(engine.config.decoder.max_position_embeddings, 0, engine.config.max_delay)
    least, most = untimed + launch, untimed + rows - 1 - launch  # the first row is given, the first launch not timed
    if steps < least:
        raise ValueError(f"{option} must be at least {least} on this device, got {steps}")
    if steps > most:
        raise ValueError(f"{option} must be at most {most} with a model of {rows} rows, got {steps}")


def machine(engine: Engine) -> dict:
    cuda = engine.device.type == "cuda"
    return _setting(torch.cuda.get_device_name(engine.device) if cuda else processor())


def cpu_setting() -> dict:
    """What a report of this machine's CPU begins with."""
    return {**_setting(processor()), "cores": cores(), "capability": torch.backends.cpu.get_cpu_capability()}


def _setting(device: str) -> dict:
    return {
        "date": date.today().isoformat(),
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
