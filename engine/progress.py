"""Progress bars on standard error, which may be full or closed: that ends no work."""

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm
from tqdm.utils import ObjectWrapper


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
