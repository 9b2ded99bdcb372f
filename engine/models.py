"""Which models there are on this machine, and where a model that was named lies.

No torch. A model is a directory in Hugging Face layout; `demo` is the one that comes with lmtop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .spec import ModelFiles, read_spec
from .text import one_line
from .types import ModelError

DEMO = "demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DEMO_MISSING = "the built-in model is missing from this installation; install lmtop again"
DEPTH = 3  # folder/owner/name/config.json


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine. `name` loads it; `files` is None when it cannot, and `problem` says why."""

    name: str
    path: Path
    source: str  # "built in" | "hub cache" | "folder"
    files: ModelFiles | None
    problem: str = ""


def demo_path() -> Path:
    """The directory of the built-in model."""
    return Path(__file__).with_name("demo") / "model"


def hub_cache() -> Path:
    """Where Hugging Face's tools keep downloads: `HF_HUB_CACHE`, else under `HF_HOME`, else in the user's cache."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")  # noqa: PTH118
    return _expanded(named or os.path.join(home, "hub"))  # noqa: PTH118


def _expanded(text: str) -> Path:
    """`text` as a path, with ~ and $NAME replaced where they mean something (`Path.expanduser` raises else)."""
    return Path(os.path.expandvars(os.path.expanduser(text)))  # noqa: PTH111


def discover(folders: Iterable[str] = ()) -> list[Found]:
    """Every model that can be named: the built-in one, the hub cache's, and those below `folders`."""
    found = [_look(DEMO, demo_path(), "built in")]
    for name, snapshots in _cached():
        looks = [_look(name, path, "hub cache") for path in snapshots if _exists(path / "config.json")]
        if looks:
            found.append(next((look for look in looks if look.files), looks[0]))
    for folder in folders:
        for path in sorted(_directories(_expanded(folder), DEPTH)):
            found.append(_look(str(path), path, "folder"))
    return found


def missing(folders: Iterable[str]) -> list[str]:
    """Those of the configured `folders` that are no directory."""
    return [folder for folder in folders if not os.path.isdir(_expanded(folder))]  # noqa: PTH112


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; never raises, as `Path.exists` does for names too long to exist."""
    return os.path.exists(path)  # noqa: PTH110


def _look(name: str, path: Path, source: str) -> Found:
    if name == DEMO and not path.exists():
        return Found(name, path, source, None, DEMO_MISSING)
    try:
        return Found(name, path, source, read_spec(path))
    except ModelError as error:
        return Found(name, path, source, None, str(error))


def _cached() -> Iterator[tuple[str, list[Path]]]:
    """(hub id, its snapshots) of each cached repository; the snapshot its `main` names first, then the newest."""
    try:
        entries = sorted(hub_cache().glob("models--*"))
    except OSError:
        return
    for entry in entries:
        with suppress(OSError):
            by_age = sorted((entry / "snapshots").iterdir(), key=lambda path: -path.lstat().st_mtime)
            main = _main_revision(entry)
            snapshots = sorted(filter(Path.is_dir, by_age), key=lambda path: path.name != main)
            yield entry.name.removeprefix("models--").replace("--", "/", 1), snapshots


def _main_revision(entry: Path) -> str:
    try:
        return (entry / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _directories(root: Path, depth: int) -> Iterator[Path]:
    try:
        if (root / "config.json").is_file():
            yield root
            return
        children = [child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")]
    except (OSError, ValueError):  # a NUL in a name from config.toml is a ValueError
        return
    if depth > 0:
        for child in children:
            yield from _directories(child, depth - 1)


def locate(
    model: str,
    progress: Callable[[float, str], None] = lambda share, text: None,
    cancelled: Callable[[], bool] = lambda: False,
    folders: Iterable[str] = (),
) -> Path:
    """The directory of `model`: `demo`, a path, a name below one of `folders`, or a hub id, which is downloaded
    when it is not in the cache. ModelError or RemoteError say what is missing."""
    if not model.strip():
        raise ModelError("no model named; `lmtop list` shows the models found, `demo` is built in")
    if model == DEMO:
        if not demo_path().exists():
            raise ModelError(f"{DEMO}: {DEMO_MISSING}")
        return demo_path()
    for candidate in (_expanded(model), *(_expanded(folder) / model for folder in folders)):
        if _exists(candidate):
            return candidate
    if HUB_ID.fullmatch(model) is None:
        raise ModelError(f"{one_line(model)}: no such model directory; `lmtop list` shows the models found")
    for name, snapshots in _cached():
        if name == model and (complete := next(filter(_complete, snapshots), None)):
            return complete
    from . import hub

    return hub.download(model, progress, cancelled)


def _complete(snapshot: Path) -> bool:
    try:
        read_spec(snapshot)
    except ModelError:
        return False
    return True


def display_name(model: str, directory: Path) -> str:
    """A short name for titles: the hub id's or the directory's last part."""
    name = Path(model).name
    return one_line(directory.resolve().name if name in ("", "..") else name, 60)
