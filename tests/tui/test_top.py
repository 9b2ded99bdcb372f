import json
import subprocess
import sys

import pytest
from support.machine import GIB, gpu_entry, machine_file

from lmtop.engine.telemetry import Telemetry
from lmtop.engine.types import UsageError
from lmtop.tui.render.glyphs import ASCII, UNICODE
from lmtop.tui.render.monitor_rows import View, monitor_rows
from lmtop.tui.render.rows import row_width
from lmtop.tui.screens.top import TopApp, TopScreen, run_top, top_json
from lmtop.tui.widgets.gpus import GpuView
from lmtop.tui.widgets.line_view import LineView

SIZES = [(80, 24), (120, 40), (200, 60)]


def process(pid, **fields):
    entry = {
        "pid": pid,
        "user": "me",
        "kind": "",
        "memory": pid << 20,
        "util": 1.0,
        "name": "p",
        "command": f"p {pid}",
    }
    return entry | fields


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a sampled Telemetry of a fake machine."""

    def make(gpus, **more):
        monkeypatch.setenv("LMTOP_TEST", "1")
        monkeypatch.setenv("LMTOP_FAKE_GPU", str(machine_file(tmp_path / "m.json", gpus, **more)))
        telemetry = Telemetry()
        telemetry.sample()
        return telemetry

    return make


NO_GPU = {
    "notice": "no NVIDIA GPU: driver not loaded",
    "cpu": {
        "percent": 23.0, "cores": 16, "load": [1.2, 0.9, 0.5], "ram_total": 128 * GIB, "ram_available": 100 * GIB,
        "rss": 2 * GIB, "processes": [process(pid) for pid in range(1, 30)],
    },
}  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("dimensions", [*SIZES, (40, 10), (60, 20)])
@pytest.mark.parametrize("graphs", [True, False])
def test_any_number_of_gpus_fills_any_screen(machine, count, dimensions, graphs):
    telemetry = machine([gpu_entry(i) for i in range(count)], **({} if count else NO_GPU))
    width, height = dimensions
    for glyphs in (UNICODE, ASCII):
        view = View(gpu=max(0, count - 1), graphs=graphs)
        rows = monitor_rows(telemetry.snapshot(), telemetry.histories(), width, height, view, glyphs)
        assert [row_width(row) for row in rows] == [width] * height
    text = "\n".join("".join(part for part, _ in row) for row in rows)
    assert text.isascii()
    if count:
        assert f">{count - 1} " in text or count == 1  # the GPU in focus is always in sight
    else:
        assert "no NVIDIA GPU" in text and "RAM" in text


def test_sixteen_gpus_are_all_on_an_80x24_screen(machine):
    telemetry = machine([gpu_entry(i, util=float(i)) for i in range(16)])
    rows = monitor_rows(telemetry.snapshot(), telemetry.histories(), 80, 23, View(), UNICODE)
    text = ["".join(part for part, _ in row) for row in rows]
    assert sum(" H200 " in row and "/141" in row for row in text) == 16


def test_what_cannot_be_read_says_so(machine):
    telemetry = machine([{"index": 0, "name": "NVIDIA H200", "uuid": ""}])
    rows = monitor_rows(telemetry.snapshot(), {}, 120, 30, View(), UNICODE)
    text = "\n".join("".join(part for part, _ in row) for row in rows)
    line = next(row for row in text.splitlines() if " H200 " in row)
    assert line.split("H200")[1].count("n/a") == 8 and "0" not in line.split("H200")[1]


def test_mig_rows_have_memory_but_no_utilisation(machine):
    instance = {
        "index": 1,
        "name": "NVIDIA H200 MIG 3g.71gb",
        "uuid": "MIG-1",
        "mem_used": 22 * GIB,
        "mem_total": 71 * GIB,
    }
    telemetry = machine([gpu_entry(0, util=None, mig=[instance])])
    rows = monitor_rows(telemetry.snapshot(), {}, 120, 30, View(), UNICODE)
    line = next(row for row in ("".join(part for part, _ in row) for row in rows) if "MIG" in row)
    assert "0:1 MIG 3g.71gb" in line and "n/a" in line and "22.0/71.0" in line


def text_of(app):
    return "\n".join(view.text for view in app.screen.query(LineView))


async def test_keys(machine):
    telemetry = machine([gpu_entry(0), gpu_entry(1, util=7.0)])
    async with TopApp(telemetry).run_test(size=(80, 24)) as pilot:
        await pilot.pause(0.1)
        view = pilot.app.screen.query_one(GpuView)
        assert "▸0" in text_of(pilot.app)
        await pilot.press("right_square_bracket")
        assert "▸1" in text_of(pilot.app) and "GPU1 H200 · util 7%" in text_of(pilot.app)
        await pilot.press("right_square_bracket")
        assert "▸0" in text_of(pilot.app)
        await pilot.press("left_square_bracket")
        assert "▸1" in text_of(pilot.app)
        await pilot.press("s")
        assert view.view.sort == "util" and "sort: util" in text_of(pilot.app)
        await pilot.press("f")
        assert "0-100%" not in text_of(pilot.app)
        await pilot.press("f1")
        assert "cannot be read" in text_of(pilot.app)
        await pilot.press("space")
        assert "PAUSED" in text_of(pilot.app)
        await pilot.press("q")
    assert pilot.app.return_code == 0


async def test_it_follows_the_samples_repaints_nothing_without_one_and_can_pause(machine, tmp_path):
    telemetry = machine([gpu_entry(0, util=11.0)])
    async with TopApp(telemetry).run_test(size=(80, 24)) as pilot:
        await pilot.pause(0.1)
        screen = pilot.app.screen
        view = screen.query_one(GpuView)
        assert isinstance(screen, TopScreen) and "11%" in view.text
        written = view.rows_written
        for _ in range(20):
            screen._tick()
        assert view.rows_written == written
        machine_file(tmp_path / "m.json", [gpu_entry(0, util=99.0)])
        await pilot.press("space")
        telemetry.sample()
        screen._tick()
        assert "99%" not in view.text
        await pilot.press("space")
        assert "99%" in view.text


async def test_hostile_process_names_are_literal(machine):
    evil = process(5, kind="C", command="[red]x[/] [@click=app.quit]y[/] \x1b]0;t\x07", name="[/x]\x1b[2J")
    async with TopApp(machine([gpu_entry(0, processes=[evil], name="[bold]GPU\x1b[31m")])).run_test(
        size=(120, 30)
    ) as pilot:
        await pilot.pause(0.1)
        assert "[red]x[/] [@click=app.quit]y[/]" in text_of(pilot.app)
        assert "\x1b" not in text_of(pilot.app) and "\x07" not in text_of(pilot.app)


@pytest.mark.parametrize("dimensions", SIZES)
def test_picture(machine, snap_compare, dimensions):
    gpus = [
        gpu_entry(0),
        gpu_entry(1, util=0.0, mem_used=3 * GIB, power=78.0, temperature=34.0, processes=[]),
    ]
    assert snap_compare(
        TopApp(machine(gpus)), terminal_size=dimensions, run_before=lambda pilot: pilot.pause(0.1)
    )


def test_picture_without_gpu(machine, snap_compare):
    app = TopApp(machine([], **NO_GPU))
    assert snap_compare(app, terminal_size=(80, 24), run_before=lambda pilot: pilot.pause(0.1))


def test_picture_of_many_gpus_in_ascii(machine, snap_compare):
    app = TopApp(machine([gpu_entry(i, util=6.0 * i) for i in range(16)]), ascii=True)
    assert snap_compare(app, terminal_size=(80, 24), run_before=lambda pilot: pilot.pause(0.1))


def test_json_is_one_reading_with_nulls(machine):
    machine([gpu_entry(0, fan=None)])
    told = json.loads(top_json())
    assert told["gpus"][0]["fan"] is None and told["gpus"][0]["mem_total"] == 141 * GIB
    assert told["cpu"]["ram_total"] == 128 * GIB


def test_bad_options_are_one_clear_error(machine, monkeypatch):
    machine([])
    with pytest.raises(UsageError, match="interval"):
        run_top(interval=0)
    with pytest.raises(UsageError, match="--json"):
        run_top()
    with pytest.raises(UsageError, match="'nope'"):
        TopApp(Telemetry(), theme="nope")


def test_top_imports_no_engine_libraries():
    program = (
        "import sys, lmtop.tui.screens.top;"
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
