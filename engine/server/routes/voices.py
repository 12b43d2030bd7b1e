"""Voices: list, upload, delete, as OpenAI's and ElevenLabs' clients do."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile

from ..access import KEY_IN_SCHEMA, KeyedRoute, check_origin
from ..errors import ApiError
from ..voices.voice import Voice
from .context import key_number, keys_of, service_of

router = APIRouter(tags=["voices"], route_class=KeyedRoute)


def _listed(request: Request, voice: Voice) -> dict[str, object]:
    shown: dict[str, object] = {"id": voice.id, "name": voice.name, "category": voice.category}
    # Open WebUI lists without a key: what was said in an upload is for those who have one.
    if keys_of(request).find(request) is not None:
        shown |= {"ref_text": voice.transcript, "created_at": voice.created}
    return shown


@router.get("/v1/audio/voices", summary="The voices; their transcripts only with a key")
def voices(request: Request) -> dict[str, object]:
    return {"voices": [_listed(request, voice) for voice in service_of(request).voices.list()]}


@router.get("/v1/voices", summary="The voices as ElevenLabs' clients list them")
def elevenlabs_voices(request: Request) -> dict[str, object]:
    found = service_of(request).voices.list()
    shown = [{"voice_id": each.id, "name": each.name, "category": each.category, "labels": {}} for each in found]
    return {"voices": shown, "has_more": False, "total_count": len(shown)}


@router.post(
    "/v1/audio/voices", summary="Upload a voice, with its transcript and a statement of consent",
    dependencies=[KEY_IN_SCHEMA],
)  # fmt: skip
async def create(
    request: Request,
    name: Annotated[str, Form()],
    audio_sample: Annotated[UploadFile, File(description="1 to 30 seconds, best 5 to 10")],
    consent: Annotated[str, Form(description="whose consent there is: a statement or its id")],
    ref_text: Annotated[str, Form(description="what is said in the audio, with [S1] and [S2]")] = "",
    key: int = Depends(key_number),
) -> dict[str, object]:
    service = service_of(request)
    service.check_state()
    check_origin(request, service.settings.cors_origin)
    if not ref_text.strip():
        raise ApiError(400, "ref_text must say what is said in audio_sample", param="ref_text")
    if not consent.strip():
        raise ApiError(400, "consent must say that the speaker has agreed", param="consent")
    voice = await service.voices.create(name, await audio_sample.read(), ref_text)
    shown = {"id": voice.id, "object": "audio.voice", "name": voice.name, "created_at": voice.created}
    return shown | {"type": "audio_sample"}


@router.delete("/v1/audio/voices/{voice_id}", summary="Delete an uploaded voice", dependencies=[KEY_IN_SCHEMA])
@router.delete("/v1/voices/{voice_id}", summary="The same for ElevenLabs' clients", dependencies=[KEY_IN_SCHEMA])
def delete(request: Request, voice_id: str, key: int = Depends(key_number)) -> dict[str, object]:
    service_of(request).voices.delete(voice_id)
    return {"id": voice_id, "object": "audio.voice.deleted", "deleted": True, "status": "ok"}
