"""The folder of voices: one folder each, `<id>/voice.json`, `codes.safetensors` and the audio as it was uploaded.

A folder is written under another name and renamed when it is whole, so whatever ends the process, a voice is there or
is not. Codes are kept, so that audio is encoded once; those of another codec are made anew.
"""

import asyncio
import hashlib
import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file

from ...engine import Engine
from ...files.new_folder import nearest_existing, new_folder, remove_abandoned
from ...files.paths import read_json
from ...files.tensors import write_tensors
from ...messages import listed
from ...runtime.prompts import checked_codes
from ..audio.decode import decode_audio
from ..errors import ApiError, bad_request
from .mint import SEEDS, fits, mint
from .voice import MADE, NO_PROMPT, UPLOADED, VOICE_ID, Prompt, Voice

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# Of their own: making a voice takes seconds, and in the event loop's default pool every request begins.
THREADS = 2
MAX_VOICES = 1000
AUDIO = "audio.bin"  # as it came: its format is in it


class VoiceStore:
    """Voices of one model. Listing and reading are plain calls; what computes is awaited."""

    def __init__(self, folder: Path, model: str):
        """`model` is its name. The folder is made with the first voice.

        Raises:
            NotADirectoryError: it cannot be a folder.
        """
        there = nearest_existing(folder.absolute())
        if not there.is_dir():
            raise NotADirectoryError(f"the voices' folder {folder} cannot be made: {there} is no folder")
        self._folder, self._model = folder, model
        self._engine: Engine | None = None
        self._codec = ""
        self._prompts: dict[str, Prompt] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="dia-voices")

    def attach(self, engine: Engine) -> None:
        """Use an engine from now on."""
        self._engine = engine
        if engine.codec is not None:
            table = engine.codec.quantizer.table.detach().float().cpu().contiguous()
            self._codec = hashlib.sha256(table.numpy().tobytes()).hexdigest()[:16]
        if self._folder.is_dir():
            remove_abandoned(self._folder)

    def close(self) -> None:
        """Take no more work. What has begun goes on to its end, beside the caller."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def list(self) -> list[Voice]:
        """All voices that can be named: those without a prompt, the premade, the uploaded."""
        found = {name: Voice(name, name, MADE) for name in ("default", *SEEDS)}
        if self._folder.is_dir():
            for path in sorted(self._folder.iterdir()):
                voice = self._read(path.name)
                if voice is not None:
                    found[voice.id] = voice
        return list(found.values())

    async def prompt(self, name: str) -> Prompt | None:
        """What a voice (its id or name) puts before a script; None for a voice without a prompt. A premade one is made
        on first use.

        Raises:
            ApiError: 400, there is no such voice, or more than one of the name; 500, it is damaged.
        """
        identity = await self._identity(name)  # of none that is not there: it would have a lock, which would stay
        if identity in NO_PROMPT:
            return None
        known = self._prompts.get(identity)
        if known is None:
            async with self._locks.setdefault(identity, asyncio.Lock()):
                known = self._prompts.get(identity)
                if known is None:
                    known = self._prompts[identity] = await self._to_the_end(self._make_prompt, identity, name)
        return known

    async def _identity(self, name: str) -> str:
        """The id of the voice that has a name, or has it for an id."""
        wanted = name.strip().lower()
        if wanted in NO_PROMPT or (VOICE_ID.fullmatch(wanted) and self._exists(wanted)):
            return wanted
        named = [voice.id for voice in await self._to_the_end(self.list) if voice.name.lower() == wanted]
        if not named:
            raise _unknown(name)
        if len(named) > 1:
            message = f"{len(named)} voices are named {name[:64]!r}, say which one by its id: {listed(named)}"
            raise ApiError(400, message, param="voice", code="ambiguous_voice")
        return named[0]

    async def create(self, name: str, audio: bytes, transcript: str) -> Voice:
        """Keep an uploaded voice.

        Raises:
            ApiError: 400, audio that cannot be used, or no name or transcript; 503, the folder cannot be written.
        """
        for value, field, longest in ((name, "name", 200), (transcript, "ref_text", 2000)):
            if not value.strip() or len(value) > longest:
                raise ApiError(400, f"{field} must have 1 to {longest} characters", param=field)
            if not _is_unicode(value):
                raise ApiError(400, f"{field} contains an unpaired surrogate", param=field)
        try:
            return await self._to_the_end(self._create, name.strip(), audio, transcript.strip())
        except (TypeError, ValueError) as error:
            raise bad_request(error) from None
        except OSError as error:
            logger.error("a voice could not be kept: %s", error)
            raise ApiError(503, "the server cannot save the voice: its voices folder is not writable") from None

    def delete(self, identity: str) -> None:
        """Forget an uploaded voice.

        Raises:
            ApiError: 404, there is no such voice; 400, it is not an uploaded one; 503, the folder cannot be written.
        """
        if identity in SEEDS or identity in NO_PROMPT:
            raise ApiError(400, f"{identity} comes with the server and cannot be deleted", param="voice")
        if not self._is_kept(identity):
            raise _not_there(identity)
        self._prompts.pop(identity, None)
        self._locks.pop(identity, None)
        path = self._folder / identity
        gone = path.with_name(f".{identity}.{secrets.token_hex(8)}.partial")
        try:
            path.rename(gone)  # at once, as it came
        except FileNotFoundError:  # another request was faster
            raise _not_there(identity) from None
        except OSError as error:
            logger.error("voice %s could not be deleted: %s", identity, error)
            raise ApiError(503, "the server cannot delete the voice: its voices folder is not writable") from None
        shutil.rmtree(gone, ignore_errors=True)

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ApiError: 503, it is not loaded yet.
        """
        if self._engine is None:
            raise ApiError(503, "the model is being loaded", code="starting", retry_after=5)
        return self._engine

    async def _to_the_end(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a function beside the event loop, to its end even if this client leaves: others may be waiting for it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments))

    def _exists(self, identity: str) -> bool:
        """Whether a voice that was read is still there: another server of the same folder may have deleted it."""
        return identity in SEEDS or (self._folder / identity).is_dir()

    def _is_kept(self, identity: str) -> bool:
        """Whether a voice lies in the folder, be it damaged."""
        return bool(VOICE_ID.fullmatch(identity)) and (self._folder / identity / "voice.json").is_file()

    def _read(self, identity: str) -> Voice | None:
        """A voice of the folder; None if it is not there or damaged, so that it disturbs no request for others."""
        if not self._is_kept(identity):
            return None
        try:
            voice = Voice(**{**read_json(self._folder / identity / "voice.json"), "id": identity})
            voice.check()
            # One that cannot be written as JSON in UTF-8 would break the list of all.
            json.dumps(asdict(voice), ensure_ascii=False, allow_nan=False).encode()
            return voice
        except (TypeError, ValueError, OSError) as error:
            logger.warning("voice %s cannot be read: %s", identity, error)
            return None

    def _make_prompt(self, identity: str, name: str) -> Prompt:
        voice = self._read(identity)
        codes = None if voice is None else self._read_codes(identity)
        if identity in SEEDS and codes is not None and not fits(self.engine, codes):
            logger.warning("voice %s is kept in a length that --max-rows leaves no room for: it is made anew", identity)
            return mint(self.engine, self._model, SEEDS[identity])  # the kept one stays, for servers of more rows
        if voice is not None and codes is not None:
            return Prompt(codes, voice.transcript)
        if identity in SEEDS:
            return self._mint(identity)
        if voice is None:
            raise _damaged(identity) if self._is_kept(identity) else _unknown(name)
        return Prompt(self._encode_again(identity), voice.transcript)

    def _encode_again(self, identity: str) -> torch.Tensor:
        """Codes [P, C] from the audio of a voice, whose codes are another codec's or cannot be read.

        Raises:
            ApiError: 500, its audio cannot be read either.
        """
        try:
            audio = (self._folder / identity / AUDIO).read_bytes()
            codes = self.engine.load_audio(decode_audio(audio, f"voice {identity}"))
        except (OSError, TypeError, ValueError) as error:
            logger.error("neither codes nor audio of voice %s can be read: %s", identity, error)
            raise _damaged(identity) from None
        try:
            self._write_codes(self._folder / identity, codes)
        except OSError as error:
            logger.warning("the codes of voice %s are not kept: %s", identity, error)
        return codes

    def _mint(self, identity: str) -> Prompt:
        made = mint(self.engine, self._model, SEEDS[identity])
        voice = Voice(identity, identity, MADE, int(time.time()), made.transcript, SEEDS[identity])
        try:
            shutil.rmtree(self._folder / identity, ignore_errors=True)
            with new_folder(self._folder / identity) as folder:
                self._write_codes(folder, made.codes)
                _write_voice(folder, voice)
        except OSError as error:  # without a folder to keep it, or made by another server at the same time
            logger.warning("voice %s is not kept: %s", identity, error)
        return made

    def _create(self, name: str, audio: bytes, transcript: str) -> Voice:
        codes = self.engine.load_audio(decode_audio(audio, "audio_sample"))
        self._check_room(codes, transcript)
        if self._folder.is_dir() and sum(1 for _ in self._folder.iterdir()) >= MAX_VOICES:
            raise ApiError(400, f"there are {MAX_VOICES} voices already, the maximum; delete one first", param="name")
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "voice"
        voice = Voice(f"{slug}-{secrets.token_hex(4)}", name, UPLOADED, int(time.time()), transcript)
        with new_folder(self._folder / voice.id) as folder:
            (folder / AUDIO).write_bytes(audio)
            self._write_codes(folder, codes)
            _write_voice(folder, voice)
        self._prompts[voice.id] = Prompt(codes, transcript)
        return voice

    def _check_room(self, codes: torch.Tensor, transcript: str) -> None:
        """Check that something can be said after a prompt, as a request would be checked."""
        self.engine.stream("[S1] Hello.", audio_prompt=codes, audio_prompt_text=transcript, seed=0)

    def _read_codes(self, identity: str) -> torch.Tensor | None:
        """Codes [P, C], if there are any of this codec that the engine takes."""
        path = self._folder / identity / f"codes-{self._codec}.safetensors"
        if not path.is_file():
            return None
        try:
            return checked_codes(load_file(path)["codes"], self.engine.config)
        except Exception as error:
            logger.warning("the codes of voice %s cannot be read: %s", identity, error)
            return None

    def _write_codes(self, folder: Path, codes: torch.Tensor) -> None:
        path = folder / f"codes-{self._codec}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            write_tensors(partial, {"codes": codes.to(torch.int16).contiguous()})
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _write_voice(folder: Path, voice: Voice) -> None:
    content = {name: value for name, value in asdict(voice).items() if name != "id"}
    (folder / "voice.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it. The charset of a form decides what its text is decoded to, and may allow more."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_there(identity: str) -> ApiError:
    return ApiError(404, f"there is no voice {identity[:64]!r}", param="voice", code="voice_not_found")


def _damaged(identity: str) -> ApiError:
    message = f"voice {identity!r} is damaged on the server; delete it and upload it again"
    return ApiError(500, message, param="voice", code="voice_damaged")


def _unknown(name: str) -> ApiError:
    return ApiError(
        400, f"there is no voice {name[:64]!r}; GET /v1/audio/voices lists them", param="voice", code="voice_not_found"
    )
