"""`lmtop bench --serve URL`: how fast a server answers many clients. Any OpenAI-compatible server; no torch."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from .answer import say
from .bench_flags import numbers
from .bench_serve_arguments import EACH
from .bench_traffic import CONNECT_S, SILENCE_S, Answered, Traffic, questions
from .remote_address import key_from_environment, key_from_file, parse_address
from .text import one_line
from .types import RemoteError, UsageError

if TYPE_CHECKING:
    from .arguments import Options

LEAST = 24
COLUMNS = (
    ("STREAMS", 7),
    ("RATE/S", 6),
    ("OK", 5),
    ("FAILED", 6),
    ("REQ/S", 7),
    ("OUT/S", 8),
    ("IN/S", 8),
    ("TTFT p50", 9),
    ("p90", 7),
    ("p99 ms", 7),
    ("TPOT p50", 9),
    ("p99 ms", 7),
    ("E2E p50", 8),
    ("p99 s", 7),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One row: so many streams at once, or so many requests a second (then `streams` is 0)."""

    streams: int
    rate: float
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """What one run measured. Rates per second, times in milliseconds (end to end in seconds); None: nothing to tell."""

    streams: int
    rate: float
    ok: int
    failed: int
    seconds: float
    requests_per_s: float
    out_per_s: float
    in_per_s: float
    ttft_p50: float | None
    ttft_p90: float | None
    ttft_p99: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    e2e_p50: float | None
    e2e_p99: float | None
    errors: dict[str, int]


def run_bench_serve(options: Options) -> int:
    """Print a table (--json: one document; --csv: a file too). 130 when Ctrl-C ended it."""
    extra = options.extra
    if options.model is not None or extra["random_weights"] is not None:
        raise UsageError("--serve measures a server: give no MODEL")
    count = _one(extra["serve_prompts"], "--num-prompts", 1 << 20)
    runs = [
        Run(streams, 0.0, count or max(LEAST, EACH * streams))
        for streams in numbers("--batch", extra["batches"] or "1,8,64", 4096)
    ]
    if extra["serve_rates"] is not None:
        runs = [Run(0, rate, count or max(LEAST, int(20 * rate))) for rate in _rates(extra["serve_rates"])]
    rows: list[Row] = []
    with ExitStack() as stack:
        file = None
        if extra["csv"] is not None:
            try:
                file = stack.enter_context(Path(extra["csv"]).open("w", newline="", encoding="utf-8"))
            except OSError as error:
                raise UsageError(
                    f"--csv = {one_line(extra['csv'], 80)!r}: cannot write: {error.strerror}"
                ) from None
        code = 0
        try:
            asyncio.run(_measure(options, runs, rows))
        except KeyboardInterrupt:
            code = 130
        if options.values["json"]:
            print(json.dumps({"url": extra["serve_url"], "runs": [asdict(row) for row in rows]}, indent=1))
        if file is not None:
            write_csv(file, rows)
    return code


async def _measure(options: Options, runs: Sequence[Run], rows: list[Row]) -> None:
    extra = options.extra
    address = parse_address(extra["serve_url"])
    headers: dict[str, str] = {}
    if extra["serve_key_env"] is not None:
        headers = key_from_environment(extra["serve_key_env"]).header
    elif extra["serve_key_file"] is not None:
        headers = key_from_file(extra["serve_key_file"]).header
    prompt = _one(extra["prompts"], "--prompt", 1 << 20)
    new_tokens = _one(extra["new_tokens"], "--new-tokens", 1 << 20)
    seed = _one(extra["serve_seed"], "--load-seed", 2**31, low=0) or 0
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S, pool=None)
    async with httpx.AsyncClient(
        base_url=address.origin,
        headers=headers,
        limits=limits,
        timeout=timeout,
        trust_env=not address.loopback,
    ) as client:
        model = extra["serve_model"] or await _first_model(client, address.paths[0], address.place)
        traffic = Traffic(client, f"{address.paths[0]}/chat/completions", model)
        if problem := await traffic.probe():
            raise RemoteError(f"{address.place}: {one_line(problem, 120)}")
        if not options.values["json"]:
            eos = "" if traffic.ignores_eos else "; it knows no ignore_eos, so answers end where they do"
            say(f"{address.place}, model {one_line(model, 60)}{eos}")
            print(" ".join(f"{name:>{width}}" for name, width in COLUMNS), flush=True)
        for run in runs:
            asked = questions(run.count, seed, prompt, new_tokens)
            progress = _Progress(run.count)
            started = time.perf_counter()
            if run.rate:
                answers = await traffic.at_rate(asked, run.rate, seed, progress.one_more)
            else:
                answers = await traffic.at_once(asked, run.streams, progress.one_more)
            row = row_of(run, answers, time.perf_counter() - started)
            progress.clear()
            rows.append(row)
            if not options.values["json"]:
                print(line_of(row), flush=True)
                for error, count in row.errors.items():
                    say(f"{count} requests failed: {error}")


async def _first_model(client: httpx.AsyncClient, path: str, place: str) -> str:
    try:
        answer = await client.get(f"{path}/models")
        models = [card["id"] for card in answer.json()["data"]] if answer.status_code == 200 else []
    except httpx.HTTPError as error:
        raise RemoteError(f"{place}: cannot be reached: {one_line(str(error), 120)}") from None
    except (ValueError, KeyError, TypeError):
        raise RemoteError(f"{place}: its list of models is not OpenAI's") from None
    if answer.status_code != 200:
        raise RemoteError(f"{place}: HTTP {answer.status_code} for its list of models")
    if not models:
        raise RemoteError(f"{place}: it serves no model now")
    return str(models[0])


# --- figures -----------------------------------------------------------------------------------------------


def row_of(run: Run, answers: Sequence[Answered], seconds: float) -> Row:
    """The figures of one run."""
    good = [answer for answer in answers if not answer.error]
    errors: dict[str, int] = {}
    for answer in answers:
        if answer.error:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    ttft = sorted(1e3 * answer.ttft for answer in good if answer.ttft is not None)
    tpot = sorted(1e3 * answer.tpot for answer in good if answer.tpot is not None)
    total = sorted(answer.total for answer in good)
    return Row(
        streams=run.streams,
        rate=run.rate,
        ok=len(good),
        failed=len(answers) - len(good),
        seconds=seconds,
        requests_per_s=len(good) / seconds,
        out_per_s=sum(answer.new_tokens for answer in good) / seconds,
        in_per_s=sum(answer.prompt_tokens for answer in good) / seconds,
        ttft_p50=percentile(ttft, 50),
        ttft_p90=percentile(ttft, 90),
        ttft_p99=percentile(ttft, 99),
        tpot_p50=percentile(tpot, 50),
        tpot_p99=percentile(tpot, 99),
        e2e_p50=percentile(total, 50),
        e2e_p99=percentile(total, 99),
        errors=errors,
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value that `share` percent of `ordered` do not exceed (nearest rank); None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * int(share) // 100) - 1)]


def line_of(row: Row) -> str:
    """One line of the table."""

    def figure(value: float | None, digits: int) -> str:
        return "n/a" if value is None else f"{value:.{digits}f}"

    cells = [
        str(row.streams) if row.streams else "-",
        figure(row.rate, 1) if row.rate else "-",
        str(row.ok),
        str(row.failed),
        figure(row.requests_per_s, 2),
        figure(row.out_per_s, 1),
        figure(row.in_per_s, 1),
        *(figure(value, 1) for value in (row.ttft_p50, row.ttft_p90, row.ttft_p99)),
        *(figure(value, 2) for value in (row.tpot_p50, row.tpot_p99)),
        *(figure(value, 2) for value in (row.e2e_p50, row.e2e_p99)),
    ]
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def write_csv(file: Any, rows: Iterable[Row]) -> None:
    """One line for each run, named as in `Row`."""
    names = [name for name in Row.__slots__ if name != "errors"]
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)


class _Progress:
    """How many were answered, on one line of the terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._tty = sys.stderr.isatty()

    def one_more(self) -> None:
        self._done += 1
        if self._tty:
            print(f"\r\x1b[Klmtop: {self._done}/{self._total} answered", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._tty:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _one(text: str | None, flag: str, high: int, low: int = 1) -> int | None:
    return None if text is None else numbers(flag, text, high, many=False, low=low)[0]


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate <= 10_000 for rate in rates):
        raise UsageError(f"--request-rate = {one_line(text, 60)!r}: must be numbers like 1,2.5, above 0")
    return rates
