"""The ASGI application. A process of one's own, Ray Serve's for instance, needs no more than `build_app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..engine import Engine
from . import errors
from .access import Keys
from .lifecycle import Startup
from .middleware import RequestContext
from .routes import (
    elevenlabs,
    elevenlabs_socket,
    health,
    models,
    page,
    speech,
    speech_batch,
    speech_socket,
    voices,
)  # fmt: skip
from .settings import Settings
from .speech.service import SpeechService

ROUTES = (speech, speech_batch, speech_socket, models, voices, elevenlabs, elevenlabs_socket, health, page)
DESCRIPTION = "Text to dialogue with Dia, in the shapes of OpenAI's and ElevenLabs' interfaces."


def build_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """The application of a server.

    Args:
        settings: see `dia_engine.server.settings.Settings`; None for its defaults.
        engine: a loaded one; without it `settings.model` is loaded when the application starts.

    Returns:
        the application; `app.state.service` is its `SpeechService`, `app.state.startup` its start.
    """
    settings = settings or Settings()
    service = SpeechService(settings)
    startup = Startup(service, engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        startup.begin()
        yield
        await startup.end()

    app = FastAPI(
        title="dia-engine", version=__version__, description=DESCRIPTION, lifespan=lifespan,
        root_path=settings.root_path, redoc_url=None,
        responses=errors.RESPONSES,
        redirect_slashes=False,  # behind a proxy the address that it would lead to is not the server's
    )  # fmt: skip
    app.state.service, app.state.keys, app.state.startup = service, Keys(settings.api_key), startup
    errors.install(app)
    for module in ROUTES:
        app.include_router(module.router)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origin), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Seed", "X-Sample-Rate", "Retry-After"],
        )  # fmt: skip
    app.add_middleware(RequestContext, settings=settings)
    return app
