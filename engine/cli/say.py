"""`dia-engine say`: a script to a sound file, or to samples as they are made."""

import argparse
import functools
import logging
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import (
    add_model_arguments,
    add_sampling_arguments,
    add_speech_arguments,
    by_speaker,
    check_model,
    sampling,
    speech,
)
from .process import show
from .script import script_of

if TYPE_CHECKING:
    import numpy as np

    from ..codec import Codec
    from ..engine import Engine
    from ..longform.script import Script
    from ..results import PieceResult, Progress
    from ..runtime.chunking import ChunkSizes
    from ..runtime.request import Request

TOY = "talker is a toy of 41 words, for trying the engine without a GPU; it is no measure of Dia."


def add_command(commands: "argparse._SubParsersAction[Any]") -> None:
    say = commands.add_parser("say", help="turn a script into a sound file", description="Turn a script into sound.")
    say.set_defaults(run=run)
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
    add_model_arguments(say, default_model="nari-labs/Dia-1.6B-0626")
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
    drawing = add_sampling_arguments(say)
    drawing.add_argument("--seed", type=int, help="same seed, same sound (default: a new one, which is shown)")
    long = add_speech_arguments(say)
    long.add_argument("--plan", action="store_true", help="print the pieces of the script and generate nothing")
    long.add_argument("--speakers", metavar="Ann=S1,Bob=S2", help="names that begin lines of the script, as Ann: ...")
    say.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def run(options: argparse.Namespace) -> None:
    script, seed = script_of(options), _seed(options.seed)
    if options.speakers is not None:
        from ..longform.voices import parse_speakers, with_tags

        script = with_tags(script, parse_speakers(options.speakers))
    if options.plan:
        _show_plan(options, script, seed)
        return
    sizes = _check_outputs(options)
    request, codec = _parse(options, script, seed)
    report = None if options.quiet else sys.stderr if options.stream else sys.stdout  # which the sound may have
    _note_replaced(options, report)
    from ..engine import Engine
    from ..runtime.call import logger as cut_logger

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
    subtitles = _Subtitles(options.subtitles, script, engine.sample_rate)
    if options.stream:
        summary = _stream(engine, request, sizes, verbose, options, subtitles)
    else:
        summary = _generate(engine, request, verbose, options, subtitles)
    dtype = str(engine.dtype).removeprefix("torch.")
    show(summary, report)
    show(f"seed {seed}, {dtype} on {engine.device}, loaded in {loaded:.1f} s", report)
    if options.model.startswith("synthetic:"):
        show("The weights are random: this is noise, not speech.", report)
    if options.model == "talker":
        show(TOY, report)


def _show_plan(options: argparse.Namespace, script: str, seed: int) -> None:
    from ..longform.planning.checked_plan import make_plan
    from ..weights.source import resolve_model

    source = resolve_model(options.model, options.revision)
    plan = make_plan(
        script, seed, speech(options), source.long_form, source.config,
        transcript=by_speaker("--prompt-text", options.prompt_text), has_prompt=options.prompt is not None,
    )  # fmt: skip
    show(str(plan), sys.stdout)


def _check_outputs(options: argparse.Namespace) -> "ChunkSizes":
    """Check, before a model is fetched or loaded, which takes long, where the sound goes, and in what chunks."""
    from ..files.audio import check_writable
    from ..files.spectrogram import check_spectrogram_path
    from ..longform.subtitles import check_subtitles_path
    from ..runtime.chunking import ChunkSizes

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
    from ..files.paths import user_path

    for path in (options.output, options.spectrogram, options.subtitles):
        if path not in (None, "-") and user_path(path).exists():
            show(f"{path} exists and will be replaced", report)


def _parse(options: argparse.Namespace, script: str, seed: int) -> "tuple[Request | Script, Codec | str | None]":
    """Find all that can be known to be wrong before a model is loaded, which takes long.

    Returns:
        the request; and the codec: as the options name it, or loaded where an audio prompt needs it.
    """
    from ..devices.device import resolve_device, resolve_dtype
    from ..longform.parsing import parse_scripts

    device = resolve_device(options.device)
    source = check_model(options)

    @functools.cache
    def codec() -> "Codec":
        dtype = None if options.codec_dtype is None else resolve_dtype(options.codec_dtype)
        return source.open_codec(options.codec, device, dtype)

    (request,) = parse_scripts(
        script,
        sampling(options),
        options=speech(options),
        settings=source.long_form,
        audio_prompt=by_speaker("--prompt", options.prompt),
        audio_prompt_text=by_speaker("--prompt-text", options.prompt_text),
        seed=seed,
        config=source.config,
        defaults=source.defaults,
        codec=codec,
    )
    return request, options.codec if options.prompt is None else codec()


def _check_streaming(options: argparse.Namespace) -> None:
    from ..files.audio import check_writable

    if options.loudness is not None:
        raise ValueError(
            "--loudness is measured over the whole sound, before any of it can be written: not with --stream"
        )
    if options.output != "-":
        check_writable(options.output)
        if not options.output.lower().endswith(".wav"):
            raise ValueError(f"{options.output}: --stream writes wav files, or samples to standard output with -o -")
    elif sys.stdout is None:
        raise ValueError("standard output is closed: name a wav file with -o")
    elif sys.stdout.isatty():
        raise ValueError("standard output is a terminal: pipe it to a player, or name a wav file with -o")


def _generate(
    engine: "Engine", request: "Request | Script", verbose: bool, options: argparse.Namespace, subtitles: "_Subtitles"
) -> str:
    """Make the sound, then its file -> what to say of it."""
    import numpy as np

    from ..longform.script import at_asked_loudness, is_planned

    started = time.perf_counter()
    chunks: list[np.ndarray] = []
    try:
        (generation,) = engine.run_requests(
            [request], verbose, on_progress=subtitles.note, on_chunk=lambda chunk: chunks.append(chunk.audio)
        )
    except KeyboardInterrupt:
        if not (chunks and is_planned(request)):
            raise
        (audio,) = at_asked_loudness([np.concatenate(chunks)], [request], engine.sample_rate)
        engine.save_audio(options.output, audio)
        subtitles.add(audio)
        raise _interrupted(options.output, subtitles) from None
    audio = np.zeros(0) if generation.audio is None else generation.audio
    spent = time.perf_counter() - started
    _check_said(len(audio), generation.seed)
    engine.save_audio(options.output, audio)
    subtitles.add(audio)
    subtitles.write()
    _draw(options.spectrogram, [audio], engine.sample_rate)
    return f"{options.output}: {_speed(len(audio) / engine.sample_rate, spent)}"


def _stream(
    engine: "Engine", request: "Request | Script", sizes: "ChunkSizes", verbose: bool, options: argparse.Namespace,
    subtitles: "_Subtitles",
) -> str:  # fmt: skip
    """Make the sound and write it as it comes -> what to say of it."""
    from ..files.wav_stream import GrowingWav, RawSamples

    to_pipe = options.output == "-"
    name = "standard output" if to_pipe else options.output
    started, first, pieces = time.perf_counter(), 0.0, []
    sink: GrowingWav | RawSamples | None = None
    try:
        with engine.stream_requests([request], sizes, verbose, on_progress=subtitles.note) as stream:
            for _, chunk in stream:
                if sink is None:  # not before: what fails until here leaves an older file as it was
                    sink = RawSamples(sys.stdout.buffer) if to_pipe else GrowingWav(name, engine.sample_rate)
                sink.write(chunk)
                first = first or time.perf_counter() - started
                subtitles.add(chunk)
                if options.spectrogram is not None:
                    pieces.append(chunk)
    except KeyboardInterrupt:
        raise _interrupted(name, subtitles) from None
    (ended,) = results if isinstance(results := stream.result, list) else [results]
    _check_said(subtitles.seconds, ended.seed)
    subtitles.write()
    _draw(options.spectrogram, pieces, engine.sample_rate)
    return f"{name}: {_speed(subtitles.seconds, time.perf_counter() - started)}, the first of it after {first:.3f} s"


def _interrupted(name: str, subtitles: "_Subtitles") -> KeyboardInterrupt:
    """What Ctrl-C says, when the sound that there is has been written; its subtitles are written too."""
    if subtitles.seconds:
        subtitles.write(ended=False)
    written = f"{subtitles.seconds:.2f} s of sound are in {name}" if subtitles.seconds else "nothing was written"
    return KeyboardInterrupt(f"dia-engine: interrupted, {written}")


class _Subtitles:
    """What has been said so far, and when."""

    def __init__(self, path: str | None, script: str, sample_rate: int):
        """A script that is not planned is one turn after the other in one piece; no path writes nothing."""
        from ..longform.subtitles import Levels

        self._path, self._script, self._sample_rate = path, script, sample_rate
        self._levels = Levels(sample_rate)
        self._pieces: list[PieceResult] = []
        self._samples = 0

    @property
    def seconds(self) -> float:
        """Of sound."""
        return self._samples / self._sample_rate

    def note(self, progress: "Progress") -> None:
        """A piece is done."""
        self._pieces.append(progress.last)

    def add(self, sound: "np.ndarray") -> None:
        """More of the sound [n], in order."""
        self._samples += len(sound)
        if self._path is not None:
            self._levels.add(sound)

    def write(self, ended: bool = True) -> None:
        """Write the file: of the pieces whose sound there is; of a script that was not planned, once it has ended."""
        from ..longform.subtitles import write_subtitles
        from ..results import PieceResult

        heard = [replace(each, end=min(each.end, self.seconds)) for each in self._pieces if each.start < self.seconds]
        if ended and not heard:
            heard = [PieceResult(self._script, 0, 1, "stop", 0.0, self.seconds)]
        if self._path is not None and heard:
            write_subtitles(self._path, heard, self._levels)


def _draw(path: str | None, pieces: list, sample_rate: int) -> None:
    """The spectrogram of a sound in pieces, if one is asked for."""
    if path is not None:
        import numpy as np

        from ..files.spectrogram import draw_spectrogram

        draw_spectrogram(path, np.concatenate(pieces), sample_rate)


def _check_said(amount: float, seed: int) -> None:
    if not amount:
        raise ValueError(f"the model generated no audio (seed {seed}); try another seed or a longer text")


def _speed(seconds: float, spent: float) -> str:
    return f"{seconds:.2f} s of sound in {spent:.2f} s ({seconds / spent:.2f}x real time)"


def _seed(given: int | None) -> int:
    """The given seed, checked; else a new one, which the summary shows so that the sound can be made again."""
    import secrets

    from ..sampling_params import check_seed

    return secrets.randbelow(2**31) if given is None else check_seed(given)
