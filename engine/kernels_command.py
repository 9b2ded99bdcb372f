"""`lmtop kernels`: compile every CUDA kernel, with no GPU, and say what each takes of a multiprocessor."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..kernels.nvrtc import ARCHITECTURES, CompileError, Entry, Unit, compile_unit
from .devices import device_info
from .text import one_line
from .types import UsageError

if TYPE_CHECKING:
    from .arguments import Options

HEADER = ("ARCH", "KERNEL", "REGISTERS", "SHARED", "STACK", "SPILLS", "UNIT")


@dataclass(frozen=True, slots=True)
class Compiled:
    """One unit for one architecture: its kernels, or why it does not compile. `fresh`: it was not in the cache."""

    arch: str
    unit: Unit
    entries: tuple[Entry, ...] = ()
    error: str = ""
    fresh: bool = False

    @property
    def spilling(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.spill_stores or entry.spill_loads)


def run_kernels(options: Options) -> int:
    """Print a table (--json: one document); 1 when a kernel does not compile or spills registers, else 0."""
    from ..kernels import catalog  # the wrappers, and so torch

    asked = options.extra["arch"]
    architectures = _architectures("auto" if asked is None else asked)
    jobs = [(arch, unit) for arch in architectures for unit in catalog.units(arch)]
    started = time.monotonic()
    done = compile_jobs(jobs, _show_progress)
    seconds = time.monotonic() - started
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if options.values["json"]:
        print(json.dumps([_record(item) for item in done], indent=1))
    else:
        _print_table(done)
        fresh = sum(item.fresh for item in done)
        print(
            f"{sum(len(item.entries) for item in done)} kernels for {', '.join(architectures)}: "
            f"{fresh} units compiled, {sum(not item.error for item in done) - fresh} found compiled, {seconds:.1f} s"
        )
    return _tell_failures(done)


def compile_jobs(
    jobs: Iterable[tuple[str, Unit]], progress: Callable[[int, int, str], None]
) -> list[Compiled]:
    """Compile (architecture, unit) pairs, one thread per core, all of them whatever fails; in the order given.
    `progress(done, total, what was done last)`."""
    jobs = list(jobs)
    results: dict[tuple[str, Unit], Compiled] = {}
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        for future in as_completed([pool.submit(_compile, arch, unit) for arch, unit in jobs]):
            item = future.result()
            results[item.arch, item.unit] = item
            progress(len(results), len(jobs), f"sm_{item.arch} {item.unit}")
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[job] for job in jobs]


def _compile(arch: str, unit: Unit) -> Compiled:
    try:
        cubin = compile_unit(unit, arch)
    except CompileError as error:
        return Compiled(arch, unit, error=str(error))
    return Compiled(arch, unit, cubin.entries, fresh=cubin.fresh)


def _architectures(asked: str) -> tuple[str, ...]:
    if asked == "all":
        return ARCHITECTURES
    if asked == "auto":
        device = device_info()
        return (architecture(device.capability),) if device.kind == "cuda" else ARCHITECTURES
    names = tuple(dict.fromkeys(name.strip().removeprefix("sm_") for name in asked.split(",")))
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise UsageError(
            f"--arch = {one_line(asked, 60)!r}: must be all, auto, or some of {', '.join(ARCHITECTURES)}"
        )
    return names


def architecture(capability: int) -> str:
    """What kernels are compiled for on a GPU of compute capability 10 * major + minor: "90a" on Hopper."""
    return "90a" if capability == 90 else str(capability)


def _show_progress(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[Klmtop: {done} of {total} units, {what}"[:100], end="", file=sys.stderr, flush=True)


def _print_table(done: Iterable[Compiled]) -> None:
    rows: list[tuple[str, ...]] = [HEADER]
    for item in done:
        for entry in item.entries:
            spills = str(entry.spill_stores + entry.spill_loads or "-")
            sizes = (str(entry.registers), str(entry.shared), str(entry.stack or "-"), spills)
            rows.append((item.arch, entry.name, *sizes, str(item.unit)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        left = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
        numbers = "  ".join(f"{row[column]:>{widths[column]}}" for column in range(2, 6))
        print(f"{left}{numbers}  {row[6]}")


def _tell_failures(done: Iterable[Compiled]) -> int:
    """A line on standard error for each kernel that spills, and for each reason not to compile with how many units
    it stops."""
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    for item in done:
        where = f"sm_{item.arch}: "
        for entry in item.spilling:
            line = f"{where}kernel {entry.name} of {item.unit} spills {entry.spill_stores} bytes of registers"
            reasons[line] += 1
            first[line] = line
        if item.error:
            reason = item.error.partition(" does not compile: ")[2] or item.error
            reasons[reason] += 1
            first.setdefault(reason, f"{where}{item.error}" if item.error != reason else reason)
    for reason, count in reasons.items():
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        print(f"lmtop: {one_line(first[reason], 500)}{more}", file=sys.stderr)
    return 1 if reasons else 0


def _record(item: Compiled) -> dict[str, Any]:
    return {
        "arch": item.arch,
        "source": item.unit.source,
        "defines": dict(item.unit.defines),
        "kernels": [asdict(entry) for entry in item.entries],
        "error": item.error or None,
    }
