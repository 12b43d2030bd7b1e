"""Who may ask: API keys, and pages of which sites."""

import hmac
from collections.abc import Callable, Collection, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from .errors import ApiError

# In the schema of the routes that need one, so that /docs can ask for it.
KEY_IN_SCHEMA = Depends(HTTPBearer(auto_error=False, description="an API key, where the server has any"))


class Keys:
    """The keys that a server knows. Without any, everybody may ask."""

    def __init__(self, keys: tuple[str, ...]):
        self._keys = [key.encode() for key in keys]

    def find(self, connection: HTTPConnection) -> int | None:
        """The number of the key that a request carries, counted from 1, 0 if none is needed; None if it may not ask."""
        if not self._keys:
            return 0
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        # ElevenLabs' clients send theirs in a header of their own.
        given = token.strip() if scheme.lower() == "bearer" else connection.headers.get("xi-api-key", "")
        found = None
        for number, key in enumerate(self._keys, 1):  # all of them, so that the time tells nothing
            if hmac.compare_digest(given.encode("utf-8", "replace"), key):
                found = number
        return found

    def require(self, connection: HTTPConnection) -> int:
        """`find`, for what nobody may do without a key.

        Raises:
            ApiError: 401.
        """
        found = self.find(connection)
        if found is None:
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        return found


class KeyedRoute(APIRoute):
    """A route that asks for a key before it reads a body: JSON of some megabytes takes half a second, in which nothing
    else is answered. Routes without a body ask by themselves, as far as they need a key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_key(request: Request) -> Response:
            if "POST" in (self.methods or ()):
                keys: Keys = request.app.state.keys
                keys.require(request)
            return await handle(request)

        return handle_with_key


def check_origin(connection: HTTPConnection, allowed: Collection[str]) -> None:
    """Refuse pages of other sites: a browser lets them send forms and open WebSockets without asking first.

    Args:
        allowed: origins whose pages may ask; * for all.

    Raises:
        ApiError: 403.
    """
    origin = connection.headers.get("origin")
    if origin is None or origin in allowed or "*" in allowed:
        return
    try:
        host = urlsplit(origin).netloc
    except ValueError:  # no address
        host = ""
    if not host or host != connection.headers.get("host"):
        raise ApiError(403, "pages of other origins need --cors-origin", code="origin_not_allowed")
