"""What the load dialog shows: the models found, and what each policy would need. Pure, but for `survey`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..engine.config import (
    DTYPE_SHORT,
    WEIGHT_FORMATS,
    DeviceInfo,
    EngineConfig,
    ModelSizes,
    Plan,
    resolve,
)
from ..engine.listing import parameters
from ..engine.models import HUB_ID, Found, discover, missing
from ..engine.settings import size
from ..engine.text import one_line
from ..engine.types import LmtopError, UsageError
from ..quant.kv import KV_FORMATS
from .render.bars import stacked
from .render.format import size as size_text
from .render.format import tokens
from .render.glyphs import Glyphs
from .render.lines import Row, clip, wrap_text
from .render.rows import left, right

DTYPES = ("auto", "float32", "bfloat16", "float16")
WEIGHTS = ("auto", *WEIGHT_FORMATS)
KVS = ("auto", *KV_FORMATS)
TABLE = 8  # rows of a prediction
POLICY_4 = "KV int4 is --quant-policy 4; until LMDeploy 0.4 that number meant int8"
NAME = 10  # cells of a policy's name


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to choose from. `sizes` by model name; `device` is None, and `problem` says why, where
    the wanted one cannot be used."""

    models: Sequence[Found] = ()
    sizes: Mapping[str, ModelSizes] = field(default_factory=dict)
    device: DeviceInfo | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Typed:
    """A directory or hub id as typed."""

    name: str

    @property
    def what(self) -> str:
        return "fetch from the hub" if HUB_ID.fullmatch(self.name) else "open this directory"


Item = Found | Typed


def survey(config: EngineConfig, reclaim: int = 0) -> Survey:
    """Look at the disk and at the device: the models that can be loaded first, `demo` at the top. Slow. `reclaim`:
    bytes that a loaded model will give back."""
    from ..engine.devices import device_info
    from ..engine.loader import sizes_of

    models = sorted(discover(config.folders), key=lambda found: found.files is None)
    sizes = {found.name: sizes_of(found.files) for found in models if found.files is not None}
    absent = missing(config.folders)
    problem = f"no such directory: {', '.join(one_line(folder) for folder in absent)}" if absent else ""
    try:
        device = device_info(config.device, reclaim)
        return Survey(models, sizes, device, problem or device.notice)
    except LmtopError as error:
        return Survey(models, sizes, None, str(error))


def matching(models: Sequence[Found], query: str) -> list[Item]:
    """The models whose name holds every word of `query`, any case; and `query` itself where it may name one that
    is not in the list."""
    words = query.lower().split()
    found: list[Item] = [found for found in models if all(word in found.name.lower() for word in words)]
    path = query.startswith(("/", "~", ".", "$"))
    if query and all(item.name != query for item in found) and (path or HUB_ID.fullmatch(query) or not found):
        found.append(Typed(query))
    return found


# --- fields ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fields:
    """The dialog's fields as typed. Empty means: as the program chooses."""

    dtype: str
    weights: str
    kv: str
    context: str
    slots: str
    cache: str

    @classmethod
    def of(cls, config: EngineConfig) -> Fields:
        """The fields that describe `config`."""
        cache = f"{config.cache_bytes / 2**30:g}GiB" if config.cache_bytes else ""
        return cls(
            dtype=config.dtype,
            weights=config.weights,
            kv=config.kv,
            context=str(config.session_len or ""),
            slots=str(config.max_batch_size),
            cache=cache,
        )

    def apply(self, base: EngineConfig, model: str, force: bool = False) -> EngineConfig:
        """The intent they describe. UsageError names a field that cannot be read."""
        context = _integer("context", self.context, 16)
        slots = _integer("slots", self.slots, 1, 512)
        text = self.cache.strip()
        try:
            cache = size(text) if text else None
        except ValueError:
            raise UsageError(f"KV cache = {one_line(text, 20)!r}: must be a size such as 2GiB") from None
        return replace(
            base,
            model=model,
            dtype=self.dtype,
            weights=self.weights,
            kv=self.kv,
            session_len=context,
            max_batch_size=slots or base.max_batch_size,
            cache_bytes=cache,
            cache_max_entry_count=base.cache_max_entry_count if cache is None else None,
            force=force,
        )


def _integer(name: str, text: str, low: int, high: int | None = None) -> int | None:
    """A whole number, or None where nothing was typed; "32k" is 32 * 1024."""
    digits = text.strip().replace(",", "").replace("_", "").lower()
    if not digits:
        return None
    factor = 1024 if digits.endswith("k") else 1
    try:
        value = int(digits.removesuffix("k")) * factor
    except ValueError:
        raise UsageError(f"{name} = {one_line(text, 20)!r}: must be a whole number") from None
    if value < low or (high is not None and value > high):
        limits = f"from {low} to {high}" if high is not None else f"at least {low}"
        raise UsageError(f"{name} = {one_line(text, 20)}: must be {limits}")
    return value


# --- rows --------------------------------------------------------------------------------------------------


def item_row(item: Item, width: int, glyphs: Glyphs) -> Row:
    """One line of the list: name, parameters, family, context and where it lies; or why it cannot be loaded."""
    if isinstance(item, Typed):
        name = _tail(item.name, width - len(item.what) - 2, glyphs)
        return [(f"{name}  ", "value"), (item.what, "label")]
    if item.files is None:
        reason = one_line(item.problem).removeprefix(f"{one_line(item.name)}: ")
        name = _tail(item.name, max(16, width // 2), glyphs)
        return [
            (f"{name}  ", "dim"),
            (clip(glyphs.plain(reason), width - len(name) - 2, glyphs.ellipsis), "dim"),
        ]
    files = item.files
    cells = max(16, width - 42)
    figures = (
        f" {parameters(files.parameters):>7}  {left(one_line(files.family), 12, glyphs)}"
        f"{tokens(files.spec.max_position):>6}  {left(item.source, 10, glyphs)}"
    )
    return [(left(_tail(item.name, cells, glyphs), cells, glyphs), "value"), (figures, "label")]


def _tail(name: str, width: int, glyphs: Glyphs) -> str:
    """A name in at most `width` cells; of a path that is too long, its end."""
    name = glyphs.plain(one_line(name, 4096))
    if len(name) <= width or "/" not in name:
        return clip(name, width, glyphs.ellipsis)
    return clip(glyphs.ellipsis + name[-(width - 1) :], width, glyphs.ellipsis)


def prediction(
    config: EngineConfig, sizes: ModelSizes, device: DeviceInfo, width: int, glyphs: Glyphs
) -> tuple[Plan, list[Row]]:
    """The plan, and `TABLE` rows: each policy's needs, the chosen one marked, what does not fit in red, and
    a bar.

    Raises UsageError when the intent cannot be planned.
    """
    chosen = resolve(config, sizes, device)
    names = ("weights", "KV/token", "KV holds", "workspace", "in all")
    memory = "VRAM" if device.kind == "cuda" else "RAM"
    rows: list[Row] = [
        [(f"  {memory:<{NAME}}" + "".join(right(name, 10, glyphs) for name in names), "label")]
    ]
    for policy in _policies(chosen, device):
        dtype, weights, kv = policy
        plan = resolve(replace(config, dtype=dtype, weights=weights, kv=kv), sizes, device)
        is_chosen = policy == (chosen.dtype, chosen.weight_format, chosen.kv_format)
        rows.append(_policy_row(plan, device, is_chosen, glyphs))
    rows.append(_bar(chosen, device, width, glyphs))
    return chosen, rows


def _policies(chosen: Plan, device: DeviceInfo) -> list[tuple[str, str, str]]:
    """(type, weights, KV) of each row, the chosen one among them. On the CPU, where the type makes as much of a
    difference, two types and one of the quantised caches."""
    if device.kind == "cuda":
        return [(chosen.dtype, weights, kv) for weights in WEIGHT_FORMATS for kv in KV_FORMATS]
    second = "bfloat16" if chosen.dtype == "float32" else chosen.dtype
    cache = "int4" if (chosen.weight_format, chosen.kv_format) == ("16", "int4") else "int8"
    return [
        ("float32", "16", "16"),
        (second, "16", "16"),
        (chosen.dtype, "16", cache),
        *((chosen.dtype, "int4", kv) for kv in KV_FORMATS),
    ]


def _policy_row(plan: Plan, device: DeviceInfo, chosen: bool, glyphs: Glyphs) -> Row:
    kv = DTYPE_SHORT[plan.dtype] if plan.kv_format == "16" else plan.kv_format
    weights = DTYPE_SHORT[plan.dtype] if plan.weight_format == "16" else plan.weight_format
    figures = (
        size_text(plan.weights),
        size_text(plan.kv_per_token),
        f"{tokens(plan.tokens_held)} tok",
        size_text(plan.workspace),
        size_text(plan.total),
    )
    text = f"{f'{weights}/{kv}':<{NAME}}" + "".join(f"{figure:>10}" for figure in figures)
    style = "bad" if not plan.fits else "title" if chosen else "label"
    return [(f"{glyphs.pointer if chosen else ' '} ", "key"), (f"{text}  {_outcome(plan, device)}", style)]


def _outcome(plan: Plan, device: DeviceInfo) -> str:
    """Whether a policy fits, or by how much not."""
    if plan.fits:
        return "fits"
    context = -(-plan.context_len // plan.block_size) * plan.block_size * plan.kv_per_token
    missing = max(plan.total, plan.weights + plan.workspace + context) - device.free
    return (
        f"{size_text(missing)} over" if missing > 0 else "KV small"
    )  # the cache's own limit, not the device


def _bar(plan: Plan, device: DeviceInfo, width: int, glyphs: Glyphs) -> Row:
    """What the plan takes beside what others hold, on the whole of the device's memory."""
    figures = f" {size_text(plan.total)} of {size_text(device.free)} free"
    parts = [
        (float(plan.weights), glyphs.full, "bar.weights"),
        (float(plan.kv), glyphs.medium, "bar.kv_rest"),
        (float(plan.workspace), glyphs.light, "bar.workspace"),
        (float(device.total - device.free), glyphs.hatch, "bar.others"),
    ]
    bar = stacked(parts, max(0, width - len(figures) - 4), device.total)
    style = "value" if plan.fits else "bad"
    return [("  ", ""), (glyphs.cap_left, "frame"), *bar, (glyphs.cap_right, "frame"), (figures, style)]


def verdict(plan: Plan, width: int) -> list[Row]:
    """Whether it fits and what else is to say, in words."""
    texts = [(notice, "warn") for notice in plan.notices]
    if plan.kv_format == "int4":
        texts.append((POLICY_4, "label"))
    if plan.own:
        texts.insert(0, (f"weights: {plan.own}, as the checkpoint stores them", "label"))
    if not plan.fits:
        texts.insert(0, (f"does not fit: {plan.reason}", "bad"))
    return [row for text, style in texts for row in wrap_text(one_line(text, 300), width, style)]
