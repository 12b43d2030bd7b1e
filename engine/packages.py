"""What Ray's side needs and a plain installation lacks."""

import importlib


def require(*modules: str) -> None:
    """Check that modules can be imported.

    Raises:
        RuntimeError: one cannot; the message says what to install.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RuntimeError(f"{error}; Ray needs more packages: pip install 'dia-engine[ray]'") from None
