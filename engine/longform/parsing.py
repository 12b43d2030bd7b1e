"""From a caller's arguments to requests and scripts."""

import logging
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import Any

from ..longform_settings import LongFormSettings
from ..model.config import DiaConfig
from ..runtime.request import Request, item_named, parse_requests
from .options import AudioPrompts, SpeechOptions
from .planning.checked_plan import check_piece, needs_pieces, piece_maker, planner_rules
from .planning.plan import Piece
from .planning.source import Arriving, PieceSource, Planned, running_loop
from .script import Script
from .voices import joined_prompt

logger = logging.getLogger(__name__)


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
    split = {index for index, each in enumerate(texts) if needs_pieces(each, options, settings)}
    requests = parse_requests(text, sampling, config=config, planned=split, **arguments)
    transcripts = arguments.get("audio_prompt_text")
    transcripts = list(transcripts) if isinstance(transcripts, (list, tuple)) else [transcripts] * len(texts)
    found: list[Request | Script] = []
    for index, request in enumerate(requests):
        if index not in split and not options.changes_sound:
            found.append(request)
            continue
        pieces = piece_maker(
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
    prompts = prompts if isinstance(prompts, list) else [None] * len(text)  # a tuple is one prompt: samples and a rate
    transcripts = transcripts if isinstance(transcripts, (list, tuple)) else [None] * len(text)
    columns = [prompts, transcripts]
    by_speaker = any(isinstance(each, Mapping) for column in columns for each in column)
    if not by_speaker or any(len(column) != len(text) for column in columns):
        return arguments
    joined = []
    for index, each in enumerate(zip(*columns, text, strict=True)):
        with item_named(index, True):
            joined.append(joined_prompt(*each))
    prompts, transcripts = ([pair[which] for pair in joined] for which in (0, 1))
    return {**arguments, "audio_prompt": prompts, "audio_prompt_text": transcripts}


def _planned_by(pieces: Callable[[], Iterator[Piece]]) -> Callable[[], PieceSource]:
    return lambda: Planned(pieces())


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
    loop = running_loop() if isinstance(text, AsyncIterable) else None
    if loop is None and isinstance(text, AsyncIterable):
        raise RuntimeError("an asynchronous iterator of text needs a running event loop: call astream in a coroutine")
    (request,) = parse_requests("x", sampling, config=config, planned={0}, **arguments)
    rules = planner_rules(options, settings, arguments.get("audio_prompt_text"), has_prompt=len(request.prompt) > 0)

    def check(piece: Piece) -> None:
        check_piece(piece, config)

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
