"""What watches the server: /v1/models, /metrics, /v1/monitor."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from ..monitor import INTERVAL_S, to_json
from .errors import ApiError, shown
from .replies import SSE, encoded
from .service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_routes(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models", tags=["OpenAI"], response_model=None)
    async def models() -> Response:
        """The model served here; none while it is loading."""
        return _json({"object": "list", "data": _cards(service)})

    @router.get("/v1/models/{model:path}", tags=["OpenAI"], response_model=None)
    async def model(model: str) -> Response:
        """One model, by its name."""
        card = next((card for card in _cards(service) if card["id"] == model), None)
        if card is None:
            raise ApiError(404, f"the model {shown(model)} does not exist", "model_not_found", "model")
        return _json(card)

    @router.get("/metrics", tags=["operation"], response_model=None)
    async def metrics() -> Response:
        """Counters, gauges and histograms, for Prometheus."""
        text = service.metrics.text(service.gauges())
        return Response(text, media_type=METRICS_TYPE)

    @router.get("/v1/monitor", tags=["operation"], response_model=None)
    async def monitor(once: bool = False) -> Response:
        """The gauges of `lmtop connect`, as server-sent events at 2 Hz; with `once` a single JSON document."""
        if once:
            return _json(to_json(service.monitor(), time.monotonic()))
        return StreamingResponse(
            _monitor(service), media_type=SSE.decode(), headers={"Cache-Control": "no-cache"}
        )


def _json(value: Any) -> Response:
    return Response(encoded(value), media_type="application/json")


async def _monitor(service: Service) -> AsyncIterator[bytes]:
    while not service.closing.is_set():
        yield b"data: " + encoded(to_json(service.monitor(), time.monotonic())) + b"\n\n"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(service.closing.wait(), INTERVAL_S)


def _cards(service: Service) -> list[dict[str, Any]]:
    info = service.state.info
    if info is None or service.sleeping:
        return []
    names = service.names(info)
    return [
        {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "lmtop",
            "root": names[0],
            "parent": None,
            "max_model_len": info.context_len,
            "permission": [],
        }
        for name in names
    ]
