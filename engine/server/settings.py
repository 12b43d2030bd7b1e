"""What a server can be told, on the command line or in the environment."""

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files.hub import DEFAULT_MODEL

LOCAL = ("127.0.0.1", "::1", "localhost")
PREFIX = "DIA_SERVE_"
MOST_MEGABYTES = 1_000_000


def option(default: Any, meaning: str, **more: Any) -> Any:
    """A field that is an option. `more`: kind (of its values), many (repeatable), most and least (of a number)."""
    made = {"default_factory": lambda: default} if isinstance(default, tuple) else {"default": default}
    return field(**made, metadata={"meaning": meaning, "kind": type(default), **more})


@dataclass(frozen=True)
class Settings:
    """Settings of a server. `docs/server.md` has the same list.

    Raises:
        ValueError: a number out of range, an empty key, host or folder.
    """

    model: str = option(DEFAULT_MODEL, "hub id, folder, talker or synthetic:...")
    codec: str | None = option(None, "codec's hub id, folder or file", kind=str)
    codec_dtype: str | None = option(None, "float32, bfloat16 or float16", kind=str)
    revision: str | None = option(None, "revision of the hub repository", kind=str)
    quant: str | None = option(None, "int8, nf4 or nf4-all: quantize the weights while loading", kind=str)
    dtype: str | None = option(None, "float32, bfloat16 or float16", kind=str)
    device: str | None = option(None, "such as cuda, cuda:1 or cpu", kind=str)
    max_rows: int | None = option(None, "decoder rows per slot, the most that max_tokens can be", kind=int, least=1)
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on", least=0, most=65535)
    root_path: str = option("", "path under which a proxy publishes the server")
    slots: int | None = option(None, "requests that run at the same time (default: the engine's)", kind=int, least=1)
    max_waiting: int | None = option(None, "requests that may wait for a slot (default: 4 per slot)", kind=int, least=0)
    max_wait: float = option(20.0, "seconds that a request waits for a slot before it gets 503", least=0.001)
    max_per_key: int | None = option(None, "requests of one API key at the same time", kind=int, least=1)
    max_buffered_mb: float = option(512.0, "megabytes of audio, over all, that slow readers may leave unread", least=1)
    drain_seconds: float = option(30.0, "seconds after SIGTERM in which running requests may finish", least=0)
    header_timeout: float = option(10.0, "seconds in which a request's headers must arrive", least=0.001)
    body_timeout: float = option(30.0, "seconds in which a request's body must arrive", least=0.001)
    idle_timeout: float = option(30.0, "seconds that a connection stays open between requests", least=0.001)
    max_body_mb: float = option(1.0, "megabytes of a request", least=0.001, most=MOST_MEGABYTES)
    max_upload_mb: float = option(
        12.0, "megabytes of an uploaded voice, or of a request with ref_audio", least=0.001, most=MOST_MEGABYTES
    )
    api_key: tuple[str, ...] = option((), "key that requests must carry; repeatable, also DIA_API_KEYS=a,b", many=True)
    cors_origin: tuple[str, ...] = option((), "origin whose pages may call; repeatable, * for all", many=True)
    voices: str = option("~/.local/share/dia-engine/voices", "folder of the voices")
    mint: bool = option(False, "make all of OpenAI's voices at the start, not on first use")
    log_format: str = option("text", "text or json", choices=("text", "json"))
    log_text: bool = option(False, "log the scripts that are spoken")

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each.name, getattr(self, each.name), each.metadata)
        for name in ("host", "voices"):  # an empty host would listen on every address
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        if any(not key.strip() or not key.isascii() or not key.isprintable() for key in self.api_key):
            raise ValueError("api_key must be printable ASCII and not empty")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ValueError(f"root_path must begin with / and not end with it, got {self.root_path!r}")

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the server, and nothing keeps them from using it."""
        return self.host not in LOCAL and not self.api_key

    def waiting_room(self, slots: int) -> int:
        """Requests that may wait for one of so many slots."""
        return 4 * slots if self.max_waiting is None else self.max_waiting

    @property
    def voices_folder(self) -> Path:
        """Where the voices of this model lie: a voice is made of one model's codes."""
        name = "".join(each if each.isalnum() or each in "-_." else "-" for each in self.model).strip("-.")
        return Path(self.voices).expanduser() / (name or "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings as options of the command line; what is left out is not in the namespace."""
    for each in fields(Settings):
        flag, kind, meaning = "--" + each.name.replace("_", "-"), each.metadata["kind"], each.metadata["meaning"]
        if (
            "(default" not in meaning
            and each.default not in (None, False)
            and isinstance(each.default, (str, int, float))
        ):
            meaning += f" (default: {each.default or 'none'})"
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=meaning)
        elif each.metadata.get("many"):
            parser.add_argument(flag, action="append", default=argparse.SUPPRESS, metavar="TEXT", help=meaning)
        else:
            choices = each.metadata.get("choices")
            parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, choices=choices, help=meaning)


def read_settings(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and, before it, from options.

    Raises:
        ValueError: a value that cannot be, named by its option or variable.
    """
    values: dict[str, Any] = {}
    for each in fields(Settings):
        variable = PREFIX + each.name.upper()
        if each.name in options:
            given = options[each.name]
            values[each.name] = tuple(given) if each.metadata.get("many") else given
        elif environment.get(variable):
            values[each.name] = parsed(variable, environment[variable], each.metadata)
    if "api_key" not in values and environment.get("DIA_API_KEYS"):
        values["api_key"] = parsed("DIA_API_KEYS", environment["DIA_API_KEYS"], {"many": True, "kind": str})
    return Settings(**values)


def parsed(variable: str, text: str, metadata: Mapping[str, Any]) -> Any:
    """The value of an option that is written as text; `variable` is what an error calls it.

    Raises:
        ValueError: not of the option's kind, or a list of nothing.
    """
    kind = metadata["kind"]
    if metadata.get("many"):
        found = tuple(part.strip() for part in text.split(",") if part.strip())
        if not found:  # a server that was to have keys would have none
            raise ValueError(f"{variable} must hold at least one value, with commas between several, got {text!r}")
        return found
    if kind is bool:
        if text.lower() not in ("0", "1", "false", "true", "no", "yes"):
            raise ValueError(f"{variable} must be 0 or 1, got {text!r}")
        return text.lower() in ("1", "true", "yes")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be {'an integer' if kind is int else 'a number'}, got {text!r}") from None


def check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Check an option's value.

    Raises:
        ValueError: out of its range, or none of its choices.
    """
    if value is None or isinstance(value, (bool, tuple)):
        return
    least, most, choices = (metadata.get(each) for each in ("least", "most", "choices"))
    if choices and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if (least is not None and value < least) or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {limits}, got {value}")
