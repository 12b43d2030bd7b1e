"""ElevenLabs' text-to-dialogue, which is Dia's own shape, and text-to-speech, over HTTP."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ..audio.formats import elevenlabs_format
from ..errors import ApiError, bad_request
from ..speech.request import Speech
from ..speech.response import streamed
from ..voices.voice import TAG, Prompt, continued, together
from .context import Caller, caller_of

router = APIRouter(tags=["ElevenLabs"])

DEFAULT_FORMAT = "mp3_44100_128"
MAX_CHARACTERS = 5000
# Their audio tags that Dia has a sound for; others would be read out.
SOUNDS = {
    "laughs", "clears throat", "sighs", "gasps", "coughs", "singing", "sings", "mumbles", "beep", "groans", "sniffs",
    "claps", "screams", "inhales", "exhales", "applause", "burps", "humming", "sneezes", "chuckle", "whistles",
}  # fmt: skip
BRACKETED = re.compile(r"\[([a-z ]+)\]", re.IGNORECASE)


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


class SpeechBody(BaseModel):
    """Their fields; what is not here is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    text: str
    model_id: str | None = None
    seed: int | None = None


@router.post("/v1/text-to-dialogue", summary="Turns of one or two voices to audio")
@router.post("/v1/text-to-dialogue/stream", summary="The same: both stream")
async def dialogue(request: Request, body: DialogueBody, output_format: str = DEFAULT_FORMAT) -> Response:
    caller = caller_of(request)
    audio_format = elevenlabs_format(output_format)
    speech = await dialogue_speech(caller, [(turn.text, turn.voice_id) for turn in body.inputs], body.seed)
    return await streamed(request, caller.begin(speech, audio_format))


@router.post("/v1/text-to-speech/{voice_id}", summary="A text in one voice to audio")
@router.post("/v1/text-to-speech/{voice_id}/stream", summary="The same: both stream")
async def text_to_speech(
    request: Request, voice_id: str, body: SpeechBody, output_format: str = DEFAULT_FORMAT
) -> Response:
    caller = caller_of(request)
    audio_format = elevenlabs_format(output_format)
    speech = await dialogue_speech(caller, [(body.text, voice_id)], body.seed)
    return await streamed(request, caller.begin(speech, audio_format))


async def dialogue_speech(caller: Caller, turns: Sequence[tuple[str, str]], seed: int | None) -> Speech:
    """Turns (text, voice) as one script: the first voice is [S1], the second [S2].

    Raises:
        ApiError: 400, no text, too much of it, an unknown voice or more than two.
    """
    length = sum(len(text) for text, _ in turns)
    if not any(text.strip() for text, _ in turns) or length > MAX_CHARACTERS:
        raise ApiError(400, f"the text must have 1 to {MAX_CHARACTERS} characters, got {length}", param="text")
    voices = list(dict.fromkeys(voice for _, voice in turns))
    if len(voices) > 2:
        raise ApiError(400, f"a dialogue has at most two voices, got {len(voices)}", param="voice_id")
    prompts = [await caller.service.voices.prompt(voice) for voice in voices]
    prompt = _joined(prompts)
    text = continued(prompt, script([(said, voices.index(voice)) for said, voice in turns if said.strip()]))
    codes, transcript = (None, None) if prompt is None else (prompt.codes, prompt.transcript)
    try:
        more: dict[str, Any] = {} if seed is None else {"seed": seed}
        return Speech(text, codes, transcript, **more)
    except (TypeError, ValueError) as error:
        raise bad_request(error) from None


def script(turns: Sequence[tuple[str, int]]) -> str:
    """Turns (text, index of the voice) with speaker tags, one where the voice changes; their [laughs] are (laughs)."""
    parts: list[str] = []
    last = None
    for text, voice in turns:
        text = BRACKETED.sub(lambda found: f"({found[1].lower()})" if found[1].lower() in SOUNDS else found[0], text)
        if voice != last and not TAG.match(text.strip()):
            parts.append(f"[S{voice + 1}]")
        parts.append(text.strip())
        last = voice
    return " ".join(parts)


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
