"""The load dialog and the start screen (check 36)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.dialogs import program, running, same_everywhere, screen_text, styles_of, type_into
from support.fake_backend import NO_MODEL, READY, FakeBackend, FakeTelemetry
from support.hub_server import Hub
from support.llama import write_llama
from support.model_list import DEMO, DEVICE, GIB, GPU, SMALL_GPU, broken, model, survey_of
from support.waiting import wait_until
from textual.color import Color
from textual.pilot import Pilot

from lmtop.engine import devices
from lmtop.engine.config import DeviceInfo, EngineConfig
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import ModelState, UsageError
from lmtop.tui import plans
from lmtop.tui.app import AppOptions, LmtopApp
from lmtop.tui.plans import Fields, Typed, matching
from lmtop.tui.presets import Presets
from lmtop.tui.render.glyphs import ASCII, UNICODE
from lmtop.tui.screens import load
from lmtop.tui.screens.load import LoadDialog
from lmtop.tui.widgets.choice import Choice
from lmtop.tui.widgets.field import Field
from lmtop.tui.widgets.models import ModelList
from lmtop.tui.widgets.panel import Panel

CONFIG = EngineConfig("demo")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the dialog finds; a test may put another survey there."""
    told = {"survey": survey_of()}
    monkeypatch.setattr(load, "survey", lambda config, reclaim: told["survey"])
    return told


def dialog(app: LmtopApp) -> LoadDialog:
    assert isinstance(app.screen, LoadDialog)
    return app.screen


async def opened(app: LmtopApp, pilot: Pilot[Any]) -> LoadDialog:
    if not isinstance(app.screen, LoadDialog):
        await pilot.press("f4")
    await wait_until(pilot, lambda: isinstance(app.screen, LoadDialog) and app.screen._survey is not None)
    await pilot.pause()
    return dialog(app)


def said(app: LmtopApp) -> str:
    return dialog(app).query_one("#status", Panel).text


async def mark(app: LmtopApp, pilot: Pilot[Any], name: str) -> None:
    """Type the name as a filter."""
    await type_into(pilot, "filter", name)
    chosen = dialog(app).chosen
    assert chosen is not None and name in chosen.name


# --- the start screen ----------------------------------------------------------------------------------------


async def test_lmtop_alone_welcomes_and_enter_chats_with_demo() -> None:
    backend = FakeBackend(NO_MODEL)
    async with running(backend, (80, 24)) as (app, pilot):
        await opened(app, pilot)
        text = screen_text(app)
        assert "Welcome to lmtop" in text and "Hugging Face hub id" in text
        assert "6 models here, 2 cannot be loaded" in text
        await pilot.press("enter")
        assert [config.model for config in backend.loads] == ["demo"]
        backend.loaded()
        await wait_until(pilot, lambda: app.screen is app.chat)
        await pilot.press("h", "i", "enter")
        await wait_until(pilot, lambda: bool(backend.requests))


async def test_escape_leaves_without_a_model_and_f4_comes_back_without_the_welcome() -> None:
    backend = FakeBackend(NO_MODEL)
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("escape")
        assert app.screen is app.chat and not backend.loads
        await opened(app, pilot)
        assert "Welcome" not in screen_text(app)


async def test_models_that_cannot_be_loaded_are_dimmed_with_the_reason_and_never_loaded() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        assert "architecture 'MixtralForCausalLM' not supported" in screen_text(app)
        usable, dimmed = styles_of(app, "Qwen2.5-0.5B")[0], styles_of(app, "Mixtral-8x7B")[0]
        assert Color.from_rich_color(dimmed.color).brightness < Color.from_rich_color(usable.color).brightness
        await mark(app, pilot, "Mixtral")
        await pilot.press("enter", "ctrl+f")
        assert not backend.loads
        assert screen_text(app).count("not supported") == 2  # in the list, and below in full


# --- choosing ----------------------------------------------------------------------------------------------------


async def test_filter_takes_words_in_any_case_and_arrows_move() -> None:
    async with running(FakeBackend()) as (app, pilot):
        await opened(app, pilot)
        await type_into(pilot, "filter", "INSTRUCT qwen")
        assert getattr(dialog(app).chosen, "name", "") == "Qwen/Qwen2.5-0.5B-Instruct"
        await type_into(pilot, "filter", "instruct")
        await pilot.press("down")
        assert getattr(dialog(app).chosen, "name", "") == "Qwen/Qwen2.5-0.5B-Instruct"
        await pilot.press("up", "up")
        assert getattr(dialog(app).chosen, "name", "").startswith("meta-llama")


@pytest.mark.parametrize(
    ("query", "offers"),
    [
        ("acme/tiny", "fetch from the hub"),
        ("/models/own", "open this directory"),
        ("~/own", "open this directory"),
        ("nothing like it", "open this directory"),
        ("demo", ""),
        ("Qwen/Qwen2.5-0.5B-Instruct", ""),
        ("llama", ""),
    ],
)
def test_a_path_or_hub_id_that_is_not_listed_is_offered(query: str, offers: str) -> None:
    items = matching(survey_of().models, query)
    typed = [item for item in items if isinstance(item, Typed)]
    assert [item.what for item in typed] == ([offers] if offers else [])


async def test_everything_can_be_done_with_the_mouse() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        screen = await opened(app, pilot)
        await pilot.click(ModelList, offset=(10, 2))
        assert getattr(screen.chosen, "name", "").startswith("Qwen") and not backend.loads
        await pilot.click("#dtype", offset=(9, 0))
        assert screen.fields.dtype == "float32"
        await pilot.click("#dtype", offset=(5, 0))
        assert screen.fields.dtype == "auto"
        await pilot.click("#context")
        await pilot.press(*"8k")
        await pilot.click(ModelList, offset=(10, 2))  # the marked one: load
        assert (backend.loads[0].model, backend.loads[0].session_len) == ("Qwen/Qwen2.5-0.5B-Instruct", 8192)
        await pilot.click("#hints", offset=(3, 0))  # esc, while it loads
        await wait_until(pilot, lambda: "cancelled" in screen_text(app))
        await pilot.click("#hints", offset=(3, 0))  # enter
        assert len(backend.loads) == 2


async def test_wheel_and_page_keys_reach_every_one_of_many_models(found: dict[str, Any]) -> None:
    found["survey"] = survey_of(DEMO, *(model(f"org/model-{i:03}", 10**9) for i in range(200)))
    async with running(FakeBackend(), (80, 24)) as (app, pilot):
        screen = await opened(app, pilot)
        assert "more" in screen_text(app)
        await pilot.press("pagedown")
        assert getattr(screen.chosen, "name", "") == "org/model-007"
        for _ in range(30):
            screen.action_move(8)
        await pilot.pause()
        assert getattr(screen.chosen, "name", "") == "org/model-199"
        assert "org/model-199" in screen_text(app)
        screen.query_one(ModelList).on_mouse_scroll_up()
        assert getattr(screen.chosen, "name", "") == "org/model-198"


# --- the prediction -----------------------------------------------------------------------------------------------


async def test_each_field_changes_the_prediction_at_once() -> None:
    """Check 36: within 50 ms of each key."""
    async with running(FakeBackend()) as (app, pilot):
        screen = await opened(app, pilot)
        await mark(app, pilot, "Llama")
        for field, text in (("context", "4096"), ("slots", "64"), ("cache", "1GiB")):
            before = screen.query_one("#prediction", Panel).text
            await type_into(pilot, field, text)
            assert screen.query_one("#prediction", Panel).text != before, field
            times = []
            for _ in range(5):
                started = time.process_time()
                screen._fields_changed()
                times.append(time.process_time() - started)
            assert min(times) < 0.05, field


async def test_the_type_changes_the_marked_row() -> None:
    async with running(FakeBackend()) as (app, pilot):
        await opened(app, pilot)
        assert "▸ fp32/fp32" in screen_text(app)
        await pilot.press("tab", "right", "right")
        assert "▸ bf16/bf16" in screen_text(app)


async def test_what_does_not_fit_is_red_and_says_by_how_much_and_what_would_fit() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "Llama")
        await type_into(pilot, "context", "131072")
        await type_into(pilot, "cache", "900GiB")
        text = " ".join(screen_text(app).split())
        assert "does not fit:" in text and "GiB more than the" in text
        assert "largest context that would fit is" in text
        red = app.get_css_variables()["error"]
        for words in ("G over", "does not fit"):
            assert Color.from_rich_color(styles_of(app, words)[0].color).hex == Color.parse(red).hex
        await pilot.press("ctrl+f")
        assert (backend.loads[0].force, backend.loads[0].cache_bytes) == (True, 900 * GIB)


async def test_enter_leaves_the_refusal_to_the_engine_and_stays_open() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "mistral-large")
        await pilot.press("enter")
        assert backend.loads[0].force is False
        backend.tell(ModelState("failed", "x", message="not enough memory on CPU: needs 230.5 GiB"))
        await wait_until(pilot, lambda: "not enough memory on CPU" in screen_text(app))
        assert dialog(app) and styles_of(app, "not enough memory")[-1].bold


BAD_FIELDS = (
    ("context", "12x", "context = '12x': must be a whole number"),
    ("context", "3", "context = 3: must be at least 16"),
    ("slots", "0", "slots = 0: must be from 1 to 512"),
    ("slots", "9999", "slots = 9999: must be from 1 to 512"),
    ("cache", "lots", "KV cache = 'lots': must be a size such as 2GiB"),
)


async def test_a_bad_field_is_named_and_nothing_is_loaded() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        screen = await opened(app, pilot)
        for field, text, words in BAD_FIELDS:
            widget = screen.query_one(f"#{field}", Field)
            good, widget.value = widget.value, text
            await pilot.pause()
            assert words in screen_text(app)
            await pilot.press("enter")
            assert not backend.loads and dialog(app)
            widget.value = good


def fields(**typed: str) -> Fields:
    """The dialog's fields, all as the program chooses but these."""
    nothing = {"dtype": "auto", "weights": "auto", "kv": "auto", "context": "", "slots": "", "cache": ""}
    return Fields(**(nothing | typed))


def test_fields_describe_the_intent_and_give_it_back() -> None:
    config = replace(
        CONFIG,
        dtype="bfloat16",
        weights="int4",
        kv="int8",
        session_len=4096,
        max_batch_size=3,
        cache_bytes=2 * GIB,
    )
    assert Fields.of(config).apply(CONFIG, "m") == replace(config, model="m")
    empty = fields()
    assert empty.apply(replace(CONFIG, max_batch_size=5), "m") == replace(CONFIG, model="m", max_batch_size=5)
    assert fields(context="32k", slots="8").apply(CONFIG, "m").session_len == 32768
    with pytest.raises(UsageError, match="context"):
        fields(context="1.5").apply(CONFIG, "m")


def table(config: EngineConfig, name: str, device: DeviceInfo) -> list[str]:
    """The rows of a prediction, 76 cells wide."""
    (sizes,) = [sizes for key, sizes in survey_of().sizes.items() if name in key]
    _, rows = plans.prediction(config, sizes, device, 76, UNICODE)
    return ["".join(text for text, _ in row) for row in rows]


@pytest.mark.parametrize("device", [DEVICE, GPU, SMALL_GPU], ids=lambda device: device.name)
@pytest.mark.parametrize("name", ["demo", "Llama", "Qwen", "mistral-large"])
def test_rows_of_the_table_keep_their_columns(name: str, device: DeviceInfo) -> None:
    rows = table(CONFIG, name, device)
    assert max(map(len, rows)) <= 76 and len(rows) == plans.TABLE
    assert len({len(row.split(" tok ")[0]) for row in rows[1:-1]}) == 1


def test_a_gpu_shows_each_of_the_six_policies() -> None:
    header, *rows, bar = table(replace(CONFIG, weights="int4", kv="int8"), "Llama", GPU)
    assert header.split() == ["VRAM", "weights", "KV/token", "KV", "holds", "workspace", "in", "all"]
    assert [row[2:].split()[0] for row in rows] == [
        "bf16/bf16", "bf16/int8", "bf16/int4", "int4/bf16", "int4/int8", "int4/int4"
    ]  # fmt: skip
    assert [row[0] for row in rows] == [" "] * 4 + ["▸", " "]
    figures = [row[2:].split() for row in rows]
    assert [row[1] for row in figures] == ["15.0G"] * 3 + ["5.4G"] * 3
    assert [row[2] for row in figures] == ["128K", "66K", "34K"] * 2
    assert [row[3] for row in figures[:3]] == ["704k", "1.3M", "2.6M"]
    assert all(row.endswith("  fits") for row in rows) and bar.endswith("102G of 126G free")
    chosen = table(replace(CONFIG, dtype="float16"), "Llama", GPU)
    assert chosen[1].startswith("▸ fp16/fp16") and chosen[6].startswith("  int4/int4")


def test_what_does_not_fit_on_a_small_gpu_says_by_how_much() -> None:
    asked = replace(CONFIG, session_len=8192)
    rows = table(asked, "Llama", SMALL_GPU)[1:-1]
    assert [row.split("  ")[-1] for row in rows] == [
        "6.0G over",
        "5.5G over",
        "5.3G over",
        "fits",
        "fits",
        "fits",
    ]
    rows = table(replace(asked, cache_bytes=GIB // 2), "Llama", SMALL_GPU)[1:-1]
    assert [row.split("  ")[-1] for row in rows[3:]] == ["KV small", "KV small", "fits"]


@pytest.mark.parametrize(
    ("chosen", "names", "marked"),
    [
        ({}, "fp32/fp32 bf16/bf16 fp32/int8 int4/fp32 int4/int8 int4/int4", 0),
        ({"kv": "int4"}, "fp32/fp32 bf16/bf16 fp32/int4 int4/fp32 int4/int8 int4/int4", 2),
        ({"dtype": "bfloat16"}, "fp32/fp32 bf16/bf16 bf16/int8 int4/bf16 int4/int8 int4/int4", 1),
        (
            {"dtype": "float16", "weights": "int4"},
            "fp32/fp32 fp16/fp16 fp16/int8 int4/fp16 int4/int8 int4/int4",
            3,
        ),
    ],
)
def test_the_cpu_compares_types_as_well_and_always_marks_the_chosen(
    chosen: dict[str, Any], names: str, marked: int
) -> None:
    header, *rows, _ = table(replace(CONFIG, **chosen), "demo", DEVICE)
    assert header.split()[0] == "RAM"
    assert [row[2:].split()[0] for row in rows] == names.split()
    assert [row[0] == "▸" for row in rows] == [place == marked for place in range(6)]


async def test_weights_and_kv_are_chosen_with_the_keys_and_loaded(found: dict[str, Any]) -> None:
    found["survey"] = survey_of(device=GPU)
    backend = FakeBackend()
    async with running(backend, (80, 24)) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "Llama")
        assert "▸ bf16/bf16" in screen_text(app)
        await pilot.press("tab", "tab", "right", "right")
        assert "▸ int4/bf16" in screen_text(app)
        await pilot.press("tab", "left")
        assert "▸ int4/int4" in screen_text(app) and "int4/int8" in screen_text(app)
        choices = app.screen.query(Choice)
        assert [choice.id for choice in choices if "selected" in dict(choice._rows[0]).values()] == ["kv"]
        await pilot.press("enter")
        assert (backend.loads[0].weights, backend.loads[0].kv) == ("int4", "int4")


async def test_a_type_that_the_gpu_does_not_have_is_named(found: dict[str, Any]) -> None:
    found["survey"] = survey_of(device=GPU)
    async with running(FakeBackend(), (80, 24)) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("tab", "right")
        assert "a GPU computes in float16 or bfloat16" in " ".join(screen_text(app).split())


async def test_a_gpu_in_vain_is_said_and_what_is_loaded_counts_as_free(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def device_info(wanted: str, reclaim: int) -> DeviceInfo:
        asked.append((wanted, reclaim))
        return replace(DEVICE, notice="running on the CPU, not on NVIDIA H200: CuPy is missing")

    monkeypatch.setattr(devices, "device_info", device_info)
    monkeypatch.setattr(load, "survey", plans.survey)
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "demo")
        assert "not on NVIDIA H200: CuPy is missing" in said(app)
    memory = backend.snapshot().memory
    assert memory is not None
    assert asked == [("auto", memory.weights + memory.kv_used + memory.kv_rest)]


# --- loading -----------------------------------------------------------------------------------------------------


async def test_progress_is_shown_and_escape_cancels_and_the_dialog_stays() -> None:
    """Check 36: esc during load frees."""
    backend = FakeBackend(READY)
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "Llama")
        await pilot.press("enter")
        backend.tell(ModelState("loading", "m", 0.43, "reading the weights: shard 2 of 4"))
        await wait_until(pilot, lambda: "43% reading the weights: shard 2 of 4" in said(app))
        await pilot.press("enter")
        assert len(backend.loads) == 1  # one at a time
        await pilot.press("escape")
        await wait_until(pilot, lambda: "loading was cancelled" in said(app))
        assert backend.state is NO_MODEL and dialog(app)
        await pilot.press("enter")
        backend.loaded()
        await wait_until(pilot, lambda: app.screen is app.chat)


@pytest.mark.parametrize("before", [READY, ModelState("failed", "old", message="the failure before")])
async def test_the_state_before_the_load_is_not_taken_for_its_result(before: ModelState) -> None:
    backend = FakeBackend(before)
    backend.load = lambda config: backend.loads.append(config)  # type: ignore[method-assign]
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("enter")
        assert said(app).strip() == "starting"
        late = replace(READY, name="said before the load was asked for")
        for state in (
            late,
            ModelState("unloading", "old"),
            NO_MODEL,
            ModelState("loading", "demo", 0.5, "half"),
        ):
            backend.tell(state)
            await wait_until(pilot, lambda state=state: app.replies.model is state)
        assert "half" in said(app)
        backend.loaded()
        await wait_until(pilot, lambda: app.screen is app.chat)


async def test_a_failed_load_is_said_in_the_dialog_though_the_model_before_is_ready_again() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("enter")
        backend.tell(ModelState("loading", "new", 0.5, "half"))
        backend.tell(ModelState("failed", "new", message="new: no config.json"))
        backend.tell(READY)  # at once: all three arrive together
        await wait_until(pilot, lambda: app.replies.model is READY and "no config.json" in said(app))
        assert not dialog(app).busy and not list(app._notifications)
        await pilot.press("escape")
        assert app.screen is app.chat and "local cpu" in screen_text(app).split("\n")[0]


async def test_a_failed_load_without_the_dialog_is_one_notice_and_the_header_is_ready_again() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        for state in (ModelState("loading", "new"), ModelState("failed", "new", message="no config"), READY):
            backend.tell(state)
        await wait_until(pilot, lambda: app.replies.model is READY and len(app._notifications) > 0)
        assert [notice.message for notice in app._notifications] == ["model failed: no config"]
        assert "local cpu" in screen_text(app).split("\n")[0]


async def test_a_load_under_way_is_taken_over() -> None:
    backend = FakeBackend(ModelState("loading", "big", 0.2, "reading the weights"))
    async with running(backend) as (app, pilot):
        await wait_until(pilot, lambda: app.replies.model.status == "loading")
        await opened(app, pilot)
        await wait_until(pilot, lambda: "20% reading the weights" in said(app))
        await pilot.press("escape")
        await wait_until(pilot, lambda: "loading was cancelled" in said(app))


async def test_a_long_failure_can_be_read_to_its_end_at_80_columns_and_is_said_once() -> None:
    backend = FakeBackend(NO_MODEL)
    text = (
        "acme/private: the hub refuses access (HTTP 401): it is private, needs its terms accepted, or does not "
        "exist; check the name, then log in with `hf auth login` or set HF_TOKEN"
    )
    async with running(backend, (80, 24)) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("enter")
        backend.tell(ModelState("failed", "acme/private", message=text))
        await wait_until(pilot, lambda: "set HF_TOKEN" in screen_text(app))
        assert " ".join(said(app).split()) == text
        assert "esc later" in screen_text(app) and not list(app._notifications)


async def test_the_dialog_comes_back_as_it_was_left() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "Qwen2.5")
        await type_into(pilot, "context", "4k")
        await pilot.press("ctrl+f")
        backend.loaded()
        await wait_until(pilot, lambda: app.screen is app.chat)
        screen = await opened(app, pilot)
        assert getattr(screen.chosen, "name", "") == "Qwen/Qwen2.5-0.5B-Instruct"
        assert screen.fields.context == "4096"
        await pilot.press("enter")
        assert backend.loads[-1].force is False  # that has to be asked for each time


async def test_names_and_problems_are_shown_literally(found: dict[str, Any]) -> None:
    hostile = "/m/[@click=app.quit]x[/]\x1b[31m\u202e"
    found["survey"] = survey_of(
        DEMO, model(hostile, 10**9), broken("[red]b", "[/x] \x07 bad"), problem="[bold]\x1b]0;t"
    )
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        text = screen_text(app)
        assert "[@click=app.quit]x[/]␛[31m<U+202E>" in text and "[red]b" in text and "[/x] ␇ bad" in text
        assert "\x1b" not in text and "\x07" not in text
        await pilot.press("down", "enter")
        assert backend.loads[0].model == hostile  # what is loaded is the name itself
        backend.tell(ModelState("failed", hostile, message=f"{hostile}: [bold]no\x1b[m"))
        await wait_until(pilot, lambda: "[bold]no␛[m" in screen_text(app))
        assert "\x1b" not in screen_text(app)


async def test_ascii_has_a_twin_for_every_character_of_the_dialog() -> None:
    async with running(FakeBackend(NO_MODEL), ascii=True) as (app, pilot):
        await opened(app, pilot)
        assert "?" not in ASCII.plain(screen_text(app))
        assert ASCII.plain(screen_text(app)).isascii()


# --- for real ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        server.add("acme/tiny", write_llama(tmp_path / "tiny", hidden=256))
        server.pause = threading.Event()
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


async def test_a_hub_id_is_downloaded_cancelled_and_then_loaded(hub: Hub) -> None:
    backend = LocalBackend()
    app = LmtopApp(AppOptions(backend=backend, telemetry=FakeTelemetry()))
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_until(pilot, lambda: app.chat.session is not None)
        await opened(app, pilot)
        await type_into(pilot, "filter", "acme/tiny")
        assert "fetch from the hub" in screen_text(app)
        await pilot.press("enter")
        await wait_until(pilot, lambda: "downloading acme/tiny" in screen_text(app), 30)
        await pilot.press("escape")
        assert hub.pause is not None
        hub.pause.set()
        await wait_until(pilot, lambda: "loading was cancelled" in said(app), 30)
        assert backend.snapshot().memory is None
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.screen is app.chat, 60)
        assert app.replies.model.name == "tiny"
        backend.close()


def test_the_survey_lists_what_loads_first_and_names_missing_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    good = write_llama(tmp_path / "models" / "b-good")
    bad = tmp_path / "models" / "a-bad"
    bad.mkdir()
    (bad / "config.json").write_text("{")
    seen = plans.survey(replace(CONFIG, folders=(str(tmp_path / "models"), str(tmp_path / "gone"))))
    names = [item.name for item in seen.models]
    assert names.index(str(good)) < names.index(str(bad))
    assert "gone" in seen.problem and seen.device is not None
    assert seen.sizes[str(good)].layers == 2 and str(bad) not in seen.sizes


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_start_screen(size: tuple[int, int], snap_compare: Any) -> None:
    with same_everywhere():
        app = program(FakeBackend(NO_MODEL))

        async def play(pilot: Pilot[Any]) -> None:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await opened(app, pilot)

        assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_load_dialog_with_a_model_that_does_not_fit(size: tuple[int, int], snap_compare: Any) -> None:
    with same_everywhere():
        app = program(FakeBackend())

        async def play(pilot: Pilot[Any]) -> None:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await opened(app, pilot)
            await pilot.press("down", "down", "down")

        assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_load_dialog_on_a_gpu(size: tuple[int, int], snap_compare: Any, found: dict[str, Any]) -> None:
    """Six policies, some of which do not fit."""
    found["survey"] = survey_of(device=SMALL_GPU)
    with same_everywhere():
        app = program(FakeBackend())

        async def play(pilot: Pilot[Any]) -> None:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await opened(app, pilot)
            await pilot.press("down", "tab", "tab", "right", "right", "tab", "right", "right")

        assert snap_compare(app, terminal_size=size, run_before=play)


# --- presets -----------------------------------------------------------------------------------------------------


def values(app: LmtopApp) -> tuple[str, str, str]:
    shown = dialog(app).fields
    return shown.weights, shown.kv, shown.context


async def test_a_model_comes_back_as_it_was_loaded_last(tmp_path: Path, found: dict[str, Any]) -> None:
    found["survey"] = survey_of(device=GPU)
    path = tmp_path / "data" / "presets.json"
    backend = FakeBackend()
    async with running(backend, presets=path) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "Llama")
        await pilot.press("tab", "tab", "right", "right", "tab", "left")
        dialog(app).query_one("#context", Field).value = "4k"
        await pilot.pause()
        assert values(app) == ("int4", "int4", "4k")
        assert "until LMDeploy 0.4 that number meant int8" in " ".join(said(app).split())
        await pilot.press("enter")
        assert not path.exists()  # not before it is loaded
        backend.loaded()
        await wait_until(pilot, lambda: app.screen is app.chat)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["presets.json"]

    async with running(FakeBackend(), presets=path) as (app, pilot):
        await opened(app, pilot)
        await mark(app, pilot, "Qwen")
        assert values(app) == ("auto", "auto", "")
        await mark(app, pilot, "Llama")
        assert values(app) == ("int4", "int4", "4k")
        assert "as this model was loaded last" in said(app)
        await mark(app, pilot, "Qwen")
        assert values(app) == ("auto", "auto", "")
        dialog(app).query_one("#context", Field).value = "512"
        await mark(app, pilot, "Llama")
        assert values(app) == ("auto", "auto", "512")  # what somebody typed stays


async def test_flags_outrank_a_preset_on_the_start_screen(tmp_path: Path) -> None:
    path = tmp_path / "presets.json"
    Presets(path).keep("demo", fields(weights="int4"))
    async with running(FakeBackend(NO_MODEL), presets=path) as (app, pilot):
        await opened(app, pilot)
        assert values(app)[0] == "int4"
    asked = replace(CONFIG, kv="int8")
    async with running(FakeBackend(NO_MODEL), presets=path, engine=asked) as (app, pilot):
        await opened(app, pilot)
        assert values(app) == ("auto", "int8", "")


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        '{"demo": 5}',
        '{"demo": {"weights": "int4"}}',
        '{"demo": {"dtype": "auto", "weights": "int2", "kv": "auto", "context": "", "slots": "", "cache": ""}}',
        '{"demo": {"dtype": "auto", "weights": "auto", "kv": "auto", "context": 5, "slots": "", "cache": ""}}',
    ],
)
def test_a_spoilt_file_of_presets_counts_as_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "presets.json"
    path.write_text(text)
    presets = Presets(path)
    assert presets.get("demo") is None
    presets.keep("demo", fields(kv="int8"))
    assert presets.get("demo") == fields(kv="int8")
    for number in range(300):
        presets.keep(f"m{number}", fields())
    assert presets.get("demo") is None and presets.get("m299") == fields()
    nowhere = Presets(path / "below" / "a file")
    nowhere.keep("demo", fields())
    assert nowhere.get("demo") is None
