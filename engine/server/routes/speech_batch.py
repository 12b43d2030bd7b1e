"""Several scripts in one request, in the shape of vLLM-Omni's and SGLang-Omni's batch route.

A batch is for those who wait for all of it: its items fill the slots that are free, one after another, and the response
comes when the last has ended. Audio that begins to play at once comes from the speech route.
"""

import asyncio
import base64
import json
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from ..access import KEY_IN_SCHEMA, KeyedRoute
from ..errors import ApiError, invalid_fields
from ..speech.admission import Reservation
from ..speech.response import CLIENT_LEFT, WholeResponse, while_connected
from ..speech.session import Session
from ..voices.voice import tagged
from .context import Caller, caller_of
from .speech import SpeechBody, SpeechFields, check_input, checked_format, speech_of

router = APIRouter(tags=["OpenAI"], dependencies=[KEY_IN_SCHEMA], route_class=KeyedRoute)

MAX_ITEMS = 32
MAX_CHARACTERS = 20_000  # of all items: the response is one


class BatchBody(SpeechFields):
    """Items, and the fields that they share."""

    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_ITEMS,
        description="each an object with `input`, and fields of its own, which go before the shared ones",
    )  # fmt: skip


class BatchResult(BaseModel):
    """What became of an item."""

    index: int
    status: Literal["success", "error"]
    audio_data: str | None = Field(None, description="base64")
    format: str | None = None
    media_type: str | None = None
    sample_rate: int | None = None
    seed: int | None = None
    error: dict[str, Any] | None = Field(None, description="as the speech route would have answered")


class BatchAnswer(BaseModel):
    """What became of a batch, in the order of its items."""

    id: str
    results: list[BatchResult]
    total: int
    succeeded: int
    failed: int


@router.post(
    "/v1/audio/speech/batch",
    summary="Up to 32 scripts, whose audio comes as one JSON object",
    response_model=BatchAnswer,
)
async def batch(request: Request, body: BatchBody) -> Response:
    caller = caller_of(request)
    items = [_item(body, index) for index in range(len(body.items))]
    characters = sum(len(item.input) for item in items if isinstance(item, SpeechBody))
    if characters > MAX_CHARACTERS:
        raise ApiError(
            400, f"the items of a batch must have at most {MAX_CHARACTERS} characters, got {characters}", param="items"
        )
    sessions: list[Session] = []
    try:
        with caller.service.reserve(min(len(items), caller.service.slots), caller.key) as reservation:
            results = await while_connected(
                request.receive, lambda: _speak(request, caller, reservation, items, sessions)
            )
        if results is None:
            _close(sessions)
            return Response(status_code=CLIENT_LEFT)
        content = await caller.service.in_thread(_answer, caller.request_id, results)
    except BaseException:
        _close(sessions)
        raise
    made = [session for session in sessions if session.read_to_end]  # the others have failed
    _close([session for session in sessions if not session.read_to_end])
    return WholeResponse(made, content, media_type="application/json", headers={"Cache-Control": "no-cache"})


def _close(sessions: list[Session]) -> None:
    for session in sessions:
        session.close()


def _item(body: BatchBody, index: int) -> SpeechBody | ApiError:
    """An item with the fields that it shares with others."""
    shared = {name: getattr(body, name) for name in body.model_fields_set if name != "items"}
    try:
        item = SpeechBody.model_validate({**shared, **body.items[index]})
        check_input(item.input)
    except ValidationError as error:
        return invalid_fields(error.errors())
    except ApiError as error:
        return error
    return item


async def _speak(
    request: Request,
    caller: Caller,
    reservation: Reservation,
    items: list[SpeechBody | ApiError],
    sessions: list[Session],
) -> list[dict[str, Any]]:
    """Generate the items, `reservation.count` at a time; returns their results. The caller closes the sessions."""
    results: list[dict[str, Any]] = [{} for _ in items]
    waiting = iter(enumerate(items))

    async def work() -> None:
        for index, item in waiting:
            try:
                if isinstance(item, ApiError):
                    raise item
                audio_format = checked_format(request, item)
                speech = await speech_of(caller, tagged(item.input), item)
                session = caller.item(index, reservation, speech, audio_format)
                sessions.append(session)
                data = await session.read_all()
                results[index] = {
                    "index": index, "status": "success", "audio_data": data, "format": audio_format.name,
                    "media_type": audio_format.content_type, "sample_rate": audio_format.sample_rate,
                    "seed": session.speech.seed,
                }  # fmt: skip
            except ApiError as error:
                results[index] = {"index": index, "status": "error", **error.body}

    workers = [asyncio.create_task(work()) for _ in range(reservation.count)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return results


def _answer(identity: str, results: list[dict[str, Any]]) -> bytes:
    """The body of the response."""
    for result in results:
        if "audio_data" in result:
            result["audio_data"] = base64.b64encode(result["audio_data"]).decode()
    succeeded = sum(result["status"] == "success" for result in results)
    content = {
        "id": identity, "results": results, "total": len(results), "succeeded": succeeded,
        "failed": len(results) - succeeded,
    }  # fmt: skip
    return json.dumps(content).encode()
