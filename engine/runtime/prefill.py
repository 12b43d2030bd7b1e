"""The prefill of one request, run by the scheduler's thread between decode steps, or by a worker beside them."""

from collections.abc import Generator

from ..devices.workers import Job, Urgency, Workers


class Prefill:
    """Pieces of work that fill a slot's caches."""

    def __init__(self, pieces: Generator[int, None, None]):
        """`pieces` yields the multiplications of each piece before it is run."""
        self._pieces = pieces
        self._job: Job[None] | None = None
        self._has_begun = self._ended = False

    @property
    def is_handed_over(self) -> bool:
        """Whether a worker runs it."""
        return self._job is not None

    def hand_over(self, workers: Workers, urgency: Urgency) -> None:
        """Have a worker run what is left of it."""
        if not self._has_begun:
            self.run_piece()  # what comes before the first piece
        self._job = workers.submit(self._pieces, urgency)

    def has_ended(self) -> bool:
        """Whether no piece is left; raises what a piece has raised in a worker."""
        if self._job is not None and self._job.ready():
            self._job.wait()
            self._ended = True
        return self._ended

    def run_piece(self) -> int:
        """Run the next piece here -> the multiplications of the one that follows, 0 if that was the last. The first
        call runs what comes before the first piece."""
        self._has_begun = True
        try:
            return next(self._pieces)
        except StopIteration:
            self._ended = True
            return 0

    def stop(self) -> None:
        """Give it up; when this returns, nobody writes to the slot's caches any more."""
        if self._job is not None:
            self._job.cancel()
            self._job.join()
