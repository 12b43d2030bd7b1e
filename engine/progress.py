"""Progress bars on standard error, which may be full or closed: that ends no work."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm
from tqdm.utils import ObjectWrapper

from .messages import shown
from .results import Progress


class _Forgiving(ObjectWrapper):
    """A file of which nobody hears that it cannot be written to."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._wrapped.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._wrapped.flush()


def progress_bar(*, hidden: bool = False, **options: Any) -> tqdm:
    """A bar of tqdm's with its options; `hidden` shows nothing, as does a closed standard error."""
    if hidden or sys.stderr is None:
        return tqdm(disable=True, **options)
    return tqdm(file=_Forgiving(sys.stderr), **options)


class StepsBar:
    """Decode steps on a bar, with x real time; of planned scripts pieces and the time that is left."""

    def __init__(self, bar: tqdm | None, real_time: float):
        """`real_time` is steps/s at 1x; no bar shows nothing."""
        self._bar, self._real_time, self._planned = bar, real_time, False

    def following(self, on_progress: Callable[[Progress], Any] | None) -> dict[str, Any]:
        """Arguments of a `Call` that keep the bar, and tell a caller."""
        if self._bar is None:
            return {"on_progress": on_progress}

        def tell(progress: Progress) -> None:
            self._show(progress)
            if on_progress is not None:
                on_progress(progress)

        return {"on_steps": self._count, "on_progress": tell}

    def _count(self, steps: int) -> None:
        bar: Any = self._bar
        bar.update(steps)
        if not self._planned:
            rate = bar.format_dict["rate"] or bar.n / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate / self._real_time:.2f}x real time", refresh=False)

    def _show(self, progress: Progress) -> None:
        self._planned = True
        bar: Any = self._bar
        bar.set_postfix_str(str(progress))


@contextmanager
def steps_bar(verbose: bool, real_time: float) -> Iterator[StepsBar]:
    """`verbose` shows one; `real_time` is steps/s at 1x."""
    if not verbose:
        yield StepsBar(None, real_time)
        return
    with progress_bar(unit=" steps", desc="generate") as bar:
        yield StepsBar(bar, real_time)


def check_on_progress(on_progress: object) -> None:
    """Raises TypeError: it cannot be called."""
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function of a Progress, got {shown(on_progress)}")
