"""Who may ask: API keys."""

import hmac

from starlette.requests import HTTPConnection

from .errors import ApiError


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
