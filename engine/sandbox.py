"""Jinja for chat templates that strangers wrote: no way out of the sandbox, and a budget for time and text.

Jinja's own sandbox stops attribute escapes, not work: nested loops, a string that doubles, a format width of a
billion. So code generation inserts a call of `spend` into every loop and output, and every operation whose result
can be larger than its operands is checked before it runs. A template that fits the budget renders as it does
anywhere else; the names it may use are those that Hugging Face defines, less what no chat template needs.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from string import Formatter
from typing import Any, NoReturn, cast

from jinja2 import pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS

from .sandbox_code import BudgetedCode, Generation, TemplateNamespace
from .types import TemplateRefused

RENDER_SECONDS = 1.0
OUTPUT_CAP = 4 << 20  # characters of one prompt, and of any string on the way to it
_TEXT_BUDGET = 32 << 20  # characters that one render may produce, intermediate results included
_NODE_CAP = 50_000  # values in a nested list or dict
_APPENDED = 5000  # below this, appending to a list is not followed by a walk through it
_LIST_CAP = 100_000
_WIDTH_CAP = 1000
_INT_BITS = 4096
# A width or precision of four digits and more in a %-format.
_WIDE = re.compile(r"\d{4,}(?:\.\d*)?[hlL]?[a-zA-Z]|\.\d{4,}")

_STR_METHODS = (
    "capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip partition removeprefix "
    "removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title "
    "upper"
)
_FILTERS = (
    "abs attr batch capitalize count d default dictsort e escape first float groupby int items last length lower map "
    "max min reject rejectattr reverse round safe select selectattr slice sort string title trim truncate unique "
    "upper wordcount"
)
_Functions = dict[str, Callable[..., Any]]
_ALLOWED_METHODS = frozenset(_STR_METHODS.split())


class TemplateBroken(TemplateRefused):
    """A template that is no Jinja or went over its budget: for the shortest messages, it always will."""


class _OverBudget(TemplateError):
    pass


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. One render at a time; each gets a fresh budget of text, and of time unless
    the caller sets a deadline."""

    code_generator_class = BudgetedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            optimized=False,  # no work at compile time
            finalize=pass_context(lambda _, value: self.text(value)),  # with a context: never at compile time
        )
        self._lock = threading.RLock()
        self._deadline = 0.0
        self._left = 0
        filters, tests = cast(_Functions, FILTERS), cast(_Functions, TESTS)
        self.filters = {name: self._counted(filters[name]) for name in _FILTERS.split()}
        own = {"join": self._join, "replace": self._replace, "indent": self._indent, "list": self._list}
        own |= {"tojson": self._tojson, "format": self._format, "string": self.text, "sum": self._sum}
        self.filters |= own
        for name in ("batch", "slice"):
            self.filters[name] = self._narrow(self.filters[name])
        self.tests = {name: self._counted(test) for name, test in tests.items()}
        self.globals = {
            "range": self._range,
            "dict": lambda *args, **kwargs: self.measured(dict(*args, **kwargs)),
            "namespace": TemplateNamespace,
            "raise_exception": _raise,
            "strftime_now": lambda form: now().strftime(form[:200]),
        }

    # --- the budget ------------------------------------------------------------------------------------------

    def render(self, source: str, variables: Mapping[str, Any], deadline: float | None = None) -> str:
        """Render, compiling at the first call. `deadline` (monotonic seconds) may be that of several renders.
        Raises TemplateRefused "chat template refused: ..." for any failure, TemplateBroken for those of its own."""
        with self._lock:
            template = self._compiled(source)
            try:
                self._deadline = time.monotonic() + RENDER_SECONDS if deadline is None else deadline
                self._left = _TEXT_BUDGET
                parts: list[str] = []
                total = 0
                for part in template.root_render_func(template.new_context(dict(variables))):
                    total += len(part)
                    if total > OUTPUT_CAP:
                        _refuse(f"its prompt is longer than {OUTPUT_CAP:,} characters")
                    parts.append(part)
                return "".join(parts)
            except RecursionError:
                raise refused("it calls itself without end", TemplateBroken) from None
            except MemoryError:
                raise refused("it takes too much memory", TemplateBroken) from None
            except _OverBudget as error:
                raise refused(str(error), TemplateBroken) from None
            except Exception as error:  # noqa: BLE001 - whatever a template provokes is its own failure
                raise refused(str(error) or type(error).__name__) from None

    def _compiled(self, source: str) -> Any:
        """The template's code; the work is bounded by the size of the source."""
        cached: Any = getattr(self, "_template", None)
        if cached is None or cached[0] != source:
            try:
                cached = (source, self.from_string(source))
            except Exception as error:  # noqa: BLE001 - also RecursionError and MemoryError
                reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise refused(reason or type(error).__name__, TemplateBroken) from None
            self._template = cached
        return cached[1]

    def spend(self, characters: int) -> None:
        """One step of a template that produced so many characters."""
        self._left -= characters
        if self._left < 0:
            _refuse("it produces too much text")
        if time.monotonic() > self._deadline:
            _refuse(f"it takes longer than {RENDER_SECONDS:g} s")

    def ticked(self, value: Any) -> Any:
        self.spend(0)
        return value

    def fits(self, size: int) -> None:
        """Refuse a result of `size` characters or items before it is made."""
        self.spend(0)
        if size > OUTPUT_CAP:
            _refuse("it makes a text of more than 4 MiB")

    def measured(self, value: Any) -> Any:
        """`value`, whose text is charged and whose nesting is bounded: lists that contain one list twice, and so
        on, are small in memory and endless to walk."""
        if isinstance(value, str):
            self.spend(len(value))
            return value
        count, size, stack = 0, 0, [value]
        while stack:
            item = stack.pop()
            inner: Iterable[Any] = ()
            if isinstance(item, dict):
                inner = [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                inner = item
            elif isinstance(item, str):
                size += len(item)
            stack.extend(inner)
            count += 1
            if count + len(stack) > _NODE_CAP:
                _refuse("it builds a list or dict that is too large")
        self.fits(size)
        self.spend(8 * count)
        return value

    def charged(self, value: Any) -> Any:
        """A new string or list, charged by its length."""
        self.spend(len(value) if isinstance(value, str | list | tuple) else 1)
        return value

    def text(self, value: Any) -> str:
        """`value` as a template prints it."""
        if isinstance(value, str | Undefined | int | float | None):
            result = str(value)
        else:
            result = str(self.measured(value))
        self.fits(len(result))
        self.spend(len(result))
        return result

    def concatenated(self, parts: Iterable[Any]) -> str:
        texts = [self.text(part) for part in parts]
        self.fits(sum(map(len, texts)))
        return "".join(texts)

    # --- what Jinja's code calls -------------------------------------------------------------------------------

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} is not allowed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return self._format(left, *(right if isinstance(right, tuple) else (right,)))
        if isinstance(left, int) and isinstance(right, int):
            self._check_ints(operator, left, right)
        elif operator == "*":
            value, times = (left, right) if isinstance(right, int) else (right, left)
            if isinstance(times, int) and hasattr(value, "__len__"):
                self.fits(len(value) * max(times, 0))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.fits(len(left) + len(right))
        result = self.binop_table[operator](left, right)
        many = isinstance(result, list | tuple) and (operator == "*" or len(result) > _APPENDED)
        return self.measured(result) if many else self.charged(result)

    def _check_ints(self, operator: str, left: int, right: int) -> None:
        bits = (
            left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        )
        if bits > _INT_BITS:
            _refuse("it computes with huge numbers")

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            args = self._check_method(owner, name, args)
        elif isinstance(owner, int | float | bytes):
            raise SecurityError(f"access to {name!r} is not allowed")
        return self.charged(super().call(context, obj, *args, **kwargs))

    def _check_method(self, owner: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if name not in _ALLOWED_METHODS:
            raise SecurityError(f"access to {name!r} is not allowed")
        if name == "replace" and len(args) >= 2:
            self._check_replace(owner, args[0], args[1])
        elif name == "join" and args:
            items = self._list(args[0])
            self.fits(sum(len(item) for item in items if isinstance(item, str)) + len(owner) * len(items))
            args = (items,)
        elif name in ("split", "rsplit", "splitlines"):
            mark = args[0] if args and isinstance(args[0], str) and name != "splitlines" else None
            pieces = owner.count(mark) if mark else owner.count("\n") + owner.count("\r")
            if mark is None and name != "splitlines":
                pieces += owner.count(" ") + owner.count("\t")
            if pieces > _LIST_CAP:
                _refuse("it splits a text into too many pieces")
        elif name in ("format", "format_map"):
            specs = (spec or "" for _, _, spec, _ in Formatter().parse(owner))
            if any("{" in spec or re.search(r"\d{4}", spec) for spec in specs):
                _refuse("it formats with a huge width")
        return args

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja replaces str.format by a sandboxed function; `call` must still see whose method it is."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        formatter, owner = wrapped, value.__self__

        @wraps(formatter)
        def checked(*args: Any, **kwargs: Any) -> str:
            self._check_method(owner, value.__name__, ())
            self.fits(owner.count("{") * sum(len(self.text(arg)) for arg in (*args, *kwargs.values())))
            return formatter(*args, **kwargs)

        return checked

    # --- filters and globals -----------------------------------------------------------------------------------

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps Jinja's mark of which argument (context, environment) the function wants
        def counted(*args: Any, **kwargs: Any) -> Any:
            return self.charged(function(*args, **kwargs))

        return counted

    def _narrow(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def narrow(value: Any, size: int, fill: Any = None) -> Any:
            if size > _WIDTH_CAP:
                _refuse("it splits into too many parts")
            return function(value, size, fill)

        return narrow

    def _range(self, *bounds: int) -> range:
        result = range(*bounds)
        if len(result) > _LIST_CAP:
            _refuse(f"range of more than {_LIST_CAP:,}")
        return result

    def _list(self, value: Iterable[Any]) -> list[Any]:
        result: list[Any] = []
        for item in value:
            self.spend(1)
            result.append(item)
        return list(self.measured(result))

    @pass_context
    def _join(self, context: Context, value: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = self.call_filter("map", value, kwargs={"attribute": attribute}, context=context)
        mark, texts, size = self.text(d), list[str](), 0
        for item in value:
            texts.append(self.text(item))
            size += len(texts[-1]) + len(mark)
            self.fits(size)
        return mark.join(texts)

    def _sum(self, value: Iterable[Any], attribute: str | None = None, start: Any = 0) -> Any:
        total = start
        for item in value:
            number = item if attribute is None else self.getitem(item, attribute)
            if not isinstance(number, int | float):
                _refuse("it sums what is not a number")
            self.spend(0)
            total += number
        return total

    def _check_replace(self, text: Any, old: Any, new: Any) -> None:
        if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
            self.fits(len(text) + text.count(old) * len(new))

    def _replace(self, value: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = self.text(value), self.text(old), self.text(new)
        self._check_replace(text, old, new)
        return text.replace(old, new, count if count is not None else -1)

    @pass_context
    def _indent(
        self, context: Context, s: Any, width: Any = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self.text(s)
        self.fits(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
        return str(self.charged(FILTERS["indent"](text, width, first, blank)))

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        form = self.text(value)
        star = "*" in form and any(isinstance(arg, int) and abs(arg) > _WIDTH_CAP for arg in args)
        if star or _WIDE.search(form):
            _refuse("it formats with a huge width")
        size = sum(len(self.text(arg)) for arg in (*args, *kwargs.values()))
        self.fits(len(form) + form.count("%") * size)
        if kwargs and args:
            raise TemplateError("format takes positional or named values, not both")
        return form % (kwargs or args)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and (not isinstance(indent, int) or indent > 64):
            _refuse("tojson with a huge indent")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        parts, size = list[str](), 0
        for part in encoder.iterencode(self.measured(value)):
            parts.append(part)
            size += len(part)
            self.fits(size)
        return "".join(parts)


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _refuse(reason: str) -> NoReturn:
    raise _OverBudget(reason)


def refused(reason: str, kind: type[TemplateRefused] = TemplateRefused) -> TemplateRefused:
    """The one form of a template's failure."""
    return kind(f"chat template refused: {' '.join(reason.split())[:300]}")
