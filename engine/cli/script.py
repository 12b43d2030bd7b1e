"""Where `say` reads its script: an argument, a file or standard input."""

import argparse
import codecs
import sys
from typing import BinaryIO

MAX_SCRIPT_BYTES = 2**20  # far above any model's limit, which is counted in tokens once the model is known
DASH_HINT = "a script that begins with - goes behind --"


def script_of(options: argparse.Namespace) -> str:
    if (options.text is None) == (options.file is None):
        raise ValueError(
            "give the script once: as TEXT (behind -- where it begins with -), as - for standard input, or with --file"
        )
    if options.file is None and options.text != "-":
        return options.text
    if options.file is not None:
        from ..files.paths import user_path

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
