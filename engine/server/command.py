"""The command `dia-engine serve`."""

import logging
import os
import sys
from typing import Any

from ..packages import require
from .settings import Settings, read_settings

logger = logging.getLogger(__name__)

# Threads that run Python hold the interpreter for so long at a time; the event loop waits for it before each turn.
SWITCH_SECONDS = 0.0005
CLONING = "Voices: the model's makers forbid imitating a real person without permission."


def run(options: dict[str, Any]) -> None:
    """Serve until a signal.

    Args:
        options: the settings that were given on the command line, by name.

    Raises:
        ImportError, OSError, ValueError, RuntimeError: it cannot be served; the message is for the user.
    """
    settings = read_settings(options)
    require("the server", "serve", "av", "fastapi", "prometheus_client", "uvicorn")
    serve(settings)


def serve(settings: Settings) -> None:
    """`run` with settings."""
    from .app import build_app
    from .listener import Listener, bound_socket
    from .logs import configure

    listening = bound_socket(settings)
    configure(settings.log_format)
    app = build_app(settings)
    host, port = listening.getsockname()[:2]
    logger.info("listening on http://%s:%d, loading %s", host, port, settings.model)
    logger.info(CLONING)
    if settings.is_public:
        logger.warning("anybody who reaches %s:%d may use this server: set --api-key", host, port)
    sys.setswitchinterval(SWITCH_SECONDS)
    Listener(app, settings).run(sockets=[listening])
    error = app.state.startup.error
    if error is not None:
        raise error
    if app.state.startup.is_loading:
        # The end of the interpreter stops such a thread wherever it is in compiled code, which may abort the process.
        logging.shutdown()
        os._exit(0)
