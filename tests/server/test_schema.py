"""Whatever our own OpenAPI document allows, and what it does not: never a 5xx, always an answer in the known form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from support.server import Server, is_error

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/chat/interactive",
    "/generate",
    "/v1/encode",
    "/get_ppl",
    "/abort_request",
    "/v1/models/{model}",
    "/v1/embeddings",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(session_len=32)  # short replies, whatever is asked
    yield server
    server.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize("path", PATHS)
def test_never_a_5xx(server: Server, path: str, mode: GenerationMode) -> None:
    if "{" in path and mode is GenerationMode.NEGATIVE:
        pytest.skip("every path is a valid one")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    (operation,) = schema[path].values()
    calls = 0

    @seed(5)
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        nonlocal calls
        calls += 1
        response = case.call(base_url=server.url, timeout=30)
        status = response.status_code
        assert status < 500 or (status == 501 and path == "/v1/embeddings"), (case.body, response.text)
        if status >= 400:
            is_error(response, status)

    check()
    assert calls >= 5 or mode is GenerationMode.NEGATIVE
    server.settled()


def test_the_document_names_every_endpoint(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    assert set(PATHS) <= set(document["paths"])
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation.get("description"), path
