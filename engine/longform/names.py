"""Scripts with names: `Ann:` at the beginning of a line, mapped to the tags that the model knows."""

import re

from ..messages import shown
from ..model.script import TAGS


def parse_speakers(text: str) -> dict[str, str]:
    """ "Ann=S1,Bob=S2" -> tag by name.

    Raises:
        ValueError: not such a list, or no such speaker.
    """
    found: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, speaker = (part.strip() for part in entry.partition("="))
        tag = f"[{speaker.upper()}]"
        if not (name and equals) or ":" in name:
            raise ValueError(f"speakers are given as Ann=S1,Bob=S2, got {shown(entry)}")
        if tag not in TAGS:
            raise ValueError(
                f"speaker {name} must be one of {', '.join(each.strip('[]') for each in TAGS)}, got "
                f"{speaker or 'nothing'}"
            )
        if name in found:
            raise ValueError(f"speaker {name} is given twice")
        found[name] = tag
    return found


def with_tags(script: str, speakers: dict[str, str]) -> str:
    """The script with a tag in place of each `Name:` at the beginning of a line.

    Raises:
        ValueError: a line begins with none of the names, and no name stands before it.
    """
    names = "|".join(map(re.escape, sorted(speakers, key=len, reverse=True)))
    label = re.compile(rf"^[ \t]*({names})[ \t]*:[ \t]*", re.MULTILINE)
    first = label.search(script)
    if first is None:
        raise ValueError(f"no line of the script begins with {' or '.join(f'{name}:' for name in speakers)}")
    if script[: first.start()].strip():
        raise ValueError(
            f"the script begins with {shown(script.strip()[:40])}, before any of the speakers that were given"
        )
    return label.sub(lambda match: f"{speakers[match.group(1)]} ", script)
