"""What every route needs of the application and of its request."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from ..access import Keys, check_origin
from ..audio.formats import AudioFormat
from ..errors import ApiError
from ..speech.admission import Reservation
from ..speech.request import Speech
from ..speech.service import SpeechService
from ..speech.session import Session

logger = logging.getLogger(__name__)


def service_of(connection: HTTPConnection) -> SpeechService:
    """The application's service."""
    service: SpeechService = connection.app.state.service
    return service


def keys_of(connection: HTTPConnection) -> Keys:
    """The application's keys."""
    keys: Keys = connection.app.state.keys
    return keys


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        key: number of the API key, 0 where none is needed.
        request_id: in answers and log lines.
        received: when the request came in, in seconds of `time.perf_counter`.
    """

    service: SpeechService
    key: int
    request_id: str
    received: float

    def begin(self, speech: Speech, audio_format: AudioFormat, received: float | None = None) -> Session:
        """`SpeechService.begin` for this caller. `received`: when its text came in, if not with the request: a socket
        may be open long before."""
        received = self.received if received is None else received
        return self.service.begin(speech, audio_format, key=self.key, request_id=self.request_id, received=received)

    def bug(self) -> ApiError:
        """What to tell of the exception that is being handled, which is in the log alone: it can hold paths."""
        logger.exception("a bug", extra={"fields": {"request": self.request_id}})
        return ApiError(500, "an internal error; the server's log has it under the request's id", code="failed")

    def item(self, index: int, reservation: Reservation, speech: Speech, audio_format: AudioFormat) -> Session:
        """`begin` for item `index` of a batch, in one of the places that the batch has reserved."""
        return self.service.begin(
            speech, audio_format, key=self.key, request_id=f"{self.request_id}/{index}", received=time.perf_counter(),
            reservation=reservation,
        )  # fmt: skip


def caller_of(connection: HTTPConnection) -> Caller:
    """Who asks for speech.

    Raises:
        ApiError: 401 without a valid key; 403 for a page of another site; 503 while no request is taken.
    """
    key = keys_of(connection).require(connection)
    service = service_of(connection)
    if connection.scope["type"] == "websocket":  # of JSON over HTTP a browser asks first
        check_origin(connection, service.settings.cors_origin)
    service.check_state()
    state: dict[str, Any] = connection.scope.get("state", {})
    return Caller(service, key, state.get("request_id", ""), state.get("received", time.perf_counter()))


def key_number(connection: HTTPConnection) -> int:
    """A dependency of routes that need a key."""
    return keys_of(connection).require(connection)
