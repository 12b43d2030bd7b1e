"""The application of `dia-engine serve` as a deployment of Ray Serve."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from fastapi import FastAPI
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..devices.device import resolve_dtype
from ..server.app import build_app
from ..server.command import SWITCH_SECONDS
from ..server.logs import configure
from ..server.settings import Settings
from ..server.speech.service import FAILED
from ..weights.recipes import checked_recipe
from .arguments import Scaling, most_ongoing, read_arguments
from .paths import as_seen_elsewhere

NAME = "dia-engine"
# A replica that was killed is noticed within the first, one that hangs within both.
HEALTH_PERIOD, HEALTH_TIMEOUT = 2.0, 20.0  # seconds
START_ATTEMPTS = 3


class ArgumentError(click.ClickException, ValueError):
    """A mistake in an argument. Ray's commands, which click runs, show it as one line."""


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """See `dia_engine.cluster.app`."""
    try:
        settings, scaling = read_arguments(arguments)
        _check_names(settings)
    except (TypeError, ValueError) as error:
        raise ArgumentError(str(error)) from None
    settings = replace(
        settings,
        model=as_seen_elsewhere(settings.model),
        codec=as_seen_elsewhere(settings.codec),
        voices=str(Path(settings.voices).expanduser().absolute()),
    )
    deployment = serve.deployment(_replica_class(settings), name=NAME)
    return deployment.options(**deployment_options(settings, scaling)).bind()


def deployment_options(settings: Settings, scaling: Scaling) -> dict[str, Any]:
    """How Ray Serve runs the replicas, as arguments of `Deployment.options`."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": scaling.cpus, "num_gpus": _gpus(settings, scaling)},
        "max_ongoing_requests": most_ongoing(settings),
        "health_check_period_s": HEALTH_PERIOD,
        "health_check_timeout_s": HEALTH_TIMEOUT,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "max_constructor_retry_count": START_ATTEMPTS,
    }
    if scaling.max_replicas is None:
        return {**options, "num_replicas": scaling.replicas or 1}
    autoscaling = {
        "min_replicas": 1 if scaling.min_replicas is None else scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": settings.slots,
    }
    return {**options, "autoscaling_config": autoscaling}


def _gpus(settings: Settings, scaling: Scaling) -> float:
    """GPUs per replica. Ray hides those that were not asked for, also from an engine that would choose one."""
    if scaling.gpus is not None:
        return scaling.gpus
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return float(device == "cuda")


def _check_names(settings: Settings) -> None:
    """What can be told of a model's options without the machine that it will run on."""
    if settings.quant is not None:
        checked_recipe(settings.quant)
    for name in ("dtype", "codec_dtype"):
        if getattr(settings, name) is not None:
            resolve_dtype(getattr(settings, name), name)


def _replica_class(settings: Settings) -> type:
    def build() -> FastAPI:
        configure(settings.log_format)
        sys.setswitchinterval(SWITCH_SECONDS)
        app = build_app(settings)
        app.add_middleware(ReplicaHeaders, replica=serve.get_replica_context().replica_id.unique_id)
        return app

    @serve.ingress(build)
    class Replica:
        """An engine and its server."""

        app: FastAPI

        async def check_health(self) -> None:
            """Serve asks once before the first request, and then again and again."""
            await self.app.state.startup.finished()
            if self.app.state.service.state == FAILED:
                raise RuntimeError("the engine cannot work any more")

    return Replica


class ReplicaHeaders:
    """Names the replica in every answer, and leaves the request's id, which the proxy has chosen, to the proxy."""

    def __init__(self, app: ASGIApp, replica: str):
        self._app, self._header = app, (b"x-replica", replica.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if header[0] != b"x-request-id"]
                message["headers"] = [*kept, self._header]
            await send(message)

        await self._app(scope, receive, send_named)
