"""From a caller's arguments to scripts that are spoken in pieces."""

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..audio.loudness import at_loudness
from ..codec import Codec
from ..codec.windowed import CodeWindows, Decoded
from ..devices.precision import full_float32
from ..longform_settings import LongFormSettings
from ..messages import shown
from ..model.config import DiaConfig
from ..model.tokenizer import encode_bytes, encode_text, has_visible_text, is_visible
from ..runtime.call import Call
from ..runtime.chunking import ChunkSizes
from ..runtime.engine_thread import EngineThread
from ..runtime.request import Request, item_named, parse_requests
from .assembly import Assembler
from .options import AudioPrompts, SpeechOptions
from .plan import Piece, Plan, plan_pieces, size_of, whole_script
from .source import Arriving, Feeder, PieceSource, Planned
from .speaker import ScriptCall, ScriptSpeaker, Surroundings
from .voices import joined_prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Script:
    """What is asked for: a request, and how its text is spoken in pieces.

    Attributes:
        request: its text is not used.
        source: makes what gives the pieces.
        is_split: whether the text was planned.
        options: beside the sampling.
        parts: the text as it arrives; None if it is known.
    """

    request: Request
    source: Callable[[], PieceSource]
    is_split: bool
    options: SpeechOptions
    parts: "Iterable[str] | AsyncIterable[str] | None" = None
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def seed(self) -> int:
        """Of the whole script."""
        return self.request.seed

    def encode_prompt(self, codec: Codec | None) -> "Script":
        """With the audio prompt as codes; see `Request.encode_prompt`."""
        return replace(self, request=self.request.encode_prompt(codec))


def parse_scripts(
    text: Any,
    sampling: Mapping[str, Any],
    *,
    options: SpeechOptions,
    settings: LongFormSettings,
    config: DiaConfig,
    makes_sound: bool = True,
    audio_prompt: AudioPrompts = None,
    audio_prompt_path: AudioPrompts = None,
    use_torch_compile: bool = False,
    use_cfg_filter: bool | None = None,
    **arguments: Any,
) -> list[Request | Script]:
    """Arguments of `Engine.generate` and `stream` as requests, by `parse_requests`; long texts, and those whose sound
    is edited, become scripts.

    Args:
        makes_sound: whether there is a codec.
        audio_prompt_path, use_torch_compile, use_cfg_filter: as in the reference: an older name, and without effect.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `parse_requests`; or a piece that the model cannot read.
    """
    if not makes_sound:
        _require_no_editing(options)
    if use_torch_compile:
        logger.info("use_torch_compile has no effect: the engine's own step is used")
    if use_cfg_filter is not None:
        logger.warning("use_cfg_filter has no effect; cfg_filter_top_k sets the filter")
    arguments["audio_prompt"] = _named_once(audio_prompt, audio_prompt_path)
    arguments = _with_joined_prompts(text, arguments)
    if _arrives(text):
        return [_arriving(text, sampling, options, settings, config, arguments)]
    batch = isinstance(text, (list, tuple))
    texts: list[Any] = list(text) if batch else [text]
    split = {index for index, each in enumerate(texts) if _needs_pieces(each, options, settings)}
    requests = parse_requests(text, sampling, config=config, planned=split, **arguments)
    transcripts = arguments.get("audio_prompt_text")
    transcripts = list(transcripts) if isinstance(transcripts, (list, tuple)) else [transcripts] * len(texts)
    found: list[Request | Script] = []
    for index, request in enumerate(requests):
        if index not in split and not options.changes_sound:
            found.append(request)
            continue
        pieces = _piece_maker(
            texts[index], request.seed, options, settings, config,
            transcript=transcripts[index], has_prompt=len(request.prompt) > 0, is_split=index in split,
        )  # fmt: skip
        found.append(Script(request, _planned_by(pieces), index in split, options))
    return found


def _with_joined_prompts(text: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with prompts that are given by speaker as single ones."""
    prompts, transcripts = arguments.get("audio_prompt"), arguments.get("audio_prompt_text")
    if not isinstance(text, (list, tuple)):
        prompt, transcript = joined_prompt(prompts, transcripts, text)
        return {**arguments, "audio_prompt": prompt, "audio_prompt_text": transcript}
    columns = [value if isinstance(value, list) else [None] * len(text) for value in (prompts, transcripts)]
    by_speaker = any(isinstance(each, Mapping) for column in columns for each in column)
    if not by_speaker or any(len(column) != len(text) for column in columns):
        return arguments
    joined = []
    for index, each in enumerate(zip(*columns, text, strict=True)):
        with item_named(index, True):
            joined.append(joined_prompt(*each))
    prompts, transcripts = ([pair[which] for pair in joined] for which in (0, 1))
    return {**arguments, "audio_prompt": prompts, "audio_prompt_text": transcripts}


def call_for(items: Iterable[Request | Script], **options: Any) -> Call:
    """A call for requests and scripts; `options` are those of `Call`."""
    items = list(items)
    planned = any(isinstance(item, Script) for item in items)
    return (ScriptCall if planned else Call)(len(items), **options)


def make_plan(
    text: str,
    seed: int,
    options: SpeechOptions,
    settings: LongFormSettings,
    config: DiaConfig,
    *,
    transcript: str | Mapping[str, str] | None = None,
    has_prompt: bool = False,
) -> Plan:
    """How a script will be spoken.

    Raises:
        TypeError, ValueError: it is no text, nothing but tags, or a piece cannot be read by the model.
    """
    is_split = _needs_pieces(text, options, settings)
    pieces = _piece_maker(
        text, seed, options, settings, config, transcript=transcript, has_prompt=has_prompt, is_split=is_split
    )
    return Plan(tuple(pieces()), is_split)


def _planned_by(pieces: Callable[[], Iterator[Piece]]) -> Callable[[], PieceSource]:
    return lambda: Planned(pieces())


def _piece_maker(
    text: str,
    seed: int,
    options: SpeechOptions,
    settings: LongFormSettings,
    config: DiaConfig,
    *,
    transcript: str | Mapping[str, str] | None,
    has_prompt: bool,
    is_split: bool,
) -> Callable[[], Iterator[Piece]]:
    """What plans the pieces of a script, one by one; errors as those of `make_plan`, all of them now."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    said: str | None = joined_prompt(transcript, transcript, text)[1]
    if not isinstance(said or "", str):
        raise TypeError(f"audio_prompt_text must be a string, got {type(said).__name__}")
    if has_visible_text(said or "") and not has_prompt:
        raise ValueError("audio_prompt_text is the transcript of an audio_prompt, but there is no audio_prompt")

    def pieces() -> Iterator[Piece]:
        if is_split:
            return plan_pieces(text, seed, settings, **_rules(options, settings, said, has_prompt))
        return iter((whole_script(text, seed, settings, said or ""),))

    planned = pieces()  # raises if there is nothing to say
    if is_split and _is_readable(text, said or "", settings, config):
        return pieces
    checked = tuple(planned)
    for piece in checked:
        _check(piece, config)
    return lambda: iter(checked)


def _is_readable(text: str, transcript: str, settings: LongFormSettings, config: DiaConfig) -> bool:
    """Whether the model can read all pieces of a text, as far as can be told without a plan of it."""
    longest = max(settings.good_bytes + settings.piece_bytes, size_of(transcript) + 2 * settings.piece_bytes) + 16
    return (
        longest <= config.encoder.max_position_embeddings
        and config.encoder.vocab_size >= 256
        and all(_is_readable_character(character) for character in set(text))
    )


def _rules(
    options: SpeechOptions, settings: LongFormSettings, transcript: str | None, has_prompt: bool
) -> dict[str, Any]:
    """How pieces are planned, by the names of `Planner`."""
    return {
        "transcript": (transcript or "") if has_prompt else None,
        "one_turn": options.pause > 0,
        "closing_tag": settings.closing_tag if options.closing_tag is None else options.closing_tag,
    }


def _is_readable_character(character: str) -> bool:
    """Whether a character can be encoded, and makes what it stands in a text, if it is not white space."""
    return not "\ud800" <= character <= "\udfff" and (character.isspace() or is_visible(character))


class ScriptRunner:
    """Speaks scripts with an engine's parts."""

    def __init__(
        self,
        thread: EngineThread,
        windows: CodeWindows,
        codec: Codec | None,
        config: DiaConfig,
        settings: LongFormSettings,
        *,
        frames_per_second: float,
        max_rows: int,
    ):
        self._thread, self._windows, self._codec = thread, windows, codec
        self._config, self._settings = config, settings
        self._frames_per_second, self._max_rows = frames_per_second, max_rows

    def start(
        self,
        items: Collection[Request | Script],
        call: ScriptCall,
        sizes: ChunkSizes,
    ) -> None:
        """Begin requests and scripts, all prompts of which are codes; the results go to the call.

        Raises:
            EngineFull, RuntimeError: as `EngineThread.submit`.
            RuntimeError: a text comes from the event loop that would wait here.
        """
        if any(isinstance(item, Script) and item.loop is not None and item.loop is _running_loop() for item in items):
            raise RuntimeError(
                "this text comes from the event loop that would stand still here, waiting for its sound: read it with "
                "`async for` over astream"
            )
        around = self._surroundings()
        for index, item in enumerate(items):
            if isinstance(item, Request):
                self._thread.submit([item], call, sizes, first_index=index)
                continue
            source = item.source()
            speaker = ScriptSpeaker(
                item.request, index, call, source, item.options, sizes, around, is_split=item.is_split
            )  # fmt: skip
            speaker.start()
            if item.parts is not None and isinstance(source, Arriving):
                Feeder(item.parts, source, call, speaker.wake, speaker.fail, item.loop).start()

    def _surroundings(self) -> Surroundings:
        encoder = self._config.encoder
        return Surroundings(
            submit=self._thread.submit,
            make_assembler=self._assembler,
            encode=lambda text: encode_text(text, encoder.max_position_embeddings, encoder.vocab_size),
            settings=self._settings,
            frames_per_second=self._frames_per_second,
            max_rows=self._max_rows,
            max_delay=self._config.max_delay,
            slots=self._thread.scheduler.runner.max_slots,
        )

    def _assembler(self, sizes: ChunkSizes, options: SpeechOptions) -> Assembler:
        codec, workers = self._codec, self._thread.scheduler.workers
        return Assembler(
            self._decode, self._windows.samples, self._windows.receptive_field, sizes, options,
            hop=codec.hop_length if codec else 1,
            frames_per_second=self._frames_per_second,
            sample_rate=codec.sample_rate if codec else None,
            windows_at_once=1 if workers is None else 1 + workers.count,  # the engine's thread helps
        )  # fmt: skip

    def _decode(self, codes: np.ndarray, first: int, last: int | None) -> Decoded:
        """Decode a window where the engine's thread says: in itself between two steps, or beside them."""

        def work() -> Decoded:
            with full_float32():
                return self._thread.scheduler.decode_now(torch.from_numpy(codes), first, last)

        return self._thread.run(work)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _arrives(text: Any) -> bool:
    return not isinstance(text, (str, bytes, list, tuple, dict)) and (
        isinstance(text, AsyncIterable) or (isinstance(text, Iterable) and hasattr(text, "__next__"))
    )


def _arriving(
    text: Any,
    sampling: Mapping[str, Any],
    options: SpeechOptions,
    settings: LongFormSettings,
    config: DiaConfig,
    arguments: Mapping[str, Any],
) -> Script:
    if not options.split:
        raise ValueError("a text that arrives in parts is spoken in pieces: split=False needs all of it")
    loop = _running_loop() if isinstance(text, AsyncIterable) else None
    if loop is None and isinstance(text, AsyncIterable):
        raise RuntimeError("an asynchronous iterator of text needs a running event loop: call astream in a coroutine")
    (request,) = parse_requests("x", sampling, config=config, planned={0}, **arguments)
    rules = _rules(options, settings, arguments.get("audio_prompt_text"), has_prompt=len(request.prompt) > 0)

    def check(piece: Piece) -> None:
        _check(piece, config)

    def source() -> Arriving:
        return Arriving(request.seed, settings, check=check, **rules)

    return Script(request, source, True, options, text, loop)


def _named_once(audio_prompt: AudioPrompts, audio_prompt_path: AudioPrompts) -> AudioPrompts:
    if audio_prompt_path is None:
        return audio_prompt
    if audio_prompt is not None:
        raise ValueError("audio_prompt and audio_prompt_path are two names of one argument; give only audio_prompt")
    logger.warning("audio_prompt_path is an old name; use audio_prompt")
    return audio_prompt_path


def _require_no_editing(options: SpeechOptions) -> None:
    """Raises ValueError: sound is to be edited that no codec makes."""
    if options.changes_sound or options.pause > 0:
        name = next(
            name for name in ("speed", "tail_silence", "pause", "trim_cut_end", "loudness")
            if getattr(options, name) != getattr(SpeechOptions(), name)
        )  # fmt: skip
        raise ValueError(f"{name} is about sound, and this engine has no codec; load it with load_dac=True")


def is_planned(item: Request | Script) -> bool:
    """Whether it is spoken in pieces."""
    return isinstance(item, Script) and item.is_split


def check_streamable(items: Collection[Request | Script]) -> None:
    """Raises ValueError: one asks for what only a whole sound can have."""
    if any(isinstance(item, Script) and item.options.loudness is not None for item in items):
        raise ValueError(
            "loudness is measured over a whole sound, and a stream gives out the beginning before there is an end: use "
            "generate, or leave loudness out"
        )


def at_asked_loudness(
    sounds: Collection[np.ndarray], items: Collection[Request | Script], sample_rate: int
) -> list[np.ndarray]:
    """The whole sounds [samples] of requests and scripts at the loudness that the scripts ask for."""
    found = []
    for index, (sound, item) in enumerate(zip(sounds, items, strict=True)):
        target = item.options.loudness if isinstance(item, Script) else None
        name = f"item {index}: " if len(items) > 1 else ""
        found.append(sound if target is None else at_loudness(sound, target, sample_rate, name))
    return found


def _needs_pieces(text: Any, options: SpeechOptions, settings: LongFormSettings) -> bool:
    if not isinstance(text, str) or not options.split:
        return False
    return size_of(text) > settings.good_bytes or (options.changes_text and bool(text.strip()))


def _check(piece: Piece, config: DiaConfig) -> None:
    """Raises ValueError: a piece that the model cannot read."""
    try:
        encode_bytes(piece.sent, config.encoder.max_position_embeddings, config.encoder.vocab_size)
    except ValueError as error:
        raise ValueError(f"the piece {shown(piece.sent[:60])} cannot be generated: {error}") from None
