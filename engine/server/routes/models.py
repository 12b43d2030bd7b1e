"""The model, as OpenAI's clients list it."""

from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.requests import HTTPConnection

from ...sampling_params import SamplingParams
from ..errors import ApiError
from ..speech.service import STARTING
from .context import service_of

router = APIRouter(tags=["OpenAI"])
# What stock clients call their model; all are this server's one.
ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "dia")
OWNER = "dia-engine"
TOYS = ("talker", "synthetic:tiny", "synthetic:full")


def names(connection: HTTPConnection) -> list[str]:
    """The model's name and the aliases."""
    return list(dict.fromkeys([service_of(connection).settings.model, *ALIASES]))


def check_model(connection: HTTPConnection, model: str | None) -> None:
    """Check that a request's model is the one that is served.

    Raises:
        ApiError: 404.
    """
    if model is not None and model not in names(connection):
        raise ApiError(404, f"there is no model {model[:80]!r} here", param="model", code="model_not_found")


def _described(request: Request, name: str) -> dict[str, object]:
    described: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": OWNER}
    service = service_of(request)
    if service.state != STARTING:
        engine = service.engine
        params = asdict(SamplingParams().resolve(engine.defaults))
        params["max_tokens"] = min(params["max_tokens"], engine.max_rows)
        # For those who offer them to be changed: the page does.
        described["dia"] = {
            "defaults": params,
            "sample_rate": engine.sample_rate,
            "good_bytes": engine.long_form.good_bytes,
            "max_bytes": engine.config.encoder.max_position_embeddings,
            "is_toy": service.settings.model in TOYS,
        }
    return described


@router.get("/v1/models", summary="The model and its aliases")
@router.get("/v1/audio/models", summary="The same, where Open WebUI asks for it")
async def models(request: Request) -> dict[str, object]:
    found = [_described(request, name) for name in names(request)]
    return {"object": "list", "data": found, "models": [{"id": name} for name in names(request)]}


@router.get("/v1/models/{model:path}", summary="One of them")
async def model(request: Request, model: str) -> dict[str, object]:
    check_model(request, model)
    return _described(request, model)
