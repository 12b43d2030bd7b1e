"""The file of scripts: JSON Lines, one request per line, read line by line however many there are."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..longform.options import SpeechOptions
from ..messages import first_line, listed, shown
from ..sampling_params import SamplingParams

MAX_LINE_BYTES = 2**20  # far above any model's limit on text
MAX_ID = 128
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
SAMPLING = tuple(each.name for each in fields(SamplingParams))
SPEECH = tuple(each.name for each in fields(SpeechOptions))
FIELDS = ("id", "text", "seed", "audio_prompt", "audio_prompt_text", *SAMPLING, *SPEECH)


@dataclass(frozen=True)
class Line:
    """One line of the file.

    Attributes:
        number: from 1.
        id: None where the line is no JSON object.
        values: the object, as it was parsed.
        error: why it is no JSON object; "" for one that is.
        content: the line itself; empty where it is too long.
    """

    number: int
    content: bytes = field(repr=False)
    id: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def digest(self, options: Mapping[str, Any]) -> str:
        """What the line asks for, together with the job's options, as a short hash."""
        asked = self.content.strip() + json.dumps(options, sort_keys=True).encode()
        return hashlib.sha256(asked).hexdigest()[:16]


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of a file from its current position on, without blank ones. A line that cannot be read as a JSON object
    is one with an error."""
    number = 0
    while content := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        whole = len(content) <= MAX_LINE_BYTES
        while not content.endswith(b"\n") and len(content) > MAX_LINE_BYTES:
            content = file.readline(MAX_LINE_BYTES + 1) or b"\n"
        if not whole:
            yield Line(number, b"", error=f"line {number} has more than {MAX_LINE_BYTES} bytes")
        elif content.strip(codecs.BOM_UTF8 if number == 1 else b"").strip():
            yield _parsed(number, content)


def _parsed(number: int, content: bytes) -> Line:
    try:
        values = json.loads(content.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=_without_doubles)
    except UnicodeDecodeError as error:
        return Line(number, content, error=f"line {number} is not UTF-8 text: {error.reason} at byte {error.start}")
    except RecursionError:
        return Line(number, content, error=f"line {number} is not JSON that this engine reads: it is nested too deeply")
    except json.JSONDecodeError as error:
        return Line(number, content, error=f"line {number} is not JSON: {error.msg} (character {error.pos + 1})")
    except ValueError as error:  # a field given twice, and an integer of more than 4300 digits
        return Line(number, content, error=f"line {number} is not JSON: {first_line(error)}")
    if not isinstance(values, dict):
        return Line(number, content, error=f"line {number} must be a JSON object, got {shown(values)}")
    return Line(number, content, values.get("id"), values)


def unchanged(lines: Iterator[Line], asked: Mapping[str, str], options: Mapping[str, Any]) -> Iterator[Line]:
    """Lines that are read a second time, after `check_script_file`.

    Args:
        asked: the digests of the first time, by id.
        options: that they were made with.

    Raises:
        RuntimeError: the file has been changed since; nothing that was not checked becomes a file name.
    """
    for line in lines:
        if line.id is not None and (not isinstance(line.id, str) or asked.get(line.id) != line.digest(options)):
            raise RuntimeError(f"the file of scripts was changed while it was read, at line {line.number}")
        yield line


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{listed(sorted({name for name in names if names.count(name) > 1}))} given twice")
    return values


def check_script_file(file: BinaryIO, name: str) -> Iterator[Line]:
    """The lines of a file, each checked for what would make the whole job meaningless: ids are file names.

    Raises:
        ValueError: a missing, unsafe or repeated id, with its line; UTF-16; no line at all.
    """
    if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # type: ignore[attr-defined]
        raise ValueError(f"{name} is not UTF-8 text but UTF-16; save it as UTF-8")
    seen: dict[str, int] = {}
    empty = True
    for line in read_lines(file):
        empty = False
        if not line.error:
            _check_id(line, name, seen)
        yield line
    if empty:
        raise ValueError(f"{name} holds no request: it needs one JSON object per line")


def _check_id(line: Line, name: str, seen: dict[str, int]) -> None:
    where, id = f"{name}, line {line.number}", line.values.get("id")
    if "id" not in line.values:
        raise ValueError(f"{where}: id is missing; it names the output file")
    if not isinstance(id, str) or not SAFE_ID.fullmatch(id) or len(id) > MAX_ID:
        raise ValueError(
            f"{where}: id must be a string of 1 to {MAX_ID} letters, digits, '_', '-' and '.' (ASCII, not beginning "
            f"with '-' or '.'), since it is a file name; got {shown(id)}"
        )
    first = seen.setdefault(id.lower(), line.number)  # some file systems do not tell A from a
    if first != line.number:
        raise ValueError(f"{where}: id {shown(id)} is that of line {first} (upper and lower case count as the same)")


def script_arguments(line: Line, folder: Path, defaults: Mapping[str, Any], speech: SpeechOptions) -> dict[str, Any]:
    """A line as arguments of `parse_scripts`.

    Args:
        folder: that a relative path of an audio prompt begins in.
        defaults: sampling parameters of lines that lack them.
        speech: the same of what else may be asked for.

    Raises:
        TypeError, ValueError: an unknown field, or a value that cannot be.
    """
    if line.error:
        raise ValueError(line.error)
    unknown = sorted(set(line.values) - set(FIELDS))
    if unknown:
        raise ValueError(f"unknown field {listed(unknown)}; known fields are {', '.join(FIELDS)}")
    if "text" not in line.values:
        raise ValueError("no text")
    for name in ("text", "audio_prompt", "audio_prompt_text"):
        value = line.values.get(name)
        _check_string(name, value, optional=name != "text")
    if isinstance(line.values.get("seed"), list):  # which `parse_scripts` takes for one per text
        raise TypeError(f"seed must be an integer, got {shown(line.values['seed'])}")
    given = {name: line.values[name] for name in SAMPLING if name in line.values}
    return {
        "text": line.values["text"],
        "sampling": {},
        "options": replace(speech, **{name: line.values[name] for name in SPEECH if name in line.values}),
        "sampling_params": SamplingParams(**{**defaults, **given}),
        "audio_prompt": prompt_paths(line, folder),
        "audio_prompt_text": line.values.get("audio_prompt_text"),
        "seed": line.values.get("seed"),
    }


def _check_string(name: str, value: Any, optional: bool) -> None:
    """A prompt and its transcript, which are optional, may be given by speaker."""
    values = value.values() if optional and isinstance(value, dict) else [value]
    for each in values:
        if not isinstance(each, str) and (each is not None or not optional or isinstance(value, dict)):
            raise TypeError(f"{name} must be a string, got {shown(each)}")


def prompt_paths(line: Line, folder: Path) -> Any:
    """The audio prompt of a line, of one or of each speaker, with relative paths in a folder; None for none. What is no
    path stays as it is."""
    prompt = line.values.get("audio_prompt")
    if isinstance(prompt, dict):
        return {speaker: _prompt_path(each, folder) for speaker, each in prompt.items()}
    return _prompt_path(prompt, folder)


def _prompt_path(prompt: Any, folder: Path) -> Any:
    if not isinstance(prompt, str) or not prompt or prompt.startswith("~") or "://" in prompt:
        return prompt
    return str(folder / prompt)
