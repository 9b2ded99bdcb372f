"""The sections of the gauge panel as rows: memory, KV blocks, throughput, batch and queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...engine.text import one_line
from ...engine.types import EngineSnapshot, KVSnapshot, MemorySplit, QueueSnapshot, SlotSnapshot
from . import kvmap as kv_blocks
from .bars import level_style, meter, stacked
from .format import NA, count, duration, gib, percent, rate, share
from .format import size as size_text
from .glyphs import Glyphs
from .kvmap import KVMap, Letters
from .rows import Row, cut, fit, footing, framed, heading, left, right, row_width, spread

WIDE = 60  # inner cells from which tables get all their columns


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the panel that can be shown on `keep` to `want` rows; `build(n)` returns at most n.

    A lower `rank` is kept longer when the panel is short; an `elastic` section takes what no other wants.
    """

    key: str
    title: Row
    rank: int
    keep: int
    want: int
    build: Callable[[int], list[Row]]
    elastic: bool = False


def stack(
    sections: Sequence[Section], width: int, height: int, glyphs: Glyphs
) -> tuple[list[Row], dict[str, int]]:
    """The sections under each other in one frame of exactly `height` rows. Those of the highest rank are left out
    first; rows that remain go to the lowest rank first. Also where each shown section's body begins, by key."""
    room = height - 1
    granted: dict[int, int] = {}
    by_rank = sorted(range(len(sections)), key=lambda i: sections[i].rank)
    for i in by_rank:
        if room >= sections[i].keep + 1:
            granted[i] = sections[i].keep
            room -= sections[i].keep + 1
    for i in sorted(by_rank, key=lambda i: sections[i].elastic):
        if i in granted:
            more = min(room, max(0, sections[i].want - granted[i]))
            granted[i] += more
            room -= more
    rows: list[Row] = []
    tops: dict[str, int] = {}
    for i, section in enumerate(sections):
        if i in granted:
            rows.append(heading(section.title, width, glyphs, first=not rows))
            tops[section.key] = len(rows)
            rows += [framed(row, width, glyphs) for row in section.build(granted[i])[: granted[i]]]
    rows += [framed([], width, glyphs)] * (height - 1 - len(rows))
    return [*rows, footing(width, glyphs)][:height], tops


def flow(items: Sequence[Row], width: int, column: int) -> list[Row]:
    """Items side by side in columns of `column` cells (an item may span several), wrapped at `width`."""
    rows: list[Row] = []
    at = width
    for item in items:
        cells = row_width(item)
        spanned = max(1, -(-(cells + 1) // column)) * column
        if at + cells > width:
            rows.append([])
            at = 0
        rows[-1] += fit(item, spanned)
        at += spanned
    return rows


# --- memory ------------------------------------------------------------------------------------------------


def memory_parts(split: MemorySplit, glyphs: Glyphs) -> list[tuple[str, int | None, str, str]]:
    """(label, bytes, glyph, style) of each part of the bar, in order."""
    return [
        ("weights", split.weights, glyphs.full, "bar.weights"),
        ("KV used", split.kv_used, glyphs.dark, "bar.kv_used"),
        ("KV rest", split.kv_rest, glyphs.medium, "bar.kv_rest"),
        ("workspace", split.workspace, glyphs.light, "bar.workspace"),
        ("others", split.others, glyphs.hatch, "bar.others"),
    ]


def memory_bar(split: MemorySplit, width: int, glyphs: Glyphs) -> Row:
    """The split as one bar; a part that cannot be read has no cells."""
    parts = [(float(size or 0), glyph, style) for _, size, glyph, style in memory_parts(split, glyphs)]
    return stacked(parts, width, split.total)


def memory_used(split: MemorySplit) -> int | None:
    """Bytes in use on the device; None when the others' share is not known."""
    if split.others is None:
        return None
    return split.weights + split.kv_used + split.kv_rest + split.workspace + split.others


def memory_section(
    split: MemorySplit | None, width: int, absent: str, glyphs: Glyphs, note: str = ""
) -> Section:
    """Title, bar and legend; `note` follows the others' figure."""
    if split is None:
        return Section("memory", [("memory", "title")], 0, 1, 1, lambda rows: [[(absent, "dim")]])
    label = "RAM" if split.device == "RAM" else f"VRAM {one_line(split.device, 12)}"
    title = [(label, "title"), (f" {gib(memory_used(split))} / {gib(split.total)} GiB", "value")]
    items: list[Row] = [
        [(glyph, style), (f" {name} ", "label"), (size_text(size), "value")]
        for name, size, glyph, style in memory_parts(split, glyphs)
    ]
    if note:
        items[-1] = [*items[-1], (f" {note}", "label")]
    body = [
        memory_bar(split, width, glyphs),
        *flow(items, width, max(1, width // (4 if width >= WIDE else 2))),
    ]
    return Section("memory", title, 0, 1, len(body), lambda rows: body[:rows])


# --- KV blocks ---------------------------------------------------------------------------------------------


def kv_section(
    kv: KVSnapshot | None,
    zoom: kv_blocks.Zoom,
    width: int,
    letters: Letters,
    absent: str,
    glyphs: Glyphs,
    keep_map: Callable[[KVMap], None],
    pointed: Callable[[], str],
) -> Section:
    """The block map. `keep_map` gets the laid-out map; `pointed()` is text on the cell under the pointer, if any,
    which then takes the legend's place."""
    if kv is None:
        return Section("kv", [("KV", "title")], 1, 1, 1, lambda rows: [[(absent, "dim")]])
    total = kv_blocks.usable(kv)
    title = [("KV", "title"), (f" {kv.used}/{total} blk", level_style(share(kv.used, total)))]
    if not kv.owners:
        return Section("kv", title, 1, 1, 1, lambda rows: [meter(share(kv.used, total), width, glyphs)])
    shown = total if zoom != "used" else kv.used + kv.cached
    rows_at_most = shown // width + len(kv.sessions) + 2
    title.append((f" {glyphs.dot} {zoom}", "label"))

    def build(rows: int) -> list[Row]:
        legend_rows = 1 if rows < 6 else 2
        laid_out = kv_blocks.layout(kv, zoom, width, max(1, rows - legend_rows))
        keep_map(laid_out)
        text = pointed()
        legend = (
            [[(cut(text, width, glyphs), "accent")]]
            if text
            else kv_legend(laid_out, kv, width, legend_rows, letters, glyphs)
        )
        body = kv_blocks.map_rows(laid_out, kv.sessions, width, letters, glyphs)[: rows - 1]
        body += [[]] * (rows - len(legend) - len(body))
        return [*body, *legend]

    return Section("kv", title, 1, 3, 2 + max(4, rows_at_most), build, elastic=True)


def kv_legend(
    laid_out: KVMap, kv: KVSnapshot, width: int, rows: int, letters: Letters, glyphs: Glyphs
) -> list[Row]:
    """Exact block counts by group, on one row or (`rows` = 2, where they need it) two: sessions as far as they
    fit, then cached, free and the scale."""
    end: Row = []
    sessions: list[Row] = []
    for group in laid_out.groups:
        glyph, style = kv_blocks.look(group, kv.sessions, letters, glyphs)
        if group.owner in (kv_blocks.FREE, kv_blocks.CACHED):
            name = "free" if group.owner == kv_blocks.FREE else "LRU"
            end += [(f" {glyph} ", style), (f"{name} {group.blocks}", "label")]
        else:
            sessions.append([(glyph, style), (f" {group.blocks} ", "label")])
    if laid_out.per_cell > 1:
        end.append((f" {glyphs.dot} {laid_out.per_cell}/cell", "dim"))
    alone = rows > 1 and sum(map(row_width, sessions)) + row_width(end) > width
    room = width if alone else width - row_width(end)
    start: Row = []
    for item in sessions:
        if row_width(start) + row_width(item) - 1 > room:
            break
        start += item
    return [fit(start, width), spread([], end, width)] if alone else [spread(start, end, width)]


# --- throughput --------------------------------------------------------------------------------------------


def rate_row(
    label: str, value: float | None, spark: Callable[[int], Row], high: float, width: int, glyphs: Glyphs
) -> Row:
    """Label, reading (None: not measured), graph and the axis' maximum."""
    start: Row = [(f"{label} ", "label"), (f"{rate(value):>5}", "value"), (" t/s ", "label")]
    axis = [(glyphs.cap_right, "frame"), (left(count(high), 4, glyphs), "dim")]
    return fit([*start, *spark(max(0, width - row_width(start) - row_width(axis))), *axis], width)


# --- batch and queue ---------------------------------------------------------------------------------------


def idle_ranges(busy: Sequence[int], total: int) -> str:
    """The rows that hold no request: "1,3-7"; empty when all do."""
    idle = [row for row in range(total) if row not in set(busy)]
    parts: list[list[int]] = []
    for row in idle:
        if parts and parts[-1][-1] == row - 1:
            parts[-1] = [parts[-1][0], row]
        else:
            parts.append([row])
    return ",".join("-".join(map(str, part)) for part in parts)


def slot_row(slot: SlotSnapshot, width: int, letters: Letters, glyphs: Glyphs) -> Row:
    """One request that is being computed: on a narrow panel its progress, on a wide one all that is known."""
    letter, style = letters.get(slot.session, ("?", "dim"))
    name = one_line(slot.label or slot.request, 60)
    wide = width >= WIDE
    speed = rate(slot.tokens_per_s or None)  # 0 before the second token
    label = left(name, 16 if wide else max(4, width - 23), glyphs)
    row: Row = [(f"{slot.row:<2}", "label"), (letter, style), (f" {label} ", "value")]
    if slot.phase == "prefill":
        done = share(slot.computed, slot.prompt_tokens) or 0.0
        row += [
            ("prefill " if wide else "pre ", "label"),
            *meter(done, 10 if wide else 8, glyphs, "series.prefill"),
        ]
        row.append((right(percent(done * 100), 7 if wide else 5, glyphs), "value"))
    elif wide:
        row += [("decode  ", "label"), (f"{count(slot.generated):>8} {speed:>8}", "value")]
    else:
        row += [
            ("dec", "label"),
            (f"{count(slot.generated):>5}{speed:>5}", "value"),
            (" t/s", "label"),
        ]
    if wide:
        row.append(
            (
                f" {duration(slot.ttft_s):>6} {count(slot.blocks):>6} {slot.temperature:>5.2f}",
                "value",
            )
        )
    return fit(row, width)


def slot_heading(width: int) -> Row:
    """Column names of the wide batch table."""
    names = f"# own {'request':<15} {'phase':<8}{'tokens':>8} {'t/s':>8} {'ttft':>6} {'blk':>6} {'temp':>5}"
    return fit([(names, "label")], width)


def queue_rows(place: int, waiting: QueueSnapshot, width: int, letters: Letters, glyphs: Glyphs) -> list[Row]:
    """One waiting request and why it waits: on one row where both fit, else on two."""
    letter, style = letters.get(waiting.session, ("?", "dim"))
    name = one_line(waiting.label or waiting.request, 60)
    start: Row = [(f"q{place} ", "label"), (letter, style)]
    end: Row = [(f" {duration(waiting.waited_s)}", "dim")] if width >= WIDE else []
    room = max(0, width - row_width(start) - row_width(end))
    size, why = f" {count(waiting.prompt_tokens)}", one_line(waiting.reason)
    label = cut(name, max(6, min(16, room - row_width([(f" {size}: {why}", "")]))), glyphs)
    one = f" {label}{size}: {why}"
    if row_width([(one, "")]) <= room:
        return [spread([*start, (cut(one, room, glyphs), "value")], end, width)]
    label = cut(name, room - 1 - len(size), glyphs)
    first = spread([*start, (f" {label}{size}", "value")], end, width)
    return [first, fit([("   ", ""), (cut(why, width - 3, glyphs), "label")], width)]


def batch_section(engine: EngineSnapshot, width: int, letters: Letters, glyphs: Glyphs) -> Section:
    """Slots, idle rows and queue. What does not fit is counted on the last row."""
    if engine.status != "ready":
        absent: Row = [
            ("batch", "title"),
            (f" {NA}", "value"),
            (f" {glyphs.dot} queue ", "label"),
            (NA, "value"),
        ]
        return Section("batch", absent, 2, 0, 0, lambda rows: [])
    title = [("batch", "title"), (f" {len(engine.slots)}/{engine.max_batch}", "value")]
    title += [
        (f" {glyphs.dot} queue ", "label"),
        (str(len(engine.queue)), "notice" if engine.queue else "value"),
    ]
    body: list[Row] = [slot_heading(width)] if width >= WIDE and engine.slots else []
    body += [slot_row(slot, width, letters, glyphs) for slot in engine.slots]
    idle = idle_ranges([slot.row for slot in engine.slots], engine.max_batch)
    if idle:
        body.append([(f"{cut(idle, max(0, width - 5), glyphs)} idle", "dim")])
    for place, waiting in enumerate(engine.queue, 1):
        body += queue_rows(place, waiting, width, letters, glyphs)

    def build(rows: int) -> list[Row]:
        if len(body) <= rows:
            return body
        return [*body[: rows - 1], [(f"+{len(body) - rows + 1} more", "dim")]]

    return Section("batch", title, 2, 1, max(1, len(body)), build)


def labels_of(engine: EngineSnapshot) -> Mapping[str, str]:
    """What to call a session, from the requests that name it."""
    requests: tuple[QueueSnapshot | SlotSnapshot, ...] = (*engine.queue, *engine.slots)
    return {it.session: it.label for it in requests if it.label}
