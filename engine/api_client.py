"""Calling an API server from Python: `client(url)` and `APIClient` with LMDeploy's methods.

An argument that is not given is not sent: the server's own default holds. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from .text import one_line
from .types import RemoteError, UsageError

CONNECT_S = 5.0
IDLE_S = 600.0  # between two pieces of an answer: a long prompt on a slow machine takes minutes
LINE_LIMIT = 16 << 20  # characters of one line of a stream
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class APIClient:
    """One server. Any thread may call it. Every method raises RemoteError with one line: not reachable, not
    authorised, or the server's own words."""

    def __init__(self, api_server_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(api_server_url if "://" in api_server_url else f"http://{api_server_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"api_server_url = {one_line(api_server_url, 80)!r}: must be like http://127.0.0.1:23333"
            )
        self.api_server_url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._http = httpx.Client(
            base_url=self.api_server_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(IDLE_S, connect=CONNECT_S),
            follow_redirects=False,  # the key stays with the server that it was given for
            trust_env=parts.hostname not in LOOPBACK,  # no proxy on the way to this machine
        )

    @property
    def available_models(self) -> list[str]:
        """The names of the server's models."""
        return [model["id"] for model in self._ask("GET", "/v1/models")["data"]]

    def encode(
        self, input: str | list[str], do_preprocess: bool | None = None, add_bos: bool | None = None
    ) -> tuple[Any, Any]:
        """(token ids, their number) of a text; lists of both for a list."""
        answer = self._post("/v1/encode", input=input, do_preprocess=do_preprocess, add_bos=add_bos)
        return answer["input_ids"], answer["length"]

    def chat_completions_v1(
        self, model: str, messages: str | list[dict[str, Any]], stream: bool = False, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """The answer as OpenAI's objects: one, or with `stream` one for each piece. `options` are fields of
        the request (`temperature`, `top_p`, `max_tokens`, `stop`, ...)."""
        return self._objects("/v1/chat/completions", stream, model=model, messages=messages, **options)

    def completions_v1(
        self, model: str, prompt: str | list[Any], stream: bool = False, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """The continuation of a text, as `chat_completions_v1`."""
        return self._objects("/v1/completions", stream, model=model, prompt=prompt, **options)

    def chat_interactive_v1(
        self,
        prompt: str | list[dict[str, Any]],
        session_id: int = -1,
        interactive_mode: bool = False,
        stream: bool = False,
        **options: Any,
    ) -> Iterator[dict[str, Any]]:
        """The answer in a session that the server keeps: objects with text, tokens, input_tokens,
        history_tokens and finish_reason; one, or with `stream` one for each piece."""
        fields = {"prompt": prompt, "session_id": session_id, "interactive_mode": interactive_mode, **options}
        return self._objects("/v1/chat/interactive", stream, **fields)

    def chat(
        self,
        prompt: str,
        session_id: int,
        request_output_len: int | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Iterator[tuple[str, int, str | None]]:
        """(text, tokens, finish_reason) of the answer in session `session_id`; pieces with `stream`."""
        pieces = self.chat_interactive_v1(
            prompt,
            session_id,
            interactive_mode=True,
            stream=stream,
            request_output_len=request_output_len,
            **options,
        )
        for piece in pieces:
            yield piece.get("text") or "", piece["tokens"], piece.get("finish_reason")

    def end_session(self, session_id: int) -> None:
        """Make the server forget a session."""
        for _ in self.chat_interactive_v1("", session_id, request_output_len=0, interactive_mode=False):
            pass

    @property
    def healthy(self) -> bool:
        """Whether the server answers and is ready."""
        try:
            return self._http.get("/health", timeout=CONNECT_S).status_code == 200
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # --- the wire -------------------------------------------------------------------------------------------

    def _post(self, path: str, **fields: Any) -> dict[str, Any]:
        return self._ask("POST", path, {name: value for name, value in fields.items() if value is not None})

    def _objects(self, path: str, stream: bool, **fields: Any) -> Iterator[dict[str, Any]]:
        if not stream:
            yield self._post(path, **fields)
            return
        body = {name: value for name, value in fields.items() if value is not None} | {"stream": True}
        self._require_open()
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refused(response)
                yield from map(_stream_object, _payloads(_lines(response)))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        self._require_open()
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise self._refused(response)
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise RemoteError(
                f"{self.api_server_url}{path}: the answer is not a JSON object; is it an API server?"
            )
        return answer

    def _require_open(self) -> None:
        if self._http.is_closed:
            raise RemoteError(f"{self.api_server_url}: this client is closed")

    def _unreachable(self, error: httpx.HTTPError) -> RemoteError:
        kind = "no answer in time" if isinstance(error, httpx.TimeoutException) else one_line(str(error), 120)
        return RemoteError(f"{self.api_server_url}: cannot be reached: {kind or type(error).__name__}")

    def _refused(self, response: httpx.Response) -> RemoteError:
        try:
            body = response.json()
            inner = body.get("error", body) if isinstance(body, dict) else {}
            words = str(inner.get("message") or "") if isinstance(inner, dict) else str(inner)
        except (ValueError, RecursionError):
            words = ""
        code = response.status_code
        if 300 <= code < 400:
            words = f"redirects to {response.headers.get('location', 'elsewhere')}, which is not followed"
        return RemoteError(f"{self.api_server_url}: {code}: {one_line(words or response.reason_phrase, 300)}")


def _lines(response: httpx.Response) -> Iterator[str]:
    """Lines of a stream, with a bound on their length."""
    rest = ""
    for text in response.iter_text():
        *whole, rest = (rest + text).split("\n")
        yield from whole
        if len(rest) > LINE_LIMIT:
            raise RemoteError(f"the server sent a line of more than {LINE_LIMIT} characters")
    if rest:
        yield rest


def _payloads(lines: Iterator[str]) -> Iterator[str]:
    """What the lines carry: server-sent events, or one object on each line."""
    for line in lines:
        line = line.strip()
        if line.startswith("data:"):
            line = line.removeprefix("data:").strip()
        elif not line.startswith("{"):
            continue  # blank, a comment, or another field of an event
        if line == "[DONE]":
            return
        yield line


def _stream_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RemoteError(f"the server's stream is not JSON: {one_line(text, 60)}")
    if isinstance(error := value.get("error"), dict):
        raise RemoteError(f"the server ended the answer: {one_line(str(error.get('message')), 300)}")
    return value


def client(api_server_url: str = "http://127.0.0.1:23333", api_key: str | None = None) -> APIClient:
    """An `APIClient`; nothing is asked of the server yet."""
    return APIClient(api_server_url, api_key)
