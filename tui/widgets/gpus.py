"""The monitor of GPUs, or of the host where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...engine.samples import History, TelemetrySnapshot
from ..render.glyphs import UNICODE, Glyphs
from ..render.gpu_rows import SORT_KEYS
from ..render.monitor_rows import View, monitor_rows
from .line_view import LineView


class GpuView(LineView):
    """All GPUs in one frame. `show()` may be called at any rate; only what changed is drawn again."""

    DEFAULT_CSS = "GpuView { width: 1fr; height: 1fr; }"

    def __init__(
        self, *, glyphs: Glyphs = UNICODE, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.glyphs = glyphs
        self.view = View()
        self._shown: tuple[TelemetrySnapshot, Mapping[int, History]] = (TelemetrySnapshot(), {})

    def show(self, snapshot: TelemetrySnapshot, histories: Mapping[int, History]) -> int:
        """Draw a snapshot; the number of rows that changed."""
        self._shown = (snapshot, histories)
        return self._draw()

    def select(self, step: int) -> None:
        """Move the focus by `step` GPUs, around the end."""
        known = [gpu.index for gpu in self._shown[0].gpus]
        if known:
            at = known.index(self.view.gpu) if self.view.gpu in known else 0
            self.view = replace(self.view, gpu=known[(at + step) % len(known)])
            self._draw()

    def next_sort(self) -> None:
        """The next order of the process table."""
        at = SORT_KEYS.index(self.view.sort)
        self.view = replace(self.view, sort=SORT_KEYS[(at + 1) % len(SORT_KEYS)])
        self._draw()

    def toggle_graphs(self) -> None:
        """Graphs and table, or the table alone with more processes."""
        self.view = replace(self.view, graphs=not self.view.graphs)
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> int:
        width, height = self.size
        if width < 8 or height < 3:
            return 0
        return self.set_rows(monitor_rows(*self._shown, width, height, self.view, self.glyphs))
