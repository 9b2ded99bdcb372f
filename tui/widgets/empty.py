"""What an empty transcript shows: how to begin."""

from __future__ import annotations

from rich.cells import cell_len

from ..commands import BY_ID
from ..keys import key_label
from ..render.lines import Row, row_width

_KEYS = (
    ("model.load", "load another model"),
    ("session.new", "another session"),
    ("sampling.open", "sampling"),
    ("gauges.toggle", "gauges"),
    ("help.open", "all keys"),
)


def empty_rows(width: int, height: int) -> list[Row]:
    """At most `height` rows, in the middle of them; none where there is no room."""
    told = [("enter", "send what you typed"), ("/", "commands")]
    told += [(key_label(BY_ID[command].keys[0]), text) for command, text in _KEYS]
    column = max(cell_len(key) for key, _ in told)
    body: list[Row] = [[("Ask something.", "strong")], []]
    body += [[(f"{key:>{column}}", "code"), (f"  {text}", "meta")] for key, text in told]
    wide = max(map(row_width, body))
    if height < len(body) or width < wide:
        return []
    margin = (" " * ((width - wide) // 2), "text")
    return [[]] * ((height - len(body)) // 2) + [[margin, *row] for row in body]
