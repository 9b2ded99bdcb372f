"""Colour themes: one TOML file each, the built-in ones here, a user's own in `themes/` of the configuration
directory. A file of the user's with a built-in name replaces it.

    dark = true                # which side the derived shades lean to
    ansi = false               # true: colours are the terminal's own 16, e.g. "ansi_blue"
    [colors]                   # primary is required, the rest follow from it
    primary = "#7aa2f7"        # secondary, warning, error, success, accent, foreground, background, surface, panel, boost
    [variables]                # optional: any variable of Textual's design system
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
import tomli
from textual.color import Color, ColorParseError
from textual.theme import Theme

from ..engine.text import one_line
from ..engine.types import UsageError

COLORS = (
    "primary",
    "secondary",
    "warning",
    "error",
    "success",
    "accent",
    "foreground",
    "background",
    "surface",
    "panel",
    "boost",
)
DEFAULT = "dark"
LIMIT = 64 << 10
NAME = re.compile(r"\w[\w.-]{0,39}")


def folder() -> Path:
    """Where a user's own themes lie."""
    return Path(platformdirs.user_config_dir("lmtop")) / "themes"


def names() -> list[str]:
    """Built-in and user themes, sorted, `dark` and `light` first. Files whose name cannot be typed are passed over."""
    built_in = {
        file.name.removesuffix(".toml") for file in files(__name__).iterdir() if file.name.endswith(".toml")
    }
    try:
        own = {file.stem for file in folder().glob("*.toml") if NAME.fullmatch(file.stem)}
    except OSError:
        own = set()
    return sorted(built_in | own, key=lambda name: ({"dark": 0, "light": 1}.get(name, 2), name))


def load(name: str) -> Theme:
    """The theme `name`. UsageError names the file and the key that is wrong, or the themes that exist."""
    own = folder() / f"{name}.toml"
    named = NAME.fullmatch(name) is not None
    place = own if named and own.is_file() else files(__name__) / f"{name}.toml"
    if not named or not place.is_file():
        raise UsageError(f"theme {one_line(name, 40)!r}: not found; there are {', '.join(names())}")
    where = one_line(str(own), 120) if place == own else f"theme {name}"
    try:
        data = place.read_bytes()
        if len(data) > LIMIT:
            raise UsageError(f"{where}: larger than {LIMIT >> 10} KiB")
        document = tomli.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not valid UTF-8 at byte {error.start}") from None
    except (tomli.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {one_line(str(error), 120)}") from None
    except OSError as error:
        raise UsageError(f"{where}: cannot read: {error.strerror}") from None
    return _theme(name, document, where)


def _theme(name: str, document: Mapping[str, Any], where: str) -> Theme:
    unknown = set(document) - {"dark", "ansi", "colors", "variables"}
    if unknown:
        raise UsageError(
            f"{where}: unknown key {min(unknown)!r}; there are dark, ansi, [colors] and [variables]"
        )
    dark, ansi = document.get("dark", True), document.get("ansi", False)
    if not isinstance(dark, bool) or not isinstance(ansi, bool):
        raise UsageError(f"{where}: dark and ansi must be true or false")
    colors = _table(document, "colors", where)
    if "primary" not in colors:
        raise UsageError(f"{where}: [colors] needs at least primary")
    for key, value in colors.items():
        if key not in COLORS:
            raise UsageError(f"{where}: unknown colour {key!r}; there are {', '.join(COLORS)}")
        _check_color(value, f"{where}: {key}")
    return Theme(
        name=f"lmtop-{name}",
        dark=dark,
        ansi=ansi,
        variables=_table(document, "variables", where),
        **colors,  # type: ignore[arg-type]
    )


def _table(document: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    table = document.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise UsageError(f"{where}: [{key}] must be a table of texts")
    return dict(table)


def _check_color(value: str, where: str) -> None:
    try:
        Color.parse(value)
    except ColorParseError:
        raise UsageError(
            f"{where} = {one_line(value, 30)!r}: must be a colour such as '#7aa2f7', 'teal' or 'ansi_blue'"
        ) from None
