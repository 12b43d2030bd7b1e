"""Options that several commands share, and what they make of them."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..longform.options import SpeechOptions
    from ..weights.source import ModelSource


def add_speech_arguments(command: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    long = command.add_argument_group("long scripts, pace and pauses")
    long.add_argument("--no-split", action="store_true", help="generate any script as one")
    long.add_argument("--speed", type=float, default=1.0, help="pace at the same pitch, 0.25 to 4 (default: 1)")
    long.add_argument("--pause", type=float, default=0.0, metavar="S", help="more silence between turns, in seconds")
    long.add_argument("--tail-silence", type=float, default=0.0, metavar="S", help="silence at the end, in seconds")
    long.add_argument(
        "--trim-cut-end", action=argparse.BooleanOptionalAction,
        help="drop the damaged frames of sound that is cut by --max-tokens, and fade it out (default: of long scripts)",
    )  # fmt: skip
    long.add_argument(
        "--closing-tag", action=argparse.BooleanOptionalAction,
        help="end the text with the next speaker's tag (default: in long scripts of Dia)",
    )  # fmt: skip
    long.add_argument(
        "--loudness", type=float, metavar="LUFS",
        help="of the whole sound, such as -16, less where peaks would clip (default: as it is); "
        "pip install 'dia-engine[loudness]'",
    )  # fmt: skip
    return long


def add_model_arguments(command: argparse.ArgumentParser, default_model: str) -> None:
    group = command.add_argument_group("model")
    names = "hub id, folder, talker or synthetic:... (default: %(default)s)"
    group.add_argument("--model", default=default_model, help=names)
    group.add_argument("--codec", help="codec's hub id, folder or file (default: the model's, else descript/dac_44khz)")
    group.add_argument("--codec-dtype", help="float32, bfloat16 or float16 (default: float32)")
    group.add_argument("--revision", help="revision of the hub repository")
    group.add_argument("--quant", help="int8, nf4 or nf4-all: quantize the weights while loading")
    group.add_argument("--dtype", help="float32, bfloat16 or float16 (default: what suits the device)")
    group.add_argument("--device", help="such as cuda, cuda:1 or cpu (default: cuda if there is one)")


def add_sampling_arguments(command: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    from ..sampling_params import ResolvedSamplingParams

    group = command.add_argument_group("sampling")
    for flag, kind, name, meaning in (
        ("--max-tokens", int, "max_tokens", "decoder rows at most"),
        ("--cfg-scale", float, "cfg_scale", "guidance by the text"),
        ("--temperature", float, "temperature", "0 = likeliest"),
        ("--top-p", float, "top_p", "in (0, 1]"),
        ("--top-k", _top_k, "cfg_filter_top_k", "candidates, or all"),
        ("--min-tokens", int, "min_tokens", "frames before which the model may not end"),
    ):
        # Without a default of argparse's: what is left out is the model's.
        meaning += f" (default: the model's own, else {getattr(ResolvedSamplingParams, name)})"
        group.add_argument(flag, type=kind, default=argparse.SUPPRESS, dest=name, help=meaning)
    return group


def _top_k(value: str) -> int | None:
    """As `SamplingParams` has it. Its errors have another name for the option, and for all."""
    if value == "all":
        return None
    if (count := int(value)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, or all, got {value}")
    return count


_top_k.__name__ = "integer or 'all'"  # what argparse calls the type in its error


def by_speaker(option: str, given: list[str] | None) -> "str | dict[str, str] | None":
    """One value for all, or by speaker those that begin with S1= and the like."""
    from ..longform.voices import SPEAKERS

    if given is None:
        return None
    found: dict[str, str] = {}
    for each in given:
        speaker, equals, value = each.partition("=")
        if not equals or speaker not in SPEAKERS:
            if len(given) > 1:
                raise ValueError(f"{option} is given once, or for each speaker as S1=... and S2=..., got {each}")
            return each
        if speaker in found:
            raise ValueError(f"{option} of {speaker} is given twice")
        found[speaker] = value
    return found


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that were given, by the names of `SamplingParams`."""
    from dataclasses import fields

    from ..sampling_params import SamplingParams

    names = (field.name for field in fields(SamplingParams))
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def speech(options: argparse.Namespace) -> "SpeechOptions":
    from ..longform.options import SpeechOptions

    return SpeechOptions(
        split=not options.no_split,
        speed=options.speed,
        pause=options.pause,
        tail_silence=options.tail_silence,
        trim_cut_end=options.trim_cut_end,
        closing_tag=options.closing_tag,
        loudness=options.loudness,
    )


def check_model(options: argparse.Namespace) -> "ModelSource":
    """The model's files, after all options of the model and of sampling are checked; but for the device, which may be
    another machine's."""
    from ..devices.device import resolve_dtype
    from ..sampling_params import SamplingParams
    from ..weights.recipes import checked_recipe
    from ..weights.source import resolve_model

    SamplingParams(**sampling(options))
    for option, dtype in {"--codec-dtype": options.codec_dtype, "--dtype": options.dtype}.items():
        if dtype is not None:
            resolve_dtype(dtype, option)
    if options.quant is not None:
        checked_recipe(options.quant)
    return resolve_model(options.model, options.revision)
