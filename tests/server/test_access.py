"""Who gets in: keys on every route, Host and Origin, what may listen beyond loopback, TLS."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.server import ScriptedBackend, Server, is_error

from lmtop.engine.arguments import parse
from lmtop.engine.server.access import from_settings, keys_of_file
from lmtop.engine.server.app import create_app
from lmtop.engine.server.gate import host_name
from lmtop.engine.types import UsageError

KEY = "sk-canary-4711"


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    server = Server(ScriptedBackend(), keys=("other-key", KEY), origins=("https://chat.example",))
    yield server
    server.close()


@pytest.fixture(scope="module")
def open_server() -> Iterator[Server]:
    server = Server(ScriptedBackend(), origins=("https://chat.example",))
    yield server
    server.close()


def routes(server: Server) -> list[tuple[str, str]]:
    paths = create_app(server.service).openapi()["paths"]
    listed = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(listed) > 15
    return [
        *listed,
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/assets/swagger-ui.css"),
    ]


def test_every_route_but_health_needs_the_key(locked: Server) -> None:
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY} "[:-1] + "x"},
        {"Authorization": f"Basic {KEY}"},
        {"Host": "x/?"},
        {"X-Api-Key": KEY},
    ]
    with httpx.Client(base_url=locked.url) as client:
        for method, path in [*routes(locked), ("GET", "//v1/models"), ("GET", "/V1/models"), ("GET", "/%2f")]:
            if path == "/health":
                continue
            for headers in wrong:
                response = client.request(method, path, headers=headers)
                is_error(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        is_error(client.get("/v1/models", params={"api_key": KEY}), 401)
        two = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
        is_error(client.get("/v1/models", headers=two), 401)
        for path in ("/health/", "/health?x=/v1/models", "/health/../v1/models", "/healthx"):
            assert client.get(path).status_code in (200, 401), path
        assert client.get("/health").json() == {"status": "healthy"}
        assert client.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer other-key"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:23333", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:5", 200),
        ("", 403),
    ],
)
def test_a_page_that_rebinds_its_name_gets_nothing(open_server: Server, host: str, status: int) -> None:
    for path in ("/health", "/v1/models", "/metrics", "/"):
        assert open_server.client.get(path, headers={"Host": host}).status_code == status


def test_pages_from_elsewhere_get_nothing(open_server: Server) -> None:
    get = open_server.client.get
    for origin in ("https://evil.example", "null", "http://localhost", "https://chat.example.evil.example"):
        response = get("/v1/models", headers={"Origin": origin})
        is_error(response, 403, "forbidden_origin")
        assert not [name for name in response.headers if name.startswith("access-control")]
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert open_server.client.options("/v1/chat/completions", headers=preflight).status_code == 403
    assert get("/v1/models", headers={"Origin": open_server.url}).status_code == 200  # our own Swagger page


def test_a_configured_origin_is_echoed(locked: Server) -> None:
    headers = {"Origin": "https://chat.example"}
    preflight = httpx.options(
        f"{locked.url}/v1/chat/completions", headers=headers | {"Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for response in (preflight, locked.client.get("/v1/models", headers=headers)):
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        assert response.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in response.headers
    is_error(httpx.get(f"{locked.url}/v1/models", headers=headers), 401)


def test_the_key_is_nowhere_to_be_read(locked: Server) -> None:
    for path in ("/metrics", "/v1/monitor?once=1", "/v1/models", "/openapi.json", "/health"):
        assert KEY not in locked.client.get(path).text


def test_the_pages_work_without_a_network(open_server: Server) -> None:
    page = open_server.client.get("/")
    assert page.text == open_server.client.get("/docs").text
    assert "http" not in page.text.replace("http://www.w3.org", "")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"assets/{name}" in page.text
        assert len(open_server.client.get(f"/assets/{name}").content) > 1000
    assert open_server.client.get("/assets/..%2f__init__.py").status_code == 404
    assert open_server.client.get("/openapi.json").json()["info"]["title"] == "lmtop"


# --- what may be started -----------------------------------------------------------------------------------


def access(monkeypatch: pytest.MonkeyPatch, *flags: str, **environment: str) -> Any:
    for name in list(os.environ):
        if name.startswith(("LMTOP_", "SSL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LMTOP_CONFIG", "/nonexistent/config.toml")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return from_settings(parse(["serve", "demo", *flags]).values)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.7"])
def test_beyond_loopback_a_key_is_needed_or_a_word(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="refusing to listen beyond loopback without an API key"):
        access(monkeypatch, "--server-name", host)
    assert access(monkeypatch, "--server-name", host, "--no-auth").keys == ()
    opened = access(monkeypatch, "--host", host, LMTOP_API_KEYS="a,b")
    assert (opened.keys, opened.local) == (("a", "b"), False)


def test_loopback_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert access(monkeypatch, "--server_name", host).local


@pytest.mark.parametrize("key", ["", " ", "a\nb", "a b", "k,", "ключ"])
def test_an_empty_key_never_means_no_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="an API key is empty"):
        access(monkeypatch, f"--api-keys={key}")


def test_contradictions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        access(monkeypatch, "--no-auth", LMTOP_API_KEYS="a")
    with pytest.raises(UsageError, match="allow-origins"):
        access(monkeypatch, "--allow-origins", "*")
    with pytest.raises(UsageError, match="no such address"):
        access(monkeypatch, "--server-name", "no.such.host.invalid")
    for word in ("gradio", "triton_client", "proxy"):
        with pytest.raises(UsageError, match=f"serve {word}"):
            parse(["serve", word, "x"])


def test_a_key_file_is_ours_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\n\nfirst\n second \n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        keys_of_file(file)
    file.chmod(0o600)
    assert keys_of_file(file) == ("first", "second")
    for text, problem in (("# none\n", "holds no key"), ("a b\n", "an API key is empty"), ("ключ", "ASCII")):
        file.write_text(text)
        with pytest.raises(UsageError, match=problem):
            keys_of_file(file)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=r"cannot read|not a small file"):
            keys_of_file(path)


def test_host_names() -> None:
    good = {"a.example": "a.example", "A.example.:80": "a.example", "[::1]:80": "::1", "1.2.3.4": "1.2.3.4"}
    for header, name in good.items():
        assert host_name(header) == name
    for header in ("", ":80", "a:b", "a/b", "[::1", "[::1]x", "a@b", "a b", "a?x"):
        assert host_name(header) is None, header


# --- TLS ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_by_the_two_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*made.split(), *named], check=True, capture_output=True)
    files = {"SSL_KEYFILE": str(key), "SSL_CERTFILE": str(certificate)}
    assert access(monkeypatch, **files).url(1) == "https://127.0.0.1:1"
    with pytest.raises(UsageError, match="SSL_CERTFILE is not set"):
        access(monkeypatch, SSL_KEYFILE=str(key))
    with pytest.raises(UsageError, match="SSL_KEYFILE is not set"):
        access(monkeypatch, "--ssl")
    with pytest.raises(UsageError, match="cannot be used"):
        access(monkeypatch, SSL_KEYFILE=str(certificate), SSL_CERTFILE=str(certificate))
    with pytest.raises(UsageError, match="cannot be used: No such file"):
        access(monkeypatch, SSL_KEYFILE=str(tmp_path / "no"), SSL_CERTFILE=str(certificate))

    server = Server(ScriptedBackend(), certificate=(str(key), str(certificate)))
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context) as client:
            assert client.get(f"{server.url}/v1/models").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/health")
    finally:
        server.close()
