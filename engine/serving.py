"""`lmtop.serve(model)`: an API server in a process of its own, from Python. Imports no torch."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any

from .api_client import APIClient
from .config import EngineConfig
from .messages import ChatTemplateConfig
from .pipeline_settings import BackendConfig, engine_config, warn_once
from .settings import BY_KEY
from .text import one_line
from .types import LmtopError, UsageError

POLL_S = 0.05
ENDING_S = 15.0  # it drains for 5 s
LISTENING = "lmtop: listening on "
# Fields of EngineConfig that are settings of the command by another name, or by none.
OTHER_NAMES = {"cache_bytes": "cache_size"}
NO_SETTING = ("model", "graphs", "max_queue", "force", "step_ms_target")


class _Process:
    """The server's process, whose words are read by a thread so that it never waits for us."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.words: deque[str] = deque(maxlen=50)
        self.url = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lmtop", "serve", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="lmtop-serve", daemon=True)
        self._reader.start()
        atexit.register(self.end)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.words.append(line.rstrip())
                if line.startswith(LISTENING) and not self.url:
                    self.url = line.removeprefix(LISTENING).partition(";")[0].strip()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def failure(self) -> LmtopError:
        """Why it ended: its own last word."""
        self._reader.join(1.0)
        said = next((line for line in reversed(self.words) if "error:" in line), "") or "it said nothing"
        return LmtopError(f"the server ended: {one_line(said.removeprefix('lmtop: error: '), 300)}")

    def end(self) -> None:
        """Let it drain and end; after a while, make it."""
        atexit.unregister(self.end)
        if not self.ended:
            self._process.terminate()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(1.0)


class ServingClient(APIClient):
    """A client of a server that ends with it: at `close`, or when this process ends."""

    def __init__(self, process: _Process, api_key: str | None) -> None:
        super().__init__(process.url, api_key)
        self._process = process

    def close(self) -> None:
        """Close the connections and end the server, which lets open replies end first."""
        super().close()
        self._process.end()


def serve(
    model_path: str | os.PathLike[str],
    model_name: str | None = None,
    backend: str = "turbomind",
    backend_config: BackendConfig | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    server_name: str = "127.0.0.1",
    server_port: int = 23333,
    log_level: str | None = None,
    api_keys: str | list[str] | None = None,
    ssl: bool = False,
) -> ServingClient:
    """Start an API server for `model_path`, wait until it is ready and return a client of it. `server_port` 0
    takes a free one (`api_server_url` of the client tells). It listens beyond this machine only with
    `api_keys`.

    Raises UsageError for what cannot be accepted and LmtopError with the server's own words when it does not
    start. Ctrl-C while it loads ends it.
    """
    if chat_template_config is not None:
        raise UsageError(
            "chat_template_config: a server uses the model's own chat format; use pipeline instead"
        )
    if backend not in ("turbomind", "pytorch"):
        raise UsageError(f"backend = {backend!r}: must be turbomind or pytorch; both are lmtop's engine")
    if log_level is not None:
        warn_once(f"serve: log_level = {log_level!r}: has no effect here")
    keys = [api_keys] if isinstance(api_keys, str) else list(api_keys or ())
    config = engine_config(model_path, backend_config)
    environment = _environment(config, unasked=backend_config is None)
    environment.pop("LMTOP_API_KEYS", None)
    if keys:
        environment["LMTOP_API_KEYS"] = ",".join(keys)  # not an argument: others can see those
    arguments = [config.model, "--server-name", server_name, "--server-port", str(server_port)]
    arguments += ["--model-name", model_name] if model_name else []
    arguments += ["--ssl"] if ssl else []
    process = _Process(arguments, environment)
    client: ServingClient | None = None
    try:
        while client is None or not client.healthy:
            if process.ended:
                raise process.failure()
            if client is None and process.url:
                client = ServingClient(process, keys[0] if keys else None)
            time.sleep(POLL_S)
    except BaseException:
        process.end()
        raise
    return client


def _environment(config: EngineConfig, unasked: bool) -> dict[str, str]:
    """This process's environment with the engine's settings as the variables that the command reads.
    `unasked`: the command's own defaults hold, and what the user's environment and configuration say."""
    environment = dict(os.environ)
    if unasked:
        return environment
    environment.pop("LMTOP_QUANT_POLICY", None)  # another name of one of these
    plain = EngineConfig(config.model)
    for name in EngineConfig.__slots__:
        value: Any = getattr(config, name)
        if name in NO_SETTING or (value == getattr(plain, name) and name != "max_batch_size"):
            continue
        setting = BY_KEY[f"{'models' if name == 'folders' else 'engine'}.{OTHER_NAMES.get(name, name)}"]
        text = os.pathsep.join(value) if isinstance(value, tuple) else str(value)
        environment[setting.env] = text.lower() if isinstance(value, bool) else text
    if not config.graphs:
        environment["LMTOP_EAGER"] = "true"
    return environment
