"""How the server is: /health for balancers, /metrics for Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ..speech.service import READY
from .context import service_of

router = APIRouter(tags=["server"])


@router.get("/health", summary="200 once requests are taken; 503 starting, draining or failed")
async def health(request: Request) -> Response:
    service = service_of(request)
    content = {
        "status": service.state, "running": service.running, "waiting": service.waiting, "slots": service.slots,
        "slots_used": service.slots_used,
        "model": service.settings.model,
    }  # fmt: skip
    return JSONResponse(content, 200 if service.state == READY else 503)


@router.get("/metrics", summary="Metrics in Prometheus' text format", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})
