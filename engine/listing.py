"""`lmtop list`: the models found on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import settings
from .answer import say
from .config import DTYPE_SHORT
from .models import Found, discover, missing
from .spec import ModelFiles
from .text import one_line

if TYPE_CHECKING:
    from .arguments import Options

NAME_LIMIT = 4096  # a path: cut, it could not be copied into a command


def run_list(options: Options) -> int:
    """Print a table, or with --json one document. Models that cannot be loaded are listed with the reason."""
    found = discover(options.values["folders"])
    for folder in missing(options.values["folders"]):
        say(f"models.folders: {folder}: no such directory")
    if options.values["json"]:
        print(json.dumps([_record(item) for item in found], indent=1))
        return 0
    rows = [("NAME", "FAMILY", "SIZE", "WEIGHTS", "CONTEXT", "SOURCE"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]
            ).rstrip()
        )
    if len(found) == 1:
        print(
            "\nOnly the built-in model. Name any Hugging Face model directory (`lmtop chat DIR`), a hub id\n"
            f'(`lmtop chat owner/name`), or list folders in {settings.config_path()}: [models] folders = ["..."]'
        )
    return 0


def _row(item: Found) -> tuple[str, ...]:
    name = one_line(item.name, NAME_LIMIT)
    files = item.files
    if files is None:
        return name, "-", "-", "-", "-", f"{item.source}; cannot be loaded: {one_line(item.problem)}"
    size, context = parameters(files.parameters), f"{files.spec.max_position}"
    return name, files.family, size, stored_as(files), context, item.source


def _record(item: Found) -> dict[str, object]:
    record: dict[str, object] = {"name": item.name, "path": str(item.path), "source": item.source}
    if item.files is None:
        return {**record, "problem": item.problem}
    return {
        **record,
        "family": item.files.family,
        "parameters": item.files.parameters,
        "weights": stored_as(item.files),
        "context": item.files.spec.max_position,
    }


def stored_as(files: ModelFiles) -> str:
    """What the weights are in the files: "bf16", "AWQ int4 g128"."""
    return files.quantised or DTYPE_SHORT.get(files.dtype, files.dtype)


def parameters(count: int) -> str:
    """A parameter count as people say it: 260k, 7.5M, 8.0B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return str(count)
