"""OpenAI's speech route."""

import base64
import binascii
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection

from ...runtime.prompts import AudioPrompt
from ...text.tokenizer import has_visible_text
from ..access import KEY_IN_SCHEMA, KeyedRoute
from ..audio.decode import decode_audio
from ..audio.formats import AudioFormat, openai_format
from ..errors import ApiError, bad_request
from ..speech.arriving import ArrivingText
from ..speech.request import Speech
from ..speech.response import AUDIO_OR_EVENTS, streamed, whole
from ..voices.mint import DEFAULT
from ..voices.voice import tagged
from .context import Caller, caller_of
from .models import check_model

router = APIRouter(tags=["OpenAI"], dependencies=[KEY_IN_SCHEMA], route_class=KeyedRoute)

MAX_CHARACTERS = 4096
SAMPLING = (
    "temperature", "top_p", "cfg_scale", "cfg_filter_top_k", "max_tokens", "min_tokens", "pause", "chunk_frames",
    "first_chunk_frames",
)  # fmt: skip


class VoiceName(BaseModel):
    """A voice by its id, as OpenAI's clients name those that were uploaded."""

    model_config = ConfigDict(strict=True)
    id: str


class SpeechFields(BaseModel):
    """How a script is spoken: OpenAI's fields and Dia's own. Unknown ones are ignored: clients send some."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = Field(None, description="the served model or an alias")
    voice: str | VoiceName = Field(DEFAULT, description="a name of GET /v1/audio/voices; `default` for none")
    response_format: str = Field("mp3", description="mp3, opus, aac, flac, wav or pcm")
    speed: float = Field(1.0, description="0.25 to 4")
    instructions: str | None = Field(None, description="taken and ignored: Dia has no such thing")
    sample_rate: int | None = Field(None, description="in Hz; 24000 by default, 48000 for opus")
    seed: int | None = Field(None, description="the same seed and script give the same audio; drawn if left out")
    temperature: float | None = None
    top_p: float | None = None
    cfg_scale: float | None = None
    cfg_filter_top_k: int | None = Field(None, description="null for no limit; left out for the model's default")
    max_tokens: int | None = None
    min_tokens: int | None = Field(None, description="frames before which the model may not end")
    pause: float = Field(0.0, description="seconds of silence between turns")
    chunk_frames: int | None = None
    first_chunk_frames: int | None = None
    ref_audio: str | None = Field(None, description="a voice of this request alone: a data: URI in base64")
    ref_text: str | None = Field(None, description="what is said in ref_audio")


class SpeechBody(SpeechFields):
    """A script, and how it is spoken."""

    input: str = Field(description="the script, 1 to 4096 characters; without [S1] or [S2] it is the first speaker's")
    stream_format: str = Field("audio", description="audio, or sse for server-sent events")
    stream: bool | None = Field(None, description="false: the whole at once, with its length")


@router.post(
    "/v1/audio/speech", summary="A script to audio, streamed from the first chunk on", response_class=Response,
    responses=AUDIO_OR_EVENTS,
)  # fmt: skip
async def speech(request: Request, body: SpeechBody) -> Response:
    caller = caller_of(request)
    audio_format = checked_format(request, body)
    if body.stream_format not in ("audio", "sse"):
        raise ApiError(
            400, f"stream_format must be audio or sse, got {body.stream_format[:40]!r}", param="stream_format"
        )
    check_input(body.input)
    session = caller.begin(await speech_of(caller, tagged(body.input), body), audio_format)
    if body.stream is False and body.stream_format == "audio":
        return await whole(request, session)
    return await streamed(request, session, events=body.stream_format == "sse")


def checked_format(connection: HTTPConnection, fields: SpeechFields) -> AudioFormat:
    """The encoding that is asked for, of the model that is served.

    Raises:
        ApiError: 404, another model; 400, another encoding.
    """
    check_model(connection, fields.model)
    return openai_format(fields.response_format, fields.sample_rate)


def check_input(script: str) -> None:
    """Check the length of a script.

    Raises:
        ApiError: 400.
    """
    is_visible = has_visible_text(script)
    if not is_visible or len(script) > MAX_CHARACTERS:
        got = f"{len(script)}" if is_visible else "no visible ones"
        raise ApiError(400, f"input must have 1 to {MAX_CHARACTERS} characters, got {got}", param="input")


async def speech_of(caller: Caller, text: str | ArrivingText, fields: SpeechFields) -> Speech:
    """What is spoken of a text with speaker tags.

    Raises:
        ApiError: 400; 429, too many requests have a ref_audio that waits to be decoded.
    """
    params: dict[str, Any] = {name: getattr(fields, name) for name in SAMPLING if name in fields.model_fields_set}
    prompt: AudioPrompt | None = None
    transcript = None
    try:
        if fields.ref_audio is not None:
            prompt = await caller.service.decode(_reference, fields.ref_audio)
            if not (fields.ref_text or "").strip():
                raise ApiError(400, "ref_text must say what is said in ref_audio", param="ref_text")
            transcript = fields.ref_text
        elif (voice := await caller.service.voices.prompt(_name(fields.voice))) is not None:
            prompt, transcript = voice.codes, voice.transcript
        return Speech(text, prompt, transcript, fields.seed, fields.speed, params)
    except (TypeError, ValueError) as error:
        raise bad_request(error) from None


def _name(voice: str | VoiceName) -> str:
    return voice if isinstance(voice, str) else voice.id


def _reference(uri: str) -> Any:
    """The audio of a data: URI as (samples [n] float32, rate)."""
    head, comma, content = uri.partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise ApiError(
            400, "ref_audio must be a data: URI in base64, such as data:audio/wav;base64,...", param="ref_audio"
        )
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "ref_audio is not valid base64", param="ref_audio") from None
    return decode_audio(data, "audio of ref_audio")
