"""The command `dia-engine batch`: checks, loads, shows progress, sums up."""

import argparse
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ..audio.loudness import logger as loudness_logger
from ..engine import Engine
from ..files.audio import FORMATS
from ..files.new_folder import nearest_existing, remove_empty
from ..files.paths import user_path, user_target
from ..longform.options import SpeechOptions
from ..messages import described, shown
from ..progress import progress_bar
from ..runtime.call import logger as cut_logger
from ..runtime.limits import Limits
from ..sampling_params import SamplingParams
from ..text.script import logger as script_logger
from ..weights.source import resolve_model
from .job import LineRenderer, Outcome, run_job
from .manifest import Manifest, Record, open_manifest
from .script_file import Line, check_script_file, read_lines, unchanged
from .used_files import UsedFiles

# A file made with other values of these options is made again.
SAME_AUDIO = ("model", "revision", "quant", "dtype", "codec", "codec_dtype", "max_rows")


def run_batch(options: argparse.Namespace, sampling: Mapping[str, Any], speech: SpeechOptions) -> tuple[list[str], int]:
    """Run a job -> what to say of it, and how many lines failed.

    Args:
        options: of the command line; the model's are checked.
        sampling: sampling parameters of lines that lack them.
        speech: what else may be asked for, of lines that lack it.

    Raises:
        OSError, TypeError, ValueError: what makes the whole job meaningless, before a model is loaded.
        RuntimeError: another process works in the folder; Ray is not installed; or, like OSError then, what ended the
            job.
        KeyboardInterrupt: with a line that says what is done.
    """
    suffix = _suffix(options.format)
    _check_ray(options)
    _check_rows(options, sampling)
    affecting = {**{name: getattr(options, name) for name in SAME_AUDIO}, **sampling, **_changed(speech)}
    affecting["format"] = suffix
    folder, scripts = _check_folder(options.output), _script_path(options.scripts)
    load = partial(
        _load, _as_seen_by_engines(options), folder, suffix, scripts.parent.absolute(), sampling, speech, affecting
    )
    with open(scripts, "rb") as file:
        used = UsedFiles(options.model, options.codec, scripts.parent.absolute())
        asked, files, total = _digests(file, str(scripts), affecting, used)
        created = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with open_manifest(folder, asked, files) as manifest:
            done = len(manifest.done)
            if done == total:
                return [f"{options.output}: all of the {total} scripts were there already"], 0
            file.seek(0)
            lines = (line for line in unchanged(read_lines(file), asked, affecting) if line.id not in manifest.done)
            outcome, seconds = _run(options, load, manifest, lines, total, created)
    return _summary(outcome, done, seconds, options.output), outcome.failed


def _digests(
    file: BinaryIO, name: str, affecting: Mapping[str, Any], used: UsedFiles
) -> tuple[dict[str, str], dict[str, str], int]:
    """Check all lines of a script file; returns the digests of each line and of its files, by its id, and the number of
    lines."""
    asked, files, total = {}, {}, 0
    for line in check_script_file(file, name):
        total += 1
        if line.id is not None:
            asked[line.id], files[line.id] = line.digest(affecting), used.digest(line)
    return asked, files, total


def _run(
    options: argparse.Namespace,
    load: Callable[[], LineRenderer],
    manifest: Manifest,
    lines: Iterator[Line],
    total: int,
    created: list[Path],
) -> tuple[Outcome, float]:
    """Load a model and render the lines that the manifest lacks; returns the outcome and the seconds it took.

    Args:
        total: number of lines in the file.
        created: folders that are removed again if the model cannot be loaded.
    """
    outcome, done = Outcome(), len(manifest.done)
    with _telling_what_is_done(manifest, total, options.output):
        try:
            renderer = load() if options.ray is None else None
        except BaseException:
            remove_empty(created)
            raise
        started = time.perf_counter()
        with _progress(total, done, outcome, options.quiet) as on_record, _each_warning_once():
            if renderer is not None:
                run_job(renderer, manifest, lines, on_record, left=total - done)
            else:
                _run_on_ray(options, load, manifest, lines, on_record)
    return outcome, time.perf_counter() - started


@contextmanager
def _telling_what_is_done(manifest: Manifest, total: int, folder: str) -> Iterator[None]:
    """What ends the job also says how far it came, once it had begun."""

    def how_far() -> str:
        done = len(manifest.done) + manifest.made
        return f"{done} of {total} scripts are in {folder}; the same command goes on"

    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"dia-engine: interrupted, {how_far()}") from None
    except (MemoryError, OSError, RuntimeError) as error:
        if not manifest.made:
            raise
        raise RuntimeError(f"{described(error)}; {how_far()}") from error


def _check_rows(options: argparse.Namespace, sampling: Mapping[str, Any]) -> None:
    """Check the numbers that depend on the model: what is wrong for every line is an error of the job."""
    source = resolve_model(options.model, options.revision)
    rows = Limits(options.slots, None, options.max_rows).rows(source.config)
    if "max_tokens" in sampling or "min_tokens" in sampling:
        SamplingParams(**sampling).resolve(source.defaults).rows(rows, 0, source.config.max_delay)


def _changed(speech: SpeechOptions) -> dict[str, Any]:
    """The options that have not their default."""
    defaults = SpeechOptions()
    return {name: value for name, value in asdict(speech).items() if value != getattr(defaults, name)}


def _check_ray(options: argparse.Namespace) -> None:
    if options.ray is not None:
        from ..packages import require

        require("Ray", "ray", "ray.data")
        from ..cluster.batch import check_address

        check_address(options.ray)
    if options.actors is not None and (options.ray is None or options.actors < 1):
        raise ValueError(f"--actors must be at least 1, and with --ray, got {options.actors}")


def _suffix(name: str) -> str:
    suffix = f".{name.lower()}"
    if suffix not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(known[1:] for known in FORMATS)}, got {shown(name)}")
    return suffix


def _script_path(name: str) -> Path:
    if not name:
        raise ValueError("the name of the script file is empty")
    path = user_path(name)
    if not path.exists():
        raise FileNotFoundError(f"no script file at {path}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not an ordinary file, which is read more than once")
    return path


def _check_folder(name: str) -> Path:
    """The folder to write into, which may not exist yet.

    Raises:
        NotADirectoryError, PermissionError, FileNotFoundError: it cannot be one.
    """
    if not name:
        raise ValueError("--output must name a folder, got an empty string")
    path = user_target(name).absolute()
    above = nearest_existing(path)
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written to: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written to: no permission to write in {above}")
    return path


def _load(
    options: argparse.Namespace, folder: Path, suffix: str, prompts: Path, sampling: Mapping[str, Any],
    speech: SpeechOptions, affecting: Mapping[str, Any],
) -> LineRenderer:  # fmt: skip
    """An engine, and what it speaks lines with; see `LineRenderer`."""
    engine = Engine.load(
        options.model,
        quant=options.quant,
        dtype=options.dtype,
        device=options.device,
        codec=options.codec,
        codec_dtype=options.codec_dtype,
        revision=options.revision,
        max_slots=options.slots,
        max_rows=options.max_rows,
    )
    return LineRenderer(engine, folder, suffix, prompts, sampling, _new_seed, speech, affecting)


def _as_seen_by_engines(options: argparse.Namespace) -> argparse.Namespace:
    """Options in which files have absolute names, where other processes load the engines."""
    if options.ray is None:
        return options
    from ..cluster.paths import as_seen_elsewhere

    names = {name: as_seen_elsewhere(getattr(options, name)) for name in ("model", "codec")}
    return argparse.Namespace(**{**vars(options), **names})


def _run_on_ray(
    options: argparse.Namespace, load: Callable[[], LineRenderer], manifest: Manifest, lines: Iterator[Line],
    on_record: Callable[[Record], Any],
) -> None:  # fmt: skip
    from ..cluster.batch import run_on_ray

    with closing(run_on_ray(load, list(lines), options.ray, options.actors, options.slots, options.device)) as made:
        for record, content in made:
            on_record(manifest.keep(record, content))


def _new_seed() -> int:
    return secrets.randbelow(2**31)


@contextmanager
def _progress(total: int, done: int, outcome: Outcome, quiet: bool) -> Iterator[Any]:
    """A bar with scripts, time left and x real time, kept by the function that counts a record."""
    hidden = quiet or sys.stderr is None
    interval = 0.1 if not hidden and sys.stderr.isatty() else 10.0  # seconds; a log file gets few lines
    with progress_bar(
        hidden=hidden, total=total, initial=done, unit="script", desc="batch", mininterval=interval
    ) as bar:
        started = time.perf_counter()

        def on_record(record: Record) -> None:
            outcome.count(record)
            speed = outcome.seconds / (time.perf_counter() - started)
            failed = f", {outcome.failed} failed" if outcome.failed else ""
            bar.set_postfix_str(f"{speed:.2f}x real time{failed}", refresh=False)
            bar.update()

        yield on_record


class _First(logging.Filter):
    """Lets the first record of each kind pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """One warning per kind about scripts; which files `max_tokens` cut is in the manifest and the summary."""
    first, level = _First(), cut_logger.level
    for each in (script_logger, loudness_logger):
        each.addFilter(first)
    cut_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each in (script_logger, loudness_logger):
            each.removeFilter(first)
        cut_logger.setLevel(level)


def _summary(outcome: Outcome, done: int, spent: float, folder: str) -> list[str]:
    speed = f"{outcome.seconds:.2f} s of sound in {spent:.2f} s ({outcome.seconds / spent:.2f}x real time)"
    lines = [f"{folder}: {outcome.made} scripts, {speed}"]
    if done:
        lines.append(f"{done} more were there already")
    if outcome.cut:
        lines.append(f"{outcome.cut} were cut by max_tokens")
    if outcome.failed:
        lines.append(f"{outcome.failed} failed: see {folder}/manifest.jsonl; the same command tries them again")
    return lines
