"""Downloads from the Hugging Face hub, through huggingface_hub: with progress, and cancellable.

The access token, where there is one, goes to the hub's own host only: huggingface_hub drops it where a file is
redirected to another host (its storage), and the test of this module watches that.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .models import hub_cache
from .text import one_line
from .types import Cancelled, DeviceError, LmtopError, ModelError, RemoteError

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
UNWANTED = ("*/*", "*.bin.index.json", "consolidated*", "*.gguf")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ANSWER_S = 5.0
CHUNK = 256 << 10  # the library's 10 MiB would hold up progress and cancelling on a slow line

Progress = Callable[[float, str], None]


def download(model: str, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    """Fetch hub id `model` into the hub cache and return its directory. Files that came whole are kept, so a
    cancelled or broken download goes on with the file it ended in. Raises RemoteError (no way to the hub),
    ModelError (no such model, or none that can be loaded), DeviceError (disk too small) or Cancelled."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault(
        "HF_HUB_DISABLE_XET", "1"
    )  # its transfers run outside Python: they cannot be cancelled
    from huggingface_hub import HfApi, constants, hf_hub_download

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it would write over the screen
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        progress(0.0, f"asking the hub for {model}")
        info = HfApi(endpoint=endpoint).model_info(model, files_metadata=True, timeout=ANSWER_S)
        files = _wanted(model, info)
        _require_space(model, sum(files.values()))
        meter = _meter_class(model, sum(files.values()), progress, cancelled)
        directory = Path()
        for name in _order(files):
            got = hf_hub_download(
                model,
                name,
                revision=info.sha,
                endpoint=endpoint,
                cache_dir=hub_cache(),
                tqdm_class=meter,
            )
            meter.done(files[name])
            directory = Path(got).parent
        return directory
    except (LmtopError, Cancelled):
        raise
    except Exception as error:  # noqa: BLE001 - httpx, OS and hub errors alike mean: no download
        if cancelled():
            raise Cancelled from None
        raise _explained(model, endpoint, error) from None


def _wanted(model: str, info: Any) -> dict[str, int]:
    """Size in bytes by name of the files worth fetching; ModelError when there are no weights among them."""

    def matches(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    names = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    files = {
        name: size for name, size in names.items() if matches(name, WANTED) and not matches(name, UNWANTED)
    }
    if any(name.endswith(".safetensors") for name in files):
        return files
    if any(matches(name, PICKLES) for name in names):
        raise ModelError(
            f"{model}: pickle weights are not supported; convert to safetensors, or choose another repository"
        )
    raise ModelError(f"{model}: has no safetensors weights; choose another repository")


def _order(files: dict[str, int]) -> list[str]:
    """Weights last, so that a directory with all of them is whole; small files first, so that a configuration
    that cannot be loaded is known before gigabytes have come."""
    return sorted(files, key=lambda name: (name.endswith(".safetensors"), files[name], name))


def _require_space(model: str, total: int) -> None:
    """DeviceError unless what the cache does not have yet fits on its disk."""
    cache = hub_cache()
    have = sum(
        path.stat().st_size for path in (cache / f"models--{model.replace('/', '--')}/blobs").glob("*")
    )
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if total - have > free:
        raise DeviceError(
            f"{model}: needs {_gib(total - have)} on disk, {_gib(free)} are free in {one_line(str(disk))}; "
            "make room, or set HF_HOME to a folder on another disk"
        )


def _explained(model: str, endpoint: str, error: Exception) -> LmtopError:
    """What went wrong, as one line with the way out."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the library wraps what happened in advice of its own
    if isinstance(error, HfHubHTTPError):
        return _refused(model, error)
    nowhere = f"{model}: no such model here"
    if isinstance(error, HFValidationError):
        return ModelError(f"{nowhere}, and not a name that the hub could know")
    if isinstance(error, OfflineModeIsEnabled):
        return RemoteError(
            f"{nowhere}, and HF_HUB_OFFLINE forbids asking the hub; unset it, or name a directory"
        )
    parts = urlsplit(endpoint)
    host = one_line(
        f"{parts.hostname or endpoint}:{parts.port}" if parts.port else parts.hostname or endpoint, 80
    )
    kind = type(error).__name__
    if isinstance(error, (ValueError, TypeError, KeyError)):
        return RemoteError(
            f"{nowhere}, and {host} does not answer as a Hugging Face hub does; check HF_ENDPOINT"
        )
    reason = one_line(str(error), 120).split("] ", 1)[-1] or kind
    if "Timeout" in kind:
        reason = "no answer in time"
    if "Connect" in kind:
        return RemoteError(
            f"{nowhere}, and cannot connect to {host}: {reason}; check the network, or name a directory"
        )
    return RemoteError(
        f"cannot download {model} from {host}: {reason}; what has come whole is kept, try again"
    )


def _refused(model: str, error: Any) -> LmtopError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):  # the hub says 401 for what does not exist, too
        return RemoteError(
            f"{model}: the hub refuses access (HTTP {status}): it is private, needs its terms accepted, or does "
            "not exist; check the name, then log in with `hf auth login` or set HF_TOKEN"
        )
    if status == 404:
        return ModelError(
            f"{model}: no such model here or on the hub; `lmtop list` shows the models found here"
        )
    return RemoteError(f"{model}: the hub answered HTTP {status}; try again later")


def _meter_class(model: str, total: int, progress: Progress, cancelled: Callable[[], bool]) -> Any:
    """A tqdm class, as huggingface_hub wants it, that draws nothing and reports bytes to `progress`."""
    from tqdm.auto import tqdm

    state = {"before": 0, "current": 0}

    class Meter(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            state["current"] = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            if cancelled():
                raise Cancelled
            state["current"] += int(n or 0)
            tell()

        @staticmethod
        def done(size: int) -> None:
            state["before"] += size
            state["current"] = 0
            if cancelled():
                raise Cancelled
            tell()

    def tell() -> None:
        have = min(total, state["before"] + state["current"])
        progress(have / max(total, 1), f"downloading {model}: {_gib(have)} of {_gib(total)}")

    return Meter


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
