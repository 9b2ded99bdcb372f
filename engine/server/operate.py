"""What operates the server: /health, /abort_request, /sleep, /wakeup, /is_sleeping."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from .errors import BadRequest
from .exchange import Stream
from .schemas import AbortRequest
from .service import Service


def add_routes(router: APIRouter, service: Service) -> None:
    @router.get("/health", tags=["operation"], response_model=None)
    async def health() -> Response:
        """200 when a request would be answered, or the model sleeps; else 503. Needs no key."""
        service.health()
        return JSONResponse({"status": "sleeping" if service.sleeping else "healthy"})

    @router.post("/abort_request", tags=["LMDeploy"], response_model=None)
    async def abort_request(body: AbortRequest) -> Response:
        """End what is being generated: an answer by its `id`, a session, or everything."""
        if not body.abort_all and body.request_id is None and body.session_id in (None, -1):
            raise BadRequest("request_id: give it, or session_id, or abort_all = true", "request_id")

        def matches(stream: Stream) -> bool:
            first = stream.requests[0]
            return bool(
                body.abort_all
                or (
                    body.request_id is not None
                    and body.request_id.partition("-")[2] == first.id.partition("/")[0]
                )
                or (body.session_id not in (None, -1) and first.session == f"session {body.session_id}")
            )

        return JSONResponse({"success": True, "aborted": service.cut(matches)})

    @router.post("/sleep", tags=["LMDeploy"], response_model=None)
    async def sleep(level: Annotated[Literal["1", "2"], Query()] = "1") -> Response:
        """Free the model's memory; requests get 503 until it is woken. Both levels free weights and cache."""
        service.ready()
        service.sleep()
        return JSONResponse({"success": True})

    @router.post("/wakeup", tags=["LMDeploy"], response_model=None)
    async def wakeup(
        tags: Annotated[list[Literal["weights", "kv_cache"]] | None, Query(max_length=2)] = None,
    ) -> Response:
        """Load the model again, and answer when it is there. It wakes as a whole, whatever the tags."""
        await service.wake()
        return JSONResponse({"success": True})

    @router.get("/is_sleeping", tags=["LMDeploy"], response_model=None)
    async def is_sleeping() -> Response:
        """Whether the model sleeps."""
        return JSONResponse({"is_sleeping": service.sleeping})
