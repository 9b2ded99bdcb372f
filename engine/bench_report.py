"""What a bench says while it runs and when it is done: progress line, table, CSV, JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from .bench_measure import Cell, Sample
from .text import one_line

BAR = 24
COLUMNS = (
    ("WEIGHTS", 9),
    ("KV", 4),
    ("BATCH", 5),
    ("PROMPT", 6),
    ("TOK/S", 9),
    ("STEP ms", 8),
    ("P99 ms", 8),
    ("PREFILL/S", 9),
    ("FIRST ms", 9),
)
THEIRS = (("HF TOK/S", 9), ("OURS/HF", 7))


@dataclass(slots=True)
class Setup:
    """One load: its formats, its memory in bytes as planned and as the device reported it after the load (None:
    not to be read), seconds until ready, and the first token of a prompt of 8 tokens."""

    weights: str
    kv: str
    planned: int
    measured: int | None
    weights_bytes: int
    kv_bytes: int
    load_s: float
    short_ttft_ms: float = 0.0
    cells: list[tuple[Cell, Sample]] = field(default_factory=list)

    def summary(self) -> str:
        """One line beneath its rows."""
        parts = [f"planned {self.planned / 2**30:.2f} GiB"]
        if self.measured is not None:
            off = 100 * (self.measured / self.planned - 1)
            parts.append(f"took {self.measured / 2**30:.2f} GiB ({off:+.1f} %)")
        parts.append(f"ready in {self.load_s:.1f} s")
        if self.short_ttft_ms:
            parts.append(f"first token of 8: {self.short_ttft_ms:.2f} ms")
        return ", ".join(parts)


class Report:
    """Prints rows as they are measured. `baseline`: decode tokens/s of transformers by cell."""

    def __init__(self, quiet: bool, total: int, baseline: bool) -> None:
        self.baseline: dict[Cell, float] = {}
        self.setups: list[Setup] = []
        self._quiet = quiet
        self._total, self._done = total, 0
        self._tty = sys.stderr.isatty()
        self._columns = (*COLUMNS, *THEIRS) if baseline else COLUMNS

    def working(self, what: str) -> None:
        """The progress line: what is being done now."""
        if self._tty:
            filled = BAR * self._done // max(1, self._total)
            bar = "#" * filled + "-" * (BAR - filled)
            text = f"lmtop: [{bar}] {self._done}/{self._total} {one_line(what, 60)}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        self._done += count

    def row(self, setup: Setup, cell: Cell, sample: Sample) -> None:
        """A measured cell."""
        if not any(setup.cells for setup in self.setups):
            self._print(line([name for name, _ in self._columns], self._columns))
        setup.cells.append((cell, sample))
        values = [
            setup.weights[max(0, setup.weights.find("int4")) :],  # whose they are stands beside the table
            setup.kv,
            str(cell.batch),
            str(cell.prompt),
            f"{sample.decode_tps:,.1f}" if sample.decode_tps else "n/a",
            f"{sample.step_ms_p50:.3f}",
            f"{sample.step_ms_p99:.3f}",
            f"{sample.prefill_tps:,.0f}",
            f"{sample.ttft_ms:.2f}",
        ]
        theirs = self.baseline.get(cell)
        if len(self._columns) > len(COLUMNS):
            values += [f"{theirs:,.1f}", f"{sample.decode_tps / theirs:.1f}"] if theirs else ["n/a", "n/a"]
        self._print(line(values, self._columns))

    def note(self, text: str) -> None:
        """Something that the table alone would not tell, beside it."""
        self.clear()
        print(f"lmtop: {one_line(text, 300)}", file=sys.stderr, flush=True)

    def summary(self, setup: Setup) -> None:
        self._print(f"  {setup.summary()}")

    def clear(self) -> None:
        if self._tty:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _print(self, text: str) -> None:
        if not self._quiet:
            self.clear()
            print(text, flush=True)


def line(values: Sequence[str], columns: Sequence[tuple[str, int]], left: int = 2) -> str:
    """A row of a table; the first `left` columns are texts, the others numbers."""
    cells = [
        value.ljust(width) if index < left else value.rjust(width)
        for index, (value, (_, width)) in enumerate(zip(values, columns, strict=True))
    ]
    return " ".join(cells).rstrip()


def document(about: dict[str, Any], report: Report) -> dict[str, Any]:
    """Everything measured, for --json."""
    return {
        **about,
        "setups": [
            {
                "weights": setup.weights,
                "kv": setup.kv,
                "load_s": setup.load_s,
                "short_ttft_ms": setup.short_ttft_ms,
                "memory": {
                    "planned": setup.planned,
                    "measured": setup.measured,
                    "weights": setup.weights_bytes,
                    "kv": setup.kv_bytes,
                },
                "cells": [asdict(cell) | asdict(sample) for cell, sample in setup.cells],
            }
            for setup in report.setups
        ],
        "transformers": [asdict(cell) | {"decode_tps": rate} for cell, rate in report.baseline.items()],
    }


def write_csv(file: IO[str], report: Report) -> None:
    """One line for each measured cell."""
    names = ["decode_tps", "step_ms_p50", "step_ms_p99", "prefill_tps", "ttft_ms"]
    writer = csv.writer(file)
    memory = ["memory_planned", "memory_measured", "transformers_decode_tps"]
    writer.writerow(["weights", "kv", "batch", "prompt", *names, *memory])
    for setup in report.setups:
        for cell, sample in setup.cells:
            figures = [f"{getattr(sample, name):.6g}" for name in names]
            measured = "" if setup.measured is None else setup.measured
            theirs = report.baseline.get(cell)
            more = [setup.planned, measured, "" if theirs is None else f"{theirs:.6g}"]
            writer.writerow([setup.weights, setup.kv, cell.batch, cell.prompt, *figures, *more])
