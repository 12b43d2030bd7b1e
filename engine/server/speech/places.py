"""How many requests may run and wait at the same time, in all and of one key."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


@dataclass(eq=False)
class Places:
    """Places that one caller holds for several requests, which follow one another in each.

    Attributes:
        count: how many.
        key: number of the API key.
    """

    count: int
    key: int


@dataclass(frozen=True)
class Room:
    """What is taken, and what is left.

    Attributes:
        left: places of all.
        left_of_key: of the key that asks; None without a limit.
    """

    left: int
    left_of_key: int | None

    @property
    def free(self) -> int:
        """Places that this key can have."""
        return self.left if self.left_of_key is None else min(self.left, self.left_of_key)


def room(
    sessions: Iterable["Session"], places: Iterable[Places], *, most: int, key: int, most_per_key: int | None
) -> Room:
    """The room for a key among what is generated and held. Key 0 is nobody's: it has no limit of its own."""
    taken = [(session.key, 1) for session in sessions if session.generating and session.places is None]
    taken += [(held.key, held.count) for held in places]
    of_key = None
    if key and most_per_key is not None:
        of_key = most_per_key - sum(count for owner, count in taken if owner == key)
    return Room(most - sum(count for _, count in taken), of_key)
