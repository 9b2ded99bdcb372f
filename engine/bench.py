"""`lmtop bench`: the static benchmark. Each load (weights and KV format) is measured over batch sizes and prompt lengths."""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..quant.kv import KV_FORMATS
from .answer import show_loading
from .bench_flags import numbers
from .bench_measure import Bench, Cell, Stopped, middle
from .bench_report import Report, Setup, document, write_csv
from .config import WEIGHT_FORMATS, EngineConfig
from .hardware import release_pool
from .loader import Engine, Prepared, build, prepare
from .text import one_line
from .types import Cancelled, DeviceError, LmtopError, ModelState, UsageError

if TYPE_CHECKING:
    from .arguments import Options

# Rows that have their first token generate on while others are still prefilled: room for that.
EARLY = 256
UNHURRIED_MS = 1e6  # prompts come in whole chunks: nobody waits for a token meanwhile


@dataclass(frozen=True, slots=True)
class Grid:
    """What is asked for. Every pair of formats is one load; every cell is measured `repeat` times on each."""

    cells: tuple[Cell, ...]
    weights: tuple[str, ...]
    kvs: tuple[str, ...]
    new_tokens: int
    repeat: int

    @property
    def loads(self) -> tuple[tuple[str, str], ...]:
        return tuple((weights, kv) for weights in self.weights for kv in self.kvs)


def run_bench(options: Options) -> int:
    """Print a table (--json: one document; --csv: a file too). 130 when Ctrl-C ended it; what was measured by
    then is there."""
    extra = options.extra
    require_model(options)
    if extra["tutorial"]:
        from .bench_tutorial import run_tutorial

        return run_tutorial(options)
    grid = _grid(extra)
    config = _config(options, grid)
    if extra["baseline"] and extra["random_weights"]:
        raise UsageError("--baseline needs a MODEL: transformers reads its files")
    with _csv_file(extra["csv"]) as file, interruptible() as stopped:
        runs = len(grid.loads) * len(grid.cells)
        report = Report(options.values["json"], runs, bool(extra["baseline"]))
        about: dict[str, Any] = {"new_tokens": grid.new_tokens, "repeat": grid.repeat}
        ended = False
        try:
            about |= _measure(config, grid, report, extra, stopped)
        except (Stopped, Cancelled):
            ended = True
        report.clear()
        if options.values["json"]:
            print(json.dumps(document(about, report), indent=1))
        if file is not None:
            write_csv(file, report)
    return 130 if ended else 0


def require_model(options: Options) -> None:
    """UsageError unless there is exactly one of MODEL and --random-weights."""
    if (options.model is None) == (options.extra["random_weights"] is None):
        raise UsageError("give a MODEL, or --random-weights CONFIG instead: `lmtop bench demo`")


def _measure(
    config: EngineConfig, grid: Grid, report: Report, extra: dict[str, Any], stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Fill `report`; what was measured on. A load that the device has no room for is left out and noted; when
    nothing could be loaded, its error is raised."""
    about: dict[str, Any] = {}
    problem: LmtopError | None = None
    for weights, kv in grid.loads:
        wanted = replace(config, weights=weights, kv=kv)
        try:
            prepared = prepare_model(wanted, bool(extra["random_weights"]), stopped)
            if extra["baseline"] and not about:
                _baseline(prepared, grid, report, stopped)
            about = about or {"model": config.model, "device": prepared.device.name}
            setup = _load_and_measure(prepared, grid, report, stopped)
            report.summary(setup)
        except (DeviceError, MemoryError) as error:
            # a new one: the traceback of `error` would keep the model
            problem = DeviceError(str(error) if isinstance(error, DeviceError) else f"out of memory: {error}")
            report.note(f"weights {weights}, kv {kv}: left out: {problem}")
            report.advance(len(grid.cells))
        finally:
            free()
    if problem is not None and not report.setups:
        raise problem
    return about


def prepare_model(config: EngineConfig, made_up: bool, stopped: Callable[[], bool]) -> Prepared:
    """What `build` needs, of a model's files or of a shape without any."""
    if made_up:
        from .random_weights import prepare_random

        return prepare_random(config)
    return prepare(config, show_load(config), stopped)


def _load_and_measure(prepared: Prepared, grid: Grid, report: Report, stopped: Callable[[], bool]) -> Setup:
    started = time.monotonic()
    engine = build(prepared, show_load(prepared.config), stopped)
    bench = Bench(engine, stopped)
    setup = _setup(engine, bench, time.monotonic() - started)
    if prepared.device.kind == "cpu" and (report.setups or report.baseline):
        setup.measured = None  # the process still holds what earlier models took
    report.setups.append(setup)
    cells = []
    for cell in grid.cells:
        if why := bench.problem(cell, grid.new_tokens):
            report.note(f"batch {cell.batch}, prompt {cell.prompt}: left out: {why}")
            report.advance()
        else:
            cells.append(cell)
    name = f"weights {setup.weights}, kv {setup.kv}"
    if cells:
        report.working(f"{name}: warming up")
        bench.warm_up(cells)
        setup.short_ttft_ms = bench.short_ttft_ms()
    for cell in cells:
        report.working(f"{name}, batch {cell.batch}, prompt {cell.prompt}")
        samples = [bench.run(cell, grid.new_tokens) for _ in range(grid.repeat)]
        report.advance()
        report.row(setup, cell, middle(samples))
    return setup


def _setup(engine: Engine, bench: Bench, load_s: float) -> Setup:
    memory = bench.loop.latest.memory
    measured = None
    if memory is not None and memory.total is not None:
        measured = memory.weights + memory.kv_used + memory.kv_rest + memory.workspace
    return Setup(
        weights=engine.info.weights,
        kv=engine.info.kv,
        planned=engine.plan.total,
        measured=measured,
        weights_bytes=engine.weights_bytes,
        kv_bytes=engine.kv_bytes,
        load_s=load_s,
    )


def _baseline(prepared: Prepared, grid: Grid, report: Report, stopped: Callable[[], bool]) -> None:
    from .bench_baseline import measure_baseline

    report.working("transformers")
    try:
        for cell, rate in measure_baseline(
            prepared.directory,
            prepared.plan.dtype,
            prepared.device.kind,
            grid.cells,
            grid.new_tokens,
            stopped,
        ):
            report.baseline[cell] = rate
            report.working(f"transformers, batch {cell.batch}, prompt {cell.prompt}: done")
    except LmtopError as error:
        report.note(f"no baseline: {error}")


def free() -> None:
    """Give back what the last load took; its references are gone."""
    gc.unfreeze()
    gc.collect()
    release_pool()


def show_load(config: EngineConfig) -> Callable[[float, str], None]:
    """The progress line of a load."""

    def show(share: float, text: str) -> None:
        state = "loading" if share < 1 else "ready"
        show_loading(ModelState(state, config.model, share, text))  # type: ignore[arg-type]

    return show


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed. A second one interrupts whatever runs."""
    asked = False

    def interrupt(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _csv_file(name: str | None) -> Iterator[IO[str] | None]:
    """The file of --csv, opened before anything is measured."""
    if name is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("w", newline="", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--csv = {one_line(name, 80)!r}: cannot write: {error.strerror}") from None
        yield file


# --- what is asked ---------------------------------------------------------------------------------------------


def _config(options: Options, grid: Grid) -> EngineConfig:
    """The engine's settings for this grid: room for its largest batch and longest text."""
    longest = max(cell.prompt for cell in grid.cells) + grid.new_tokens + EARLY
    return replace(
        options.engine_config(options.model or options.extra["random_weights"]),
        session_len=max(16, longest),
        max_batch_size=max(cell.batch for cell in grid.cells),
        step_ms_target=UNHURRIED_MS,
    )


def _grid(extra: dict[str, Any]) -> Grid:
    batches = numbers("--batch", extra["batches"] or "1,16,64", 512)
    prompts = numbers("--prompt", extra["prompts"] or "64,2048", 1 << 20)
    return Grid(
        cells=tuple(Cell(batch, prompt) for batch in batches for prompt in prompts),
        weights=_choices("--weights", extra["weight_formats"] or "16", WEIGHT_FORMATS),
        kvs=_choices("--kv", extra["kvs"] or "16", KV_FORMATS),
        new_tokens=numbers("--new-tokens", extra["new_tokens"] or "256", 1 << 20, many=False, low=2)[0],
        repeat=numbers("--repeat", extra["repeat"] or "3", 1000, many=False)[0],
    )


def _choices(flag: str, text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(chosen) <= set(allowed):
        raise UsageError(f"{flag} = {one_line(text, 60)!r}: must be some of {', '.join(allowed)}")
    return chosen
