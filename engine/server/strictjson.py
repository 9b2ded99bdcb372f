"""JSON as the standard has it, no more: what Python's reader lets pass beyond it is refused, with a clear word.

`json.loads` alone takes NaN, Infinity, 1e999, duplicate keys, UTF-16 and lone surrogates, and raises RecursionError
and plain ValueError as well as its own error.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from .errors import BadRequest, shown
from .limits import DEPTH_LIMIT


def parse(body: bytes) -> Any:
    """The value of `body`, UTF-8 text. BadRequest with one of the codes invalid_json, too_deep, invalid_unicode."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8 at byte {error.start}", code="invalid_json") from None
    if not text.strip():
        raise BadRequest("the body is empty; a JSON object is expected", code="invalid_json")
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_float=_float, object_pairs_hook=_object, parse_int=_int
        )
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not valid JSON: line {error.lineno} column {error.colno}", code="invalid_json"
        ) from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        _check_text(value)
    return value


def _constant(name: str) -> NoReturn:
    raise BadRequest(f"the body is not valid JSON: {name} is no JSON number", code="invalid_json")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadRequest(f"the body has a number that is too large: {shown(text, 24)}", code="invalid_json")
    return value


def _int(text: str) -> int:
    if len(text) > 40:  # 128 bits; int() itself takes a time that grows with the square
        raise BadRequest(f"the body has an integer of {len(text)} digits", code="invalid_json")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise BadRequest(f"the body has the key {shown(twice)} twice", code="invalid_json")
    return made


def _too_deep() -> BadRequest:
    return BadRequest(f"the body is nested deeper than {DEPTH_LIMIT} levels", code="too_deep")


def _check_depth(value: Any) -> None:
    level: list[Any] = [value] if isinstance(value, (dict, list)) else []
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT:
            raise _too_deep()
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]


def _check_text(value: Any) -> None:
    """Refuse halves of a surrogate pair: no UTF-8 text, database or terminal can hold them."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                raise BadRequest(
                    "the body has half of a surrogate pair, which is no character", code="invalid_unicode"
                ) from None
