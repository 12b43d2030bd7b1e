"""The command `dia-engine`: `say` makes a sound file of a script, `batch` files of many, `serve` streams to clients,
`info` describes a model, `quantize` shrinks one."""

import argparse
import codecs
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TextIO

if TYPE_CHECKING:
    from .codec import Codec
    from .engine import Engine
    from .longform.options import SpeechOptions
    from .longform.scripts import Script
    from .runtime.call import PieceResult
    from .runtime.chunking import ChunkSizes
    from .runtime.request import Request
    from .weights.source import ModelSource

# Imports of this package stand inside the functions: --help must not wait for torch, nor Ctrl-C meet its import.

# FileNotFoundError and PermissionError are OSErrors, torch.OutOfMemoryError is a RuntimeError.
USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)
EXIT_LINES_FAILED = 1
EXIT_ERROR = 2
MAX_SCRIPT_BYTES = 2**20  # far above any model's limit, which is counted in tokens once the model is known
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
SMALL_MODELS = ("talker", "synthetic:tiny")  # by name: a folder's size is not known before torch is loaded
INFO = "Layout, parameters and memory of a model, from its files; a model of the hub is fetched first."
BATCH = (
    "Make FOLDER/ID.wav of each line of a file, and FOLDER/manifest.jsonl. A line is a JSON object: id, text, and as "
    "needed seed, audio_prompt, audio_prompt_text, and what the options below set for lines that lack it, such as "
    "temperature, split and speed. A job that was cut off goes on where it was. Exit status 1: some lines failed, the "
    "manifest says why."
)
DASH_HINT = "a script that begins with - goes behind --"
INTERRUPTED = "dia-engine: interrupted, nothing was written"
TOY = "talker is a toy of 41 words, for trying the engine without a GPU; it is no measure of Dia."


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 where lines of a batch failed, 2 for an error of the
    user's, 130 after Ctrl-C."""
    _reserve_standard_descriptors()
    try:
        options = _parser().parse_args(arguments)
        limit_threads(getattr(options, "model", ""))
        limit_primitive_cache()
        with _leaving_at_once():
            import_all()
        status = options.run(options) or 0
        _flush_standard_error()
        return status
    except KeyboardInterrupt as interrupt:
        _complain(str(interrupt) or INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the summary or the sound has gone: there is nothing left to do.
        _silence(sys.stdout)
    except USER_ERRORS as error:
        _complain(f"dia-engine: error: {_message(error)}")
        return EXIT_ERROR
    return 0


def _complain(text: str) -> None:
    """Print a line to standard error. Where that is full or gone, the exit status alone tells."""
    try:
        _show(text, sys.stderr)
    except OSError:
        _silence(sys.stderr)  # or the interpreter tries again when it exits, and changes the status


def _flush_standard_error() -> None:
    """Where it is full, a progress bar has left something in its buffer, which would change the status at the exit."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            _silence(sys.stderr)


def limit_threads(model: str) -> None:
    """One thread for a small model, unless the user has set OMP_NUM_THREADS; before torch, which reads it once.

    Its products are too small to share. A second thread only waits at barriers, and where other processes keep the
    cores busy, each wait lasts until the scheduler gives the other thread its turn.
    """
    if model in SMALL_MODELS and "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def limit_primitive_cache() -> None:
    """At most 256 of oneDNN's compiled primitives, unless the user says otherwise; before its first one.

    The codec's sounds have any length, each of which takes some tens of primitives on a CPU. oneDNN's own limit of
    1024 keeps several hundred MB of those that may never be needed again; 256 hold what streams repeat.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def _reserve_standard_descriptors() -> None:
    """Point closed standard descriptors to nowhere: else the next file that is opened takes the number of one, and gets
    what libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _silence(stream: TextIO | None) -> None:
    """Send what is still in the buffer of a standard stream nowhere."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show(text: str, stream: TextIO | None) -> None:
    """Print a line, what the stream's encoding lacks as an escape; nothing where the stream is closed."""
    if stream is not None:
        encoding = stream.encoding or "utf-8"
        try:
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            if stream is sys.stdout:
                _silence(stream)  # or the interpreter tries again when it exits
            raise OSError(error.errno, error.strerror, "standard output or error") from error


def import_all() -> None:
    """Import what every command needs, which takes seconds."""
    from . import engine, info  # noqa: F401
    from .batch import command  # noqa: F401
    from .weights import save  # noqa: F401


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """End the process on Ctrl-C, without an exception: inside the import of a C++ extension one can abort it."""
    before = signal.getsignal(signal.SIGINT)
    # Someone else's handler, an ignored signal and other threads are left alone.
    takes_over = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()

    def leave(*_: object) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    if takes_over:
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if takes_over:
            signal.signal(signal.SIGINT, before)


def _message(error: BaseException) -> str:
    """An error as one line: an operating system's own by file and reason, without their number."""
    from .messages import described, is_out_of_memory, without_controls

    if (isinstance(error, OSError) and error.strerror) or is_out_of_memory(error):
        return described(error)
    return without_controls(" ".join(str(error).split()) or type(error).__name__)


@contextmanager
def _cleaning_up_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that what is half written is removed before the process ends."""

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the removal
        raise SystemExit(EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse has it
        """Refuse `-hello`, a script without `--` before it, which Python 3.12 and later take for `-h`; and
        `--option=--`, which earlier ones take for an empty list."""
        for argument in takewhile(lambda argument: argument != "--", sys.argv[1:] if args is None else args):
            if argument.startswith("-h") and argument != "-h":
                self.error(f"unrecognized arguments: {argument}")
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument.removesuffix('=--')}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, like every other error, instead of the whole usage."""
        if message.startswith("unrecognized arguments: -") or "ignored explicit argument" in message:
            message += f"; {DASH_HINT}"
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = _Parser(prog="dia-engine", description="Run Dia, the open text-to-dialogue model.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add_command in (_add_say, _add_batch, _add_serve, _add_info, _add_quantize):
        add_command(commands)
    return parser


def _add_say(commands: "argparse._SubParsersAction[_Parser]") -> None:
    say = commands.add_parser("say", help="turn a script into a sound file", description="Turn a script into sound.")
    say.set_defaults(run=_say)
    say.add_argument("text", nargs="?", help='the script, such as "[S1] Hello. [S2] Hi!"; - reads standard input')
    say.add_argument("-f", "--file", help="read the script from a text file")
    say.add_argument("-o", "--output", default="speech.wav", help="wav, flac, ogg or mp3 (default: %(default)s)")
    say.add_argument("--subtitles", metavar="FILE", help="also write start and end of each turn, as srt or vtt")
    say.add_argument("--spectrogram", metavar="PNG", help="also draw what was said: 0 to 8 kHz upwards, 5 ms a column")
    streaming = say.add_argument_group("streaming")
    streaming.add_argument(
        "--stream", action="store_true",
        help="write sound as it is made: to a wav file, or with -o - to standard output as 16-bit mono samples",
    )  # fmt: skip
    streaming.add_argument(
        "--chunk-frames", type=int, metavar="N", help="frames per chunk (default: as suits the codec)"
    )
    streaming.add_argument(
        "--first-chunk-frames", type=int, metavar="N", help="frames of the first chunk; the next double (default: 8)"
    )
    _add_model_arguments(say, default_model="nari-labs/Dia-1.6B-0626")
    voice = say.add_argument_group("voice")
    voice.add_argument(
        "--prompt", action="append", metavar="SOUND",
        help="sound file whose voices go on; S1=SOUND and S2=SOUND, given twice, for a file of each speaker",
    )  # fmt: skip
    voice.add_argument(
        "--prompt-text",
        action="append",
        metavar="TEXT",
        help="what is said in the prompt; S1=TEXT for that of a speaker",
    )
    sampling = _add_sampling_arguments(say)
    sampling.add_argument("--seed", type=int, help="same seed, same sound (default: a new one, which is shown)")
    long = _add_speech_arguments(say)
    long.add_argument("--plan", action="store_true", help="print the pieces of the script and generate nothing")
    long.add_argument("--speakers", metavar="Ann=S1,Bob=S2", help="names that begin lines of the script, as Ann: ...")
    say.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def _add_speech_arguments(command: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
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
    return long


def _add_batch(commands: "argparse._SubParsersAction[_Parser]") -> None:
    batch = commands.add_parser("batch", help="turn a file of scripts into a folder of sound files", description=BATCH)
    batch.set_defaults(run=_batch)
    batch.add_argument("scripts", metavar="SCRIPTS", help="file of JSON lines")
    batch.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder, created if it is not there")
    batch.add_argument("--format", default="wav", help="wav, flac, ogg or mp3 (default: %(default)s)")
    batch.add_argument("--slots", type=int, metavar="N", help="scripts at the same time (default: as many as fit)")
    batch.add_argument("--max-rows", type=int, metavar="N", help="decoder rows per slot (default: all of the model's)")
    _add_model_arguments(batch, default_model="nari-labs/Dia-1.6B-0626")
    _add_sampling_arguments(batch)
    _add_speech_arguments(batch)
    batch.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="run on Ray, in the cluster at host:port (default: the one that runs here, else one of this machine)",
    )  # fmt: skip
    batch.add_argument(
        "--actors", type=int, metavar="N", help="engines on Ray (default: one per GPU, or one per machine without any)"
    )
    batch.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def _add_serve(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from .server.settings import add_arguments

    serve = commands.add_parser(
        "serve",
        help="serve speech over HTTP",
        description="Serve speech to OpenAI's and ElevenLabs' clients. docs/server.md lists the routes.",
        epilog="Each option is also read from the environment: DIA_SERVE_PORT for --port.",
    )
    serve.set_defaults(run=_serve)
    add_arguments(serve)


def _add_info(commands: "argparse._SubParsersAction[_Parser]") -> None:
    info = commands.add_parser("info", help="describe a model", description=INFO)
    info.set_defaults(run=_info)
    info.add_argument("model", help="hub id, folder, talker, or synthetic:tiny / synthetic:full")
    info.add_argument("--dtype", default="bfloat16", help="dtype that memory is counted in (default: %(default)s)")
    info.add_argument("--quant", help="count the memory of a quantized model: int8 or nf4")
    info.add_argument("--device", help="whose free memory is looked at (default: cuda if there is one, else cpu)")
    info.add_argument("--max-rows", type=int, metavar="N", help="decoder rows per slot (default: all of the model's)")
    info.add_argument("--revision", help="revision of the hub repository")


def _add_quantize(commands: "argparse._SubParsersAction[_Parser]") -> None:
    quantize = commands.add_parser(
        "quantize", help="write a quantized copy of a model", description="Write a model in 8 or 4 bits."
    )
    quantize.set_defaults(run=_quantize)
    quantize.add_argument("model", help="hub id, folder, talker, or synthetic:tiny / synthetic:full")
    quantize.add_argument("folder", metavar="OUT", help="folder to create")
    quantize.add_argument("--quant", required=True, help="int8 or nf4")
    quantize.add_argument("--dtype", default="bfloat16", help="of what is not quantized (default: %(default)s)")
    quantize.add_argument("--revision", help="revision of the hub repository")


def _add_model_arguments(command: argparse.ArgumentParser, default_model: str) -> None:
    group = command.add_argument_group("model")
    names = "hub id, folder, talker or synthetic:... (default: %(default)s)"
    group.add_argument("--model", default=default_model, help=names)
    group.add_argument("--codec", help="codec's hub id, folder or file (default: the model's, else descript/dac_44khz)")
    group.add_argument("--codec-dtype", help="float32, bfloat16 or float16 (default: float32)")
    group.add_argument("--revision", help="revision of the hub repository")
    group.add_argument("--quant", help="int8 or nf4: quantize the weights while loading")
    group.add_argument("--dtype", help="float32, bfloat16 or float16 (default: what suits the device)")
    group.add_argument("--device", help="such as cuda, cuda:1 or cpu (default: cuda if there is one)")


def _add_sampling_arguments(command: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    from .sampling_params import ResolvedSamplingParams

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
    return None if value == "all" else int(value)  # None: see SamplingParams


_top_k.__name__ = "integer or 'all'"  # what argparse calls the type in its error


def _say(options: argparse.Namespace) -> None:
    script, seed = _script(options), _seed(options.seed)
    if options.speakers is not None:
        from .longform.voices import parse_speakers, with_tags

        script = with_tags(script, parse_speakers(options.speakers))
    if options.plan:
        _show_plan(options, script, seed)
        return
    sizes = _check_outputs(options)
    request, codec = _parse(options, script, seed)
    report = None if options.quiet else sys.stderr if options.stream else sys.stdout  # which the sound may have
    _note_replaced(options, report)
    from .engine import Engine
    from .runtime.call import logger as cut_logger

    if options.quiet:
        cut_logger.setLevel(logging.ERROR)
    started = time.perf_counter()
    engine = Engine.load(
        options.model,
        quant=options.quant,
        dtype=options.dtype,
        device=options.device,
        codec=codec,
        codec_dtype=options.codec_dtype,
        revision=options.revision,
    )
    loaded = time.perf_counter() - started
    verbose = not options.quiet and sys.stderr is not None and sys.stderr.isatty()
    if options.stream:
        summary = _stream(engine, request, sizes, verbose, options)
    else:
        summary = _generate(engine, request, verbose, options)
    dtype = str(engine.dtype).removeprefix("torch.")
    _show(summary, report)
    _show(f"seed {seed}, {dtype} on {engine.device}, loaded in {loaded:.1f} s", report)
    if options.model.startswith("synthetic:"):
        _show("The weights are random: this is noise, not speech.", report)
    if options.model == "talker":
        _show(TOY, report)


def _by_speaker(option: str, given: list[str] | None) -> "str | dict[str, str] | None":
    """One value for all, or by speaker those that begin with S1= and the like."""
    from .longform.voices import SPEAKERS

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


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that were given, by the names of `SamplingParams`."""
    from dataclasses import fields

    from .sampling_params import SamplingParams

    names = (field.name for field in fields(SamplingParams))
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _speech(options: argparse.Namespace) -> "SpeechOptions":
    from .longform.options import SpeechOptions

    return SpeechOptions(
        split=not options.no_split,
        speed=options.speed,
        pause=options.pause,
        tail_silence=options.tail_silence,
        trim_cut_end=options.trim_cut_end,
        closing_tag=options.closing_tag,
    )


def _show_plan(options: argparse.Namespace, script: str, seed: int) -> None:
    from .longform.scripts import make_plan
    from .weights.source import resolve_model

    source = resolve_model(options.model, options.revision)
    plan = make_plan(
        script, seed, _speech(options), source.long_form, source.config,
        transcript=_by_speaker("--prompt-text", options.prompt_text), has_prompt=options.prompt is not None,
    )  # fmt: skip
    _show(str(plan), sys.stdout)


def _check_outputs(options: argparse.Namespace) -> "ChunkSizes":
    """Check, before a model is fetched or loaded, which takes long, where the sound goes, and in what chunks."""
    from .files.audio import check_writable
    from .files.spectrogram import check_spectrogram_path
    from .longform.subtitles import check_subtitles_path
    from .runtime.chunking import ChunkSizes

    check_spectrogram_path(options.spectrogram)
    check_subtitles_path(options.subtitles)
    sizes = ChunkSizes(options.chunk_frames, options.first_chunk_frames)
    if options.stream:
        _check_streaming(options)
    elif options.chunk_frames is not None or options.first_chunk_frames is not None or options.output == "-":
        raise ValueError("--chunk-frames, --first-chunk-frames and -o - need --stream")
    else:
        check_writable(options.output)
    return sizes


def _note_replaced(options: argparse.Namespace, report: TextIO | None) -> None:
    from .files.paths import user_path

    for path in (options.output, options.spectrogram, options.subtitles):
        if path not in (None, "-") and user_path(path).exists():
            _show(f"{path} exists and will be replaced", report)


def _parse(options: argparse.Namespace, script: str, seed: int) -> "tuple[Request | Script, Codec | str | None]":
    """Find all that can be known to be wrong before a model is loaded, which takes long.

    Returns:
        the request; and the codec: as the options name it, or loaded where an audio prompt needs it.
    """
    from .longform.scripts import parse_scripts

    source, codec = _check_model(options)
    (request,) = parse_scripts(
        script,
        _sampling(options),
        options=_speech(options),
        settings=source.long_form,
        audio_prompt=_by_speaker("--prompt", options.prompt),
        audio_prompt_text=_by_speaker("--prompt-text", options.prompt_text),
        seed=seed,
        config=source.config,
        defaults=source.defaults,
        codec=codec,
    )
    return request, options.codec if options.prompt is None else codec()


def _check_model(options: argparse.Namespace) -> "tuple[ModelSource, Callable[[], Codec]]":
    """The model's files, and what opens its codec once, after all options of the model and of sampling are checked."""
    from .devices.device import resolve_device, resolve_dtype
    from .engine import open_codec
    from .sampling_params import SamplingParams
    from .weights.recipes import checked_recipe
    from .weights.source import resolve_model

    SamplingParams(**_sampling(options))
    device = resolve_device(options.device)
    codec_dtype = options.codec_dtype and resolve_dtype(options.codec_dtype, "--codec-dtype")
    if options.dtype is not None:
        resolve_dtype(options.dtype, "--dtype")
    if options.quant is not None:
        checked_recipe(options.quant)
    source = resolve_model(options.model, options.revision)

    @functools.cache
    def codec() -> "Codec":
        return open_codec(options.codec, source, device, codec_dtype)

    return source, codec


def _check_streaming(options: argparse.Namespace) -> None:
    from .files.audio import check_writable

    if options.output != "-":
        check_writable(options.output)
        if not options.output.lower().endswith(".wav"):
            raise ValueError(f"{options.output}: --stream writes wav files, or samples to standard output with -o -")
    elif sys.stdout is None:
        raise ValueError("standard output is closed: name a wav file with -o")
    elif sys.stdout.isatty():
        raise ValueError("standard output is a terminal: pipe it to a player, or name a wav file with -o")


def _generate(engine: "Engine", request: "Request | Script", verbose: bool, options: argparse.Namespace) -> str:
    """Make the sound, then its file -> what to say of it."""
    import numpy as np

    started = time.perf_counter()
    (generation,) = engine.run_requests([request], verbose)
    audio = np.zeros(0) if generation.audio is None else generation.audio
    spent = time.perf_counter() - started
    _check_said(len(audio), generation.seed)
    engine.save_audio(options.output, audio)
    _subtitle(options, generation.pieces, generation.duration)
    _draw(options.spectrogram, [audio], engine.sample_rate)
    return f"{options.output}: {_speed(len(audio) / engine.sample_rate, spent)}"


def _stream(
    engine: "Engine", request: "Request | Script", sizes: "ChunkSizes", verbose: bool, options: argparse.Namespace
) -> str:
    """Make the sound and write it as it comes -> what to say of it."""
    from .files.wav_stream import GrowingWav, RawSamples

    to_pipe = options.output == "-"
    name = "standard output" if to_pipe else options.output
    started, first, said, pieces = time.perf_counter(), 0.0, 0.0, []
    sink: GrowingWav | RawSamples | None = None
    try:
        with engine.stream_requests([request], sizes, verbose) as stream:
            for _, chunk in stream:
                if sink is None:  # not before: what fails until here leaves an older file as it was
                    sink = RawSamples(sys.stdout.buffer) if to_pipe else GrowingWav(name, engine.sample_rate)
                sink.write(chunk)
                first = first or time.perf_counter() - started
                said += len(chunk) / engine.sample_rate
                if options.spectrogram is not None:
                    pieces.append(chunk)
    except KeyboardInterrupt:
        written = f"{said:.2f} s of sound are in {name}" if said else "nothing was written"
        raise KeyboardInterrupt(f"dia-engine: interrupted, {written}") from None
    (ended,) = results if isinstance(results := stream.result, list) else [results]
    _check_said(said, ended.seed)
    _subtitle(options, ended.pieces, ended.duration)
    _draw(options.spectrogram, pieces, engine.sample_rate)
    return f"{name}: {_speed(said, time.perf_counter() - started)}, the first of it after {first:.3f} s"


def _subtitle(options: argparse.Namespace, pieces: "tuple[PieceResult, ...]", seconds: float) -> None:
    """The subtitles, if they are asked for; a script that was generated as one is one piece of them."""
    if options.subtitles is not None:
        from .longform.subtitles import write_subtitles
        from .runtime.call import PieceResult

        whole = PieceResult(_script(options), 0, 1, "stop", 0.0, seconds)
        write_subtitles(options.subtitles, pieces or (whole,))


def _draw(path: str | None, pieces: list, sample_rate: int) -> None:
    """The spectrogram of a sound in pieces, if one is asked for."""
    if path is not None:
        import numpy as np

        from .files.spectrogram import draw_spectrogram

        draw_spectrogram(path, np.concatenate(pieces), sample_rate)


def _check_said(amount: float, seed: int) -> None:
    if not amount:
        raise ValueError(f"the model ended at once and said nothing (seed {seed}); try another seed or a longer text")


def _speed(seconds: float, spent: float) -> str:
    return f"{seconds:.2f} s of sound in {spent:.2f} s ({seconds / spent:.2f}x real time)"


def _script(options: argparse.Namespace) -> str:
    if (options.text is None) == (options.file is None):
        raise ValueError(
            "give the script once: as TEXT (behind -- where it begins with -), as - for standard input, or with --file"
        )
    if options.file is None and options.text != "-":
        return options.text
    if options.file is not None:
        from .files.paths import user_path

        if not options.file:
            raise ValueError("the name of the script file is empty")
        try:
            with user_path(options.file).open("rb") as file:
                return _script_text(_read_script(file, options.file), options.file)
        except FileNotFoundError:
            raise FileNotFoundError(f"no script file at {options.file}; {DASH_HINT}") from None
    if sys.stdin is None:
        raise ValueError("standard input is closed: give the script as TEXT or with --file")
    return _script_text(_read_script(sys.stdin.buffer, "standard input"), "standard input")


def _read_script(file: BinaryIO, name: str) -> bytes:
    try:
        content = file.read(MAX_SCRIPT_BYTES + 1)  # a device or a pipe may have no end
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    if len(content) > MAX_SCRIPT_BYTES:
        raise ValueError(f"{name} has more than {MAX_SCRIPT_BYTES} bytes, which is no script")
    return content


def _script_text(content: bytes, name: str) -> str:
    """The script in a text file, without what an editor does not show: byte order mark, CR before LF, last line end."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{name} is not UTF-8 text but UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def _seed(given: int | None) -> int:
    """The given seed, checked; else a new one, which the summary shows so that the sound can be made again."""
    import secrets

    from .sampling_params import check_seed

    return secrets.randbelow(2**31) if given is None else check_seed(given)


def _serve(options: argparse.Namespace) -> None:
    from .server.command import run

    run({name: value for name, value in vars(options).items() if name != "run"})


def _batch(options: argparse.Namespace) -> int:
    from .batch.command import run_batch

    _check_model(options)
    report = None if options.quiet else sys.stdout
    with _cleaning_up_on_sigterm():
        lines, failed = run_batch(options, _sampling(options), _speech(options))
    for line in lines:
        _show(line, report)
    return EXIT_LINES_FAILED if failed else 0


def _info(options: argparse.Namespace) -> None:
    from .info import describe

    if sys.stdout is None:
        raise ValueError("standard output is closed, where the description should go")
    text = describe(
        options.model, options.revision, options.dtype, options.quant, device=options.device, max_rows=options.max_rows
    )
    _show(text, sys.stdout)


def _quantize(options: argparse.Namespace) -> None:
    from .weights.save import quantize_model

    with _cleaning_up_on_sigterm():
        size = quantize_model(
            options.model, options.folder, options.quant, dtype=options.dtype, revision=options.revision
        )
    _show(f"{options.folder}: {size / 1e6:,.0f} MB of weights, {options.quant}", sys.stdout)
