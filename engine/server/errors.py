"""Errors as OpenAI's JSON, whatever went wrong: `{"error": {"message", "type", "param", "code"}}`."""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..messages import without_controls

logger = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
# The engine's errors begin with what they are about; requests call some of it by other names.
PARAMETERS = {
    "text": "input", "audio_prompt_text": "ref_text", "audio": "ref_audio", "waveform": "ref_audio",
    **{name: name for name in (
        "seed", "temperature", "top_p", "cfg_scale", "cfg_filter_top_k", "max_tokens", "min_tokens",
        "pause", "chunk_frames", "first_chunk_frames", "speed", "sample_rate",
    )},
}  # fmt: skip


class ErrorContent(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error, as OpenAI has them."""

    error: ErrorContent


# In the schema of the routes; with them FastAPI names no 422, which is never sent.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served; 429 with Retry-After: not now"},
    "5XX": {"model": ErrorBody, "description": "The server cannot serve; 503 with Retry-After: not now"},
}


class ApiError(Exception):
    """An error that a client is told.

    Attributes:
        status: of HTTP.
        message: for a person.
        param: the field that is wrong, if it is one.
        code: for a program.
        retry_after: seconds after which another try may succeed.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, without_controls(message), param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(error: Exception) -> ApiError:
    """The engine's ValueError or TypeError as a client's mistake, with the field that it names."""
    message = str(error)
    first = re.match(r"\w+", message)
    param = PARAMETERS.get(first.group()) if first else None
    message = message.replace("audio_prompt_text", PARAMETERS["audio_prompt_text"])
    return ApiError(400, message, param=param, code="invalid_value")


def invalid_fields(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's errors."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    # Of a union each kind is tried, and named behind the field.
    param = place[0] if place and not place[0].isdigit() else None
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if param is None and first["loc"][:1] == ("body",):
        message = "the body must be a JSON object, sent with Content-Type: application/json"
    else:
        message = f"{'.'.join(place)}: {first['msg']}"
    return ApiError(400, message, param=param, code="invalid_type")


def error_response(error: ApiError) -> Response:
    """The response that tells an error."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    # In ASCII: a message may quote half of a surrogate pair, which UTF-8 cannot hold.
    return Response(json.dumps(error.body), error.status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Have every error of an application in this shape."""
    handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        ApiError: _api_error,
        RequestValidationError: _invalid,
        HTTPException: _http_error,
        Exception: _bug,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _api_error(request: Request, error: ApiError) -> Response:
    return error_response(error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    return error_response(invalid_fields(error.errors()))


async def _http_error(request: Request, error: HTTPException) -> Response:
    cause = error.__cause__
    # A large file of a form lies in the temporary folder. A body that came too slowly is a ConnectionError.
    if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
        logger.error("a body could not be kept while it was read: %s", cause)
        return error_response(ApiError(503, "the server cannot keep the body: its temporary folder is not writable"))
    if error.status_code == 400 and cause is not None:  # what reading a body as JSON has raised
        message = "the body cannot be read as JSON: it is not UTF-8, is nested too deeply or holds too long a number"
        return error_response(ApiError(400, message, code="invalid_json"))
    messages = {404: "no such route", 405: "this route does not have that method"}
    message = messages.get(error.status_code, str(error.detail))
    response = error_response(ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def _bug(request: Request, error: Exception) -> Response:
    # What it was is in the log alone: a message of an unknown error can hold paths.
    return error_response(ApiError(500, "an internal error; the server's log has it under the request's id"))
