"""ElevenLabs' text-to-dialogue, which is Dia's own shape, and text-to-speech, over HTTP."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ..access import KEY_IN_SCHEMA, KeyedRoute
from ..audio.formats import elevenlabs_format
from ..errors import ApiError, bad_request
from ..speech.arriving import ArrivingText
from ..speech.dialogue import script
from ..speech.request import Speech
from ..speech.response import AUDIO, streamed
from ..voices.voice import Prompt, together
from .context import Caller, caller_of

router = APIRouter(tags=["ElevenLabs"], dependencies=[KEY_IN_SCHEMA], route_class=KeyedRoute)

AS_AUDIO: dict[str, Any] = {"response_class": Response, "responses": AUDIO}
DEFAULT_FORMAT = "mp3_44100_128"
MAX_CHARACTERS = 5000


class DialogueTurn(BaseModel):
    """What one voice says."""

    model_config = ConfigDict(strict=True, extra="ignore")
    text: str
    voice_id: str


class DialogueBody(BaseModel):
    """Their fields; what is not here is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    inputs: list[DialogueTurn] = Field(min_length=1, max_length=500)
    model_id: str | None = None
    seed: int | None = None


class TextBody(BaseModel):
    """Their fields; what is not here is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    text: str
    model_id: str | None = None
    seed: int | None = None


@router.post("/v1/text-to-dialogue", summary="Turns of one or two voices to audio", **AS_AUDIO)
@router.post("/v1/text-to-dialogue/stream", summary="The same: both stream", **AS_AUDIO)
async def dialogue(request: Request, body: DialogueBody, output_format: str = DEFAULT_FORMAT) -> Response:
    caller = caller_of(request)
    audio_format = elevenlabs_format(output_format)
    speech = await dialogue_speech(caller, [(turn.text, turn.voice_id) for turn in body.inputs], body.seed)
    return await streamed(request, caller.begin(speech, audio_format))


@router.post("/v1/text-to-speech/{voice_id}", summary="A text in one voice to audio", **AS_AUDIO)
@router.post("/v1/text-to-speech/{voice_id}/stream", summary="The same: both stream", **AS_AUDIO)
async def text_to_speech(
    request: Request, voice_id: str, body: TextBody, output_format: str = DEFAULT_FORMAT
) -> Response:
    caller = caller_of(request)
    audio_format = elevenlabs_format(output_format)
    speech = await dialogue_speech(caller, [(body.text, voice_id)], body.seed)
    return await streamed(request, caller.begin(speech, audio_format))


async def dialogue_speech(caller: Caller, turns: Sequence[tuple[str, str]], seed: int | None) -> Speech:
    """Turns (text, voice) as one script.

    Raises:
        ApiError: 400, no text, too much of it, an unknown voice or more than two.
    """
    length = sum(len(text) for text, _ in turns)
    if not any(text.strip() for text, _ in turns) or length > MAX_CHARACTERS:
        raise ApiError(400, f"the text must have 1 to {MAX_CHARACTERS} characters, got {length}", param="text")
    voices = list(dict.fromkeys(voice for text, voice in turns if text.strip()))
    return await speech_of_voices(caller, script(turns), voices, seed)


async def speech_of_voices(caller: Caller, text: str | ArrivingText, voices: Sequence[str], seed: int | None) -> Speech:
    """What is spoken of a script, whose [S1] is the first voice and whose [S2] the second.

    Raises:
        ApiError: 400, an unknown voice or more than two, or a seed that cannot be.
    """
    if len(voices) > 2:
        raise ApiError(400, f"a dialogue has at most two voices, got {len(voices)}", param="voice_id")
    prompt = _joined([await caller.service.voices.prompt(voice) for voice in voices])
    codes, transcript = (None, None) if prompt is None else (prompt.codes, prompt.transcript)
    try:
        return Speech(text, codes, transcript, seed)
    except (TypeError, ValueError) as error:
        raise bad_request(error) from None


def _joined(prompts: Sequence[Prompt | None]) -> Prompt | None:
    """One prompt of one or two voices. Of two, both have one or none has: audio of one speaker alone would give its
    voice to the other."""
    if len(prompts) == 1:
        return prompts[0]
    first, second = prompts
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise ApiError(400, "a voice without a prompt cannot share a dialogue with one that has one", param="voice_id")
    return together(first, second)
