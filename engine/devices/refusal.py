"""Memory that a device has refused."""

import logging
import time

SECONDS_TO_RETRY = 1.0


class Refusal:
    """Whether memory was refused lately: it is asked for again a while later, and told once, however long it lasts."""

    def __init__(self, logger: logging.Logger):
        self._logger, self._retry_at = logger, 0.0

    @property
    def holds(self) -> bool:
        """Whether it is too early to ask again."""
        return time.monotonic() < self._retry_at

    def note(self, message: str, *arguments: object) -> None:
        """It was refused just now; what to tell, as for a logger."""
        log = self._logger.debug if self._retry_at else self._logger.warning
        log(message, *arguments)
        self._retry_at = time.monotonic() + SECONDS_TO_RETRY

    def end(self) -> None:
        """It was given."""
        self._retry_at = 0.0
