"""Values and errors as one short, printable line of a message."""

import re
from itertools import islice

LONGEST = 80  # characters of a value
LONGEST_NAME = 120
LONGEST_PATH = 300
LISTED = 10
LARGEST = 2**17  # items and characters of a list, tuple, set or dict that is printed
OUT_OF_MEMORY = (
    "can't allocate memory", "Cannot allocate memory", "bad_alloc", "can't start new thread",
    "could not create a primitive", "could not execute a primitive",  # of oneDNN
)  # fmt: skip

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def shown(value: object) -> str:
    """A value for a message: its repr, cut where it is long. A file may hold integers of hundreds of digits, and a
    list of lists of one list, whose repr would have no end."""
    if _is_large(value):
        return f"a very large {type(value).__name__}"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return (
            f"an integer of {value.bit_length()} bits"
            if isinstance(value, int)
            else "an integer of thousands of digits"
        )
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    text = " ".join(line.strip() for line in text.splitlines())  # an array's has several
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _is_large(value: object) -> bool:
    """Whether a container has too much in it to print, counted as often as it would be printed."""
    waiting, size = [value] if isinstance(value, (list, tuple, set, frozenset, dict)) else [], 0
    while waiting and size <= LARGEST:
        each = waiting.pop()
        if isinstance(each, int):
            size += each.bit_length() // 3
        elif isinstance(each, (str, bytes, bytearray)):
            size += len(each)
        elif isinstance(each, (list, tuple, set, frozenset, dict)):
            size += len(each)
            waiting += islice(each, LARGEST)
            waiting += islice(each.values(), LARGEST) if isinstance(each, dict) else ()
    return size > LARGEST


def without_controls(text: str) -> str:
    """Text from a file or a command line with its control characters escaped, which a terminal would obey."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def listed(names: list[str]) -> str:
    """Names for a message: ten of them, cut where they are long, and how many more there are."""
    more = len(names) - LISTED
    short = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names[:LISTED]]
    return without_controls(", ".join(short)) + (f" and {more} more" if more > 0 else "") if names else "nothing"


def described(error: BaseException) -> str:
    """An error as one printable line: an operating system's own by file and reason, without their number."""
    if isinstance(error, OSError) and error.strerror:
        name = str(error.filename or "")
        name = name if len(name) <= LONGEST_PATH else f"{name[:LONGEST_PATH]}..."
        return without_controls(f"{name}: {error.strerror}" if name else error.strerror)
    if is_out_of_memory(error):
        return "out of memory"
    return without_controls(first_line(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused. torch, oneDNN and the operating system each have their own errors for that."""
    return isinstance(error, MemoryError) or (
        isinstance(error, (OSError, RuntimeError)) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    )


def first_line(error: BaseException) -> str:
    """An error's first line of text without terminal colors, or the name of its class."""
    lines = _ANSI.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
