"""Admission control: how many more requests may run or wait, in total and per API key."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


@dataclass(eq=False)
class Reservation:
    """Places in the server that a batch holds while its items run, `count` at a time.

    Attributes:
        count: number of places.
        key: number of the API key; 0 if the server has none.
    """

    count: int
    key: int


@dataclass(frozen=True)
class Availability:
    """How many more requests can be admitted.

    Attributes:
        total: for all keys together.
        of_key: for the key that asks; None without a limit per key.
    """

    total: int
    of_key: int | None

    @property
    def free(self) -> int:
        """How many more requests of this key can be admitted."""
        return self.total if self.of_key is None else min(self.total, self.of_key)


def availability(
    sessions: Iterable["Session"], reservations: Iterable[Reservation], *, most: int, key: int, most_per_key: int | None
) -> Availability:
    """What is left for a key, given the sessions in progress and the reservations.

    Args:
        most: requests that may run or wait, of all keys.
        key: number of the API key. Key 0 (no keys configured) has no limit of its own.
        most_per_key: requests that each key may have; None for no limit.
    """
    taken = [(session.key, 1) for session in sessions if session.generating and session.reservation is None]
    taken += [(reservation.key, reservation.count) for reservation in reservations]
    of_key = None
    if key and most_per_key is not None:
        of_key = most_per_key - sum(count for owner, count in taken if owner == key)
    return Availability(most - sum(count for _, count in taken), of_key)
