"""How each model was loaded last from the dialog, kept for the next time: one small JSON file in the user's
data folder."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import platformdirs

from .plans import DTYPES, KVS, WEIGHTS, Fields

LIMIT = 200  # models; those not loaded for longest are forgotten
FILE_LIMIT = 1 << 20
TEXT_LIMIT = 40  # characters of a field
CHOICES = {"dtype": DTYPES, "weights": WEIGHTS, "kv": KVS}


def default_path() -> Path:
    """`presets.json` in the user's data folder."""
    return Path(platformdirs.user_data_dir("lmtop")) / "presets.json"


class Presets:
    """The dialog's fields by model. `path` None keeps nothing. A file that cannot be read counts as empty,
    one that cannot be written is left as it is: a preset is a convenience."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def get(self, model: str) -> Fields | None:
        """The fields that `model` was loaded with."""
        return _fields(self._read().get(model))

    def keep(self, model: str, chosen: Fields) -> None:
        """Remember `chosen` for `model`: the whole file is replaced at once, or not at all."""
        if self._path is None:
            return
        known = self._read()
        known.pop(model, None)
        known[model] = asdict(chosen)
        while len(known) > LIMIT:
            del known[next(iter(known))]
        with suppress(OSError):
            _replace(self._path, json.dumps(known, ensure_ascii=False, indent=1))

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            with self._path.open(encoding="utf-8") as file:
                known = json.loads(file.read(FILE_LIMIT))
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}


def _fields(value: Any) -> Fields | None:
    """What was kept, if the dialog can show it."""
    names = [item.name for item in fields(Fields)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        return None
    if not all(isinstance(text, str) and len(text) <= TEXT_LIMIT for text in value.values()):
        return None
    if any(value[name] not in allowed for name, allowed in CHOICES.items()):
        return None
    return Fields(**value)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
