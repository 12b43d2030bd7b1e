"""Retries of allocations that a device has refused."""

import logging
import time

SECONDS_TO_RETRY = 1.0


class Refusal:
    """Rate limit for retries of a failed allocation: one per SECONDS_TO_RETRY, with one warning until it succeeds."""

    def __init__(self, logger: logging.Logger):
        self._logger, self._retry_at = logger, 0.0

    @property
    def holds(self) -> bool:
        """Whether it is too early to retry."""
        return time.monotonic() < self._retry_at

    def note(self, message: str, *arguments: object) -> None:
        """Record a failure and log it; the arguments are those of a logger's methods."""
        log = self._logger.debug if self._retry_at else self._logger.warning
        log(message, *arguments)
        self._retry_at = time.monotonic() + SECONDS_TO_RETRY

    def end(self) -> None:
        """Record a success."""
        self._retry_at = 0.0
