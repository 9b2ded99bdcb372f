from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.machine import GIB, LETTERS, engine_snapshot, gpu_entry, machine_file, pool, telemetry_of
from textual.app import App

from lmtop.engine.telemetry import CpuSample, TelemetrySnapshot
from lmtop.engine.types import MemorySplit, QueueSnapshot
from lmtop.tui.render.bars import apportion, meter, stacked
from lmtop.tui.render.format import NA, count, duration, gib, number, percent, rate, size
from lmtop.tui.render.gauge_rows import idle_ranges
from lmtop.tui.render.glyphs import ASCII, UNICODE, Glyphs, glyphs
from lmtop.tui.render.kvmap import ZOOMS
from lmtop.tui.render.rows import fit, heading, left, right, row_width, spread
from lmtop.tui.render.series import Axis, TimeSeries, chart, sparkline
from lmtop.tui.widgets.gauges import GaugePanel, GaugeStrip, strip_row
from lmtop.tui.widgets.line_view import changed_cells

values = st.lists(st.floats(0, 1e12), min_size=1, max_size=8)


@given(values, st.integers(0, 200))
def test_shares_sum_to_the_cells_and_no_part_vanishes(sizes, cells):
    shares = apportion(sizes, cells)
    positive = sum(value > 0 for value in sizes)
    assert sum(shares) == (cells if positive else 0)
    assert min(shares) >= 0
    if positive <= cells:
        assert all(share > 0 for share, value in zip(shares, sizes, strict=True) if value > 0)


@given(values, st.integers(0, 200), st.one_of(st.none(), st.floats(0, 1e13)))
def test_a_stacked_bar_is_exactly_as_wide_as_asked(sizes, width, total):
    row = stacked([(value, UNICODE.full, "ok") for value in sizes], width, total)
    assert row_width(row) == width


def test_a_stacked_bar_is_to_scale():
    row = stacked([(25, "a", "x"), (25, "b", "y")], 40, 100)
    assert row == [("a" * 10, "x"), ("b" * 10, "y"), (" " * 20, "bar.free")]
    assert stacked([(1, "a", "x"), (999, "b", "y")], 10, 1000)[0] == ("a", "x")


@given(st.one_of(st.none(), st.floats(-1, 2)), st.integers(2, 60))
def test_a_meter_keeps_its_width_and_a_little_is_not_nothing(fraction, width):
    row = meter(fraction, width, UNICODE)
    assert row_width(row) == width
    if fraction and fraction > 0 and width > 2:
        assert row[1][0].strip()


@given(
    st.lists(st.one_of(st.none(), st.floats(-10, 1e6)), max_size=80), st.integers(1, 60), st.integers(1, 5)
)
def test_charts_have_their_size(samples, width, height):
    rows = chart(samples, width, height, 0, 100, UNICODE, "ok")
    assert len(rows) == height and all(row_width(row) == width for row in rows)


def test_a_chart_never_rescales_and_tells_zero_from_unknown():
    assert sparkline([3, 3, 3], 3, 0, 100, UNICODE, "")[0][0] == "▁▁▁"
    assert sparkline([None, 0, 50, 100, 300], 5, 0, 100, UNICODE, "")[0][0] == " ▁▄██"
    tall = chart([0, 50, 100], 3, 2, 0, 100, UNICODE, "")
    assert [row[0][0] for row in tall] == ["  █", "▁██"]
    with pytest.raises(ValueError, match="axis"):
        sparkline([1], 1, 5, 5, UNICODE, "")


def test_an_axis_grows_by_1_2_5_and_never_shrinks():
    axis = Axis(10)
    assert [axis.cover(it) for it in (3, 11, 5, 142, 200, 201, 1000, 3)] == [
        10,
        20,
        20,
        200,
        200,
        500,
        1000,
        1000,
    ]
    axis.cover(float("nan"))
    assert axis.high == 1000


def test_a_time_series_is_kept_by_whole_cells():
    series = TimeSeries(60)
    for second, value in ((0.1, 10), (0.6, 30), (1.2, 50), (4.0, 5)):
        series.add(second, value)
    assert series.values(span=4, cells=4, now=4.2) == [50, None, None, 5]
    assert series.values(span=6, cells=3, now=4.2) == [30, None, 5]  # the mean of the samples
    assert series.values(span=4, cells=4, now=4.9) == series.values(span=4, cells=4, now=4.0)


def test_numbers_as_people_read_them():
    assert [gib(it) for it in (None, 0, GIB // 10, 33.2 * GIB, 141 * GIB)] == [
        NA,
        "0.0",
        "0.10",
        "33.2",
        "141",
    ]
    assert [size(it) for it in (None, 0, 500, 4096, 310 << 20, 18.5 * GIB)] == [
        NA,
        "0",
        "500",
        "4K",
        "310M",
        "18.5G",
    ]
    assert [count(it) for it in (0, 999, 1000, 31_000, 1_250_000)] == ["0", "999", "1.0k", "31k", "1.2M"]
    assert [rate(it) for it in (0, 7.44, 71.4, 142, 3100)] == ["0", "7.4", "71.4", "142", "3.1k"]
    assert [duration(it) for it in (0.21, 3, 42, 130, 11_520, 200_000)] == [
        "0.21s",
        "3.0s",
        "42s",
        "2m",
        "3h12",
        "2d",
    ]
    assert (percent(None), percent(0), number(None, "C"), number(62.4, "C")) == (NA, "0%", NA, "62C")


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from("ab")), max_size=6), st.integers(0, 40))
def test_rows_are_cut_and_padded_by_cell(row, width):
    printable = [(text.replace("\n", " "), style) for text, style in row if text.isprintable()]
    assert row_width(fit(printable, width)) == width
    assert row_width(spread(printable, printable, width)) == width
    if width >= 2:
        assert row_width(heading(printable, width, UNICODE)) == width


def test_wide_characters_do_not_break_columns():
    assert left("zh-翻译", 6, UNICODE) == "zh-翻…"
    assert right("翻", 4, UNICODE) == "  翻"
    assert left("翻译器", 4, ASCII) == "???~"


def test_both_glyph_tables_are_one_cell_wide_and_ascii_is_ascii():
    for name in Glyphs.__slots__:
        if name == "ascii":
            continue
        wide, plain = getattr(UNICODE, name), getattr(ASCII, name)
        assert row_width([(wide, "")]) == len(wide) == len(plain)
        assert plain.isascii() and plain.isprintable()
    assert glyphs(True).plain("▸ é 翻 ok") == "> ? ?? ok"


def test_idle_rows_are_named_as_ranges():
    assert idle_ranges([0, 2], 8) == "1,3-7"
    assert idle_ranges([], 1) == "0" and idle_ranges([0, 1], 2) == ""


def test_repaint_spans_cover_what_differs_and_no_more():
    old = [("abc", "x"), ("12", "y"), ("zz", "x")]
    assert changed_cells(old, list(old)) is None
    assert changed_cells(old, [("abc", "x"), ("13", "y"), ("zz", "x")]) == (3, 5)
    assert changed_cells(old, [("abc", "q"), ("12", "y"), ("zz", "x")]) == (0, 3)
    assert changed_cells([], old) == (0, 7)


class Host(App[None]):
    def __init__(self, widget):
        super().__init__()
        self.widget = widget

    def compose(self):
        yield self.widget


@pytest.fixture
def telemetry(tmp_path, monkeypatch):
    return telemetry_of(machine_file(tmp_path / "m.json", [gpu_entry(0), gpu_entry(1)]), monkeypatch)


NO_GPU = TelemetrySnapshot(
    1000.0, cpu=CpuSample(12.0, 2, (0.1, 0.2, 0.3), 8 * GIB, 5 * GIB, GIB), notice="no NVIDIA GPU: no driver"
)


@pytest.mark.parametrize("dimensions", [(36, 31), (74, 50), (36, 12), (20, 5), (16, 3), (8, 2)])
async def test_the_panel_fills_exactly_its_cells(dimensions, telemetry):
    panel = GaugePanel()
    async with Host(panel).run_test(size=dimensions) as pilot:
        panel.show(engine_snapshot(), telemetry, LETTERS)
        await pilot.pause()
        if dimensions[0] >= 16:
            assert [row_width(row) for row in panel._rows] == [dimensions[0]] * dimensions[1]


async def test_the_panel_says_everything_once(telemetry):
    panel = GaugePanel()
    async with Host(panel).run_test(size=(74, 50)):
        panel.show(engine_snapshot(), telemetry, LETTERS)
        for words in (
            "VRAM GPU0 33.2 / 141 GiB", "weights 4.9", "KV used 4.6", "KV rest 7.4", "workspace 1.6", "others 14.7",
            "KV 4005/10627 blk", "A 1879 a 61", "LRU 2100", "free 4522", "142 t/s", "3.1k t/s", "batch 2/8", "queue 1",
            "61%", "needs 7500 blk", "python train.py", "2-7 idle",
        ):  # fmt: skip
            assert panel.text.count(words) == 1, words


async def test_nothing_changed_writes_nothing_and_one_block_one_row_of_the_map(telemetry):
    panel = GaugePanel()
    async with Host(panel).run_test(size=(36, 31)):
        first = pool({2: 45, 3: 30, 1: 12}, 400)
        idle = engine_snapshot(kv=first, slots=(), queue=(), decode_tps=0.0, prefill_tps=0.0)
        assert panel.show(idle, NO_GPU, LETTERS) > 0
        for tick in range(1, 60):
            assert panel.show(replace(idle, time=1000.0 + tick / 2, heartbeat=tick), NO_GPU, LETTERS) == 0
        before = panel.text.splitlines()
        panel.show(replace(idle, time=1030.0, kv=pool({2: 46, 3: 30, 1: 12}, 400)), NO_GPU, LETTERS)
        changed = [a for a, b in zip(before, panel.text.splitlines(), strict=True) if a != b]
        figures = [row for row in changed if "blk" in row or "free" in row]
        assert len(changed) - len(figures) == 1


async def test_only_the_cells_that_changed_are_repainted(telemetry, monkeypatch):
    panel = GaugePanel()
    async with Host(panel).run_test(size=(36, 31)) as pilot:
        panel.show(engine_snapshot(), telemetry, LETTERS)
        await pilot.pause()
        regions = []
        monkeypatch.setattr(panel, "refresh", lambda *dirty: regions.extend(dirty))
        moved = replace(telemetry.gpus[0], temperature=63.0)
        panel.show(engine_snapshot(), replace(telemetry, gpus=(moved, telemetry.gpus[1])), LETTERS)
        (region,) = regions
        assert (region.y, region.height) == (0, 1) and region.width <= 14


async def test_unknown_is_never_shown_as_zero():
    panel = GaugePanel()
    async with Host(panel).run_test(size=(36, 24)):
        unknown = MemorySplit("GPU0", None, 5 * GIB, 0, 0, 0, None)
        panel.show(engine_snapshot(memory=unknown, kv=None), TelemetrySnapshot(), LETTERS)
        assert (
            "VRAM GPU0 n/a / n/a GiB" in panel.text and "others n/a" in panel.text and "CPU n/a" in panel.text
        )
        panel.show(engine_snapshot(status="none", memory=None, kv=None, slots=(), queue=()), NO_GPU, LETTERS)
        assert panel.text.count("no model loaded") == 2 and "no NVIDIA GPU: no driver" in panel.text


async def test_rates_that_nobody_measures_are_not_zero():
    panel, strip = GaugePanel(), GaugeStrip()
    slots = (replace(engine_snapshot().slots[0], tokens_per_s=0.0, generated=1),)
    early = engine_snapshot(slots=slots, queue=(), step_ms_p50=0.0, step_ms_p99=0.0)
    async with Host(panel).run_test(size=(74, 50)):
        panel.show(early, NO_GPU, LETTERS)
        assert "step ms p50 n/a  p99 n/a" in panel.text
        assert "1      n/a" in panel.text  # tokens, tokens/s
        panel.show(engine_snapshot(status="dead", memory=None, kv=None, slots=(), queue=()), NO_GPU, LETTERS)
        for words in ("decode    n/a t/s", "prefill   n/a t/s", "batch n/a · queue n/a"):
            assert words in panel.text
    async with Host(strip).run_test(size=(80, 1)):
        strip.show(engine_snapshot(status="none", memory=None, kv=None, slots=(), queue=()), NO_GPU, LETTERS)
        for words in ("memory n/a", "n/a t/s", "slots n/a", "queue n/a"):
            assert words in strip.text


async def test_why_a_request_waits_can_be_read_on_a_narrow_panel(telemetry):
    panel = GaugePanel()
    reason = "all 8 batch slots are taken"
    waiting = QueueSnapshot("r", "essay", "Tell me about paged attention", 1200, 1.0, reason)
    async with Host(panel).run_test(size=(36, 31)):
        panel.show(engine_snapshot(queue=(waiting,)), telemetry, LETTERS)
        assert reason in panel.text and "1.2k" in panel.text


async def test_a_gpu_with_no_readings_keeps_the_panel_up(tmp_path, monkeypatch):
    dead = {"index": 0, "name": "NVIDIA H200", "uuid": "GPU-0"}
    telemetry = telemetry_of(machine_file(tmp_path / "m.json", [dead]), monkeypatch)
    for dimensions in ((36, 24), (74, 40)):
        panel = GaugePanel()
        async with Host(panel).run_test(size=dimensions):
            panel.show(engine_snapshot(), telemetry, LETTERS)
            assert "H200" in panel.text and "n/a" in panel.text


async def test_zoom_pointer_and_hover(telemetry):
    panel = GaugePanel()
    async with Host(panel).run_test(size=(36, 31)) as pilot:
        panel.show(engine_snapshot(kv=pool({2: 5, 3: 2}, 40)), telemetry, LETTERS)
        seen = []
        for _ in ZOOMS:
            seen.append(panel.zoom)
            assert f"blk · {panel.zoom}" in panel.text
            panel.cycle_zoom()
        assert tuple(seen) == ZOOMS and panel.zoom == ZOOMS[0]
        panel.move_pointer(0, 0)
        panel.move_pointer(0, 1)
        assert "block 5: api#41, 1 holder" in panel.text
        panel.move_pointer(0, 5)  # beyond the map: stays
        assert "block 5: api#41, 1 holder" in panel.text
        top = panel.text.splitlines().index(next(row for row in panel.text.splitlines() if "AAAAA" in row))
        await pilot.hover(panel, offset=(3, top))
        assert "block 2: kernels, 1 holder" in panel.text


async def test_hostile_labels_are_shown_literally(telemetry):
    panel = GaugePanel()
    bad = QueueSnapshot("r", "s", "[red]\x1b]52;c;eA==\x07", 10, 1.0, "[/x] [@click=app.quit]q[/]")
    async with Host(panel).run_test(size=(74, 50)) as pilot:
        panel.show(engine_snapshot(queue=(bad,)), telemetry, LETTERS)
        await pilot.pause()
        assert "[red]" in panel.text and "[/x] [@click=app.quit]" in panel.text
        assert "\x1b" not in panel.text and "\x07" not in panel.text


@pytest.mark.parametrize("dimensions", [(36, 31), (74, 50)])
async def test_ascii_panels_hold_only_ascii_and_every_number(dimensions, telemetry):
    panel = GaugePanel(glyphs=ASCII)
    async with Host(panel).run_test(size=dimensions):
        panel.show(engine_snapshot(), telemetry, LETTERS)
        assert panel.text.isascii()
        for number_shown in (
            "33.2 / 141",
            "4005/10627",
            "142 t/s",
            "batch 2/8",
            "AAAA",
            "XX",
            "DDDD",
            "BBBB",
        ):
            assert number_shown in panel.text


async def test_a_theme_switch_recolours_without_new_rows(telemetry):
    panel = GaugePanel()
    app = Host(panel)
    async with app.run_test(size=(36, 31)) as pilot:
        panel.show(engine_snapshot(), telemetry, LETTERS)
        await pilot.pause()
        before = panel.render_line(3)
        app.theme = "textual-light"
        await pilot.pause()
        assert panel.render_line(3).text == before.text and panel.render_line(3) != before


@given(st.integers(1, 200), st.booleans())
@settings(deadline=None)
def test_the_strip_is_exactly_one_row(width, plain):
    row = strip_row(engine_snapshot(), width, ASCII if plain else UNICODE)
    assert row_width(row) == width


async def test_the_strip_at_80_columns_holds_every_gauge():
    strip = GaugeStrip()
    async with Host(strip).run_test(size=(80, 1)):
        strip.show(engine_snapshot(), NO_GPU, LETTERS)
        for words in ("33.2/141G", "38%", "142 t/s", "slots 2/8", "queue 1"):
            assert words in strip.text
        assert strip.show(engine_snapshot(time=1001.0), NO_GPU, LETTERS) == 0


class PanelApp(Host):
    """The panel after a minute of the same story, for the picture."""

    def __init__(self, telemetry, **options):
        super().__init__(GaugePanel(**options))
        self.telemetry = telemetry

    def on_mount(self):
        self.call_after_refresh(self.play)

    def play(self):
        for i in range(120):
            rates = {"decode_tps": 100.0 + i % 7 * 10, "prefill_tps": 3100.0 * (i % 18 == 0)}
            told = replace(self.telemetry, time=940.5 + i / 2)
            self.widget.show(engine_snapshot(time=940.5 + i / 2, **rates), told, LETTERS)


@pytest.mark.parametrize(("dimensions", "plain"), [((36, 31), False), ((72, 50), False), ((36, 31), True)])
def test_panel_picture(snap_compare, telemetry, dimensions, plain):
    app = PanelApp(telemetry, glyphs=ASCII if plain else UNICODE)
    assert snap_compare(app, terminal_size=dimensions)
