"""The lines around the chat: header, pane edge, context meter, keys and status. Each is told, never asks."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.text import one_line
from ...engine.types import EngineSnapshot, ModelState, SamplingParams
from ..commands import BY_ID
from ..keys import key_label
from ..pulse import NO_ANSWER
from ..render import format
from ..render.bars import meter
from ..render.glyphs import UNICODE, Glyphs
from ..render.load_rows import load_text
from ..render.rows import Row, cut, fit, heading, row_width, spread
from ..sampling import summary
from .chrome import Chrome


class Header(Chrome):
    """What runs where, and how much of it."""

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._model = ModelState("none")
        self._snapshot: EngineSnapshot | None = None
        self._stalled = False

    def show(self, model: ModelState, snapshot: EngineSnapshot | None, stalled: bool = False) -> None:
        """`stalled`: the engine does not answer."""
        self._model, self._snapshot, self._stalled = model, snapshot, stalled
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        start: Row = [(" lmtop ", "key"), (" ", ""), *self._model_part(width)]
        middle: Row = [("   " + self._activity(), "label")] if width >= 100 else []
        end: Row = [(" ^g menu  F1 help ", "label")]
        return [
            spread([*start, *middle] if row_width([*start, *middle, *end]) <= width else start, end, width)
        ]

    def _model_part(self, width: int) -> Row:
        model, g = self._model, self.glyphs
        name = cut(one_line(model.name), max(8, width // 4), g)
        match model.status:
            case "ready" if self._stalled:
                return [(name, "title"), ("  ", ""), (f"{g.failed} {NO_ANSWER}", "warn")]
            case "ready":
                info, place = model.info, one_line(model.place, 40)
                figures = (
                    f"w:{one_line(info.weights, 16)} kv:{one_line(info.kv, 8)}" if info is not None else ""
                )
                if width >= 100 and model.context is not None:
                    figures += f" ctx {format.tokens(model.context)}"
                where = place or (f"local {one_line(info.device, 24)}" if info is not None else "")
                return [
                    (name, "title"),
                    (f"  {figures.strip()}  " if figures else "  ", "label"),
                    (g.online, "ok"),
                    (where, "label"),
                ]
            case "loading" if model.place:
                return [(g.busy, "warn"), (f" {one_line(model.message, 100)}", "label")]
            case "loading":
                done = f"{model.progress:.0%} {one_line(model.message, 60)}"
                return [
                    ("loading ", "label"),
                    (name, "title"),
                    ("  ", ""),
                    (g.busy, "warn"),
                    (f" {done}", "label"),
                ]
            case "unloading":
                return [("unloading ", "label"), (name, "title")]
            case "failed" | "dead":
                return [(f"{g.failed} {model.status}: ", "bad"), (one_line(model.message, 400), "")]
        if model.message and model.place:
            return [(f"{g.offline} ", "label"), (one_line(model.message, 200), "")]
        return [(f"{g.offline} no model: ", "label"), ("F4", "key"), (" or ", "label"), ("/load demo", "key")]

    def _activity(self) -> str:
        snapshot = self._snapshot
        if snapshot is not None and snapshot.load is not None:
            return load_text(snapshot.load, f" {self.glyphs.dot} ")
        if snapshot is None or not (snapshot.slots or snapshot.queue):
            return ""
        queued = f" {self.glyphs.dot} {len(snapshot.queue)} queued" if snapshot.queue else ""
        speed = f" {self.glyphs.dot} {format.rate(snapshot.decode_tps)} t/s"
        return f"{len(snapshot.slots)} active{queued}{speed}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the edge below the transcript says."""

    generating: bool = False
    in_transcript: bool = False
    new_below: int = 0
    stats: str = ""


class PaneEdge(Chrome):
    """The rule below the transcript: what to press, the last reply's figures, what is new out of sight."""

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._reading = Reading()

    def show(self, reading: Reading) -> None:
        if reading != self._reading:
            self._reading = reading
            self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        g, reading = self.glyphs, self._reading
        framed = self.has_class("-framed")
        left, right = (g.bottom_left, g.bottom_right) if framed else (g.horizontal, g.horizontal)
        hints = []
        if reading.generating:
            hints.append("esc stop")
        if reading.new_below:
            hints.append("G follow")
        elif reading.in_transcript:
            hints.append("i prompt")
        start: Row = [(left + g.horizontal, "frame")]
        if hints:
            start.append((f" {f' {g.dot} '.join(hints)} ", "key"))
        elif reading.stats:
            start.append((f" {g.plain(reading.stats)} ", "label"))
        end: Row = []
        if reading.new_below:
            lines = "line" if reading.new_below == 1 else "lines"
            end.append((f" {g.down} {reading.new_below} new {lines} below ", "accent"))
        end.append((g.horizontal * 4 + right, "frame"))
        start = fit(start, min(row_width(start), max(0, width - row_width(end))))
        rule = g.horizontal * max(0, width - row_width(start) - row_width(end))
        return [[*start, (rule, "frame"), *end]]


class PromptTop(Chrome):
    """The upper edge of the prompt's frame."""

    def rows(self, width: int, height: int) -> list[Row]:
        return [heading([("prompt", "title")], width, self.glyphs, first=True)]


class ContextLine(Chrome):
    """How full the context is, how the next reply will be sampled, how long the draft is."""

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._state: tuple[int | None, int | None, SamplingParams, bool, int] = (
            0,
            None,
            SamplingParams(),
            False,
            0,
        )

    def show(
        self, used: int | None, context: int | None, sampling: SamplingParams, system: bool, draft: int
    ) -> None:
        """Token counts of the conversation (None: not known) and the context (None: no model), characters of
        the draft."""
        state = (used, context, sampling, system, draft)
        if state != self._state:
            self._state = state
            self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        g, (used, context, sampling, system, draft) = self.glyphs, self._state
        framed = self.has_class("-framed")
        share = format.share(used, context)
        row: Row = [(f"{g.bottom_left} " if framed else " ", "frame"), ("ctx ", "label")]
        row += meter(share, 12 if width < 70 else 24, g)
        percent = f" {100 * share:.0f}%" if share is not None else ""
        known = f"{format.tokens(used)}/{format.tokens(context)}{percent}" if context else format.NA
        row.append((f" {known} ", "value"))
        tail = f"draft {draft} ch" if draft else ""
        if system:
            tail = f"system prompt  {tail}".rstrip()
        end: Row = [(f" {tail} " if tail else "", "label")]
        end.append((g.horizontal * 2 + g.bottom_right if framed else " ", "frame"))
        room = width - row_width(row) - row_width(end) - 4
        middle: Row = [(f" {summary(sampling, room)} ", "label")]
        if row_width(middle) <= room + 2:
            row += [(g.horizontal * 2 if framed else "  ", "frame"), *middle]
        rule = (g.horizontal if framed else " ") * max(0, width - row_width(row) - row_width(end))
        return [[*row, (rule, "frame"), *end]]


_HINTS = {
    "prompt": (
        ("prompt.send", "send"),
        ("prompt.newline", "newline"),
        ("editor.open", "editor"),
        ("", ""),
        ("gauges.toggle", "gauges"),
        ("sessions.focus", "sessions"),
        ("app.quit", "quit"),
        ("model.load", "load"),
        ("session.new", "new"),
        ("session.next", "next"),
        ("sampling.open", "sampling"),
        ("servers.open", "servers"),
        ("monitor.open", "monitor"),
    ),
    "transcript": (
        ("transcript.copy", "copy"),
        ("transcript.copy_raw", "raw"),
        ("transcript.regenerate", "regen"),
        ("transcript.variant_left", ""),
        ("transcript.variant_right", "variant"),
        ("transcript.previous", ""),
        ("transcript.next", "message"),
        ("transcript.block", "block"),
        ("transcript.find", "find"),
        ("", ""),
        ("transcript.bottom", "end"),
        ("transcript.leave", "prompt"),
    ),
    "sessions": (
        ("sessions.open", "open"),
        ("sessions.new", "new"),
        ("sessions.rename", "rename"),
        ("sessions.delete", "delete"),
        ("", ""),
        ("sessions.leave", "prompt"),
    ),
}


class Footer(Chrome):
    """The keys that matter where the focus is, and at the right what the wire carries.

    One row: keys and bytes. Two rows: the second one says more about terminal and engine.
    """

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._where = "prompt"
        self._wire = ""
        self._status = ""

    def show(self, where: str, wire: str, status: str) -> None:
        if (where, wire, status) != (self._where, self._wire, self._status):
            self._where, self._wire, self._status = where, wire, status
            self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        g = self.glyphs
        first_end: Row = [(f"{g.vertical} {self._wire} ", "label")] if height == 1 else []
        room = width - row_width(first_end)
        gap = " " if height == 1 else "  "
        row: Row = [(" ", "")]
        bar: Row = []
        for command, title in _HINTS[self._where]:
            if not command:
                bar = [(f"{g.vertical} ", "frame")]
                continue
            label = f" {title}{gap}" if title else " "
            part: Row = [*bar, (key_label(BY_ID[command].keys[0]), "key"), (label, "label")]
            if row_width(row) + row_width(part) > room:
                break
            row += part
            bar = []
        first = spread(row, first_end, width)
        return [first, spread([(f" {self._status}", "dim")], [(f"{self._wire} ", "label")], width)][:height]
