"""Packages that a plain installation lacks."""

import importlib


def require(what: str, extra: str, *modules: str) -> None:
    """Check that the modules that something needs can be imported.

    Args:
        what: needs them, such as "the server".
        extra: of this package, which brings them.

    Raises:
        RuntimeError: one cannot; the message says what to install.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RuntimeError(f"{error}; {what} needs more packages: pip install 'dia-engine[{extra}]'") from None
