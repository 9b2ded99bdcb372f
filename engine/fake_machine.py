"""A machine described by a JSON file, for tests and pictures: `LMTOP_FAKE_GPU=FILE`, refused unless `LMTOP_TEST=1`.

The file is read again for each sample. Keys are optional unless marked; units as in `GpuSample` and `CpuSample`:

    {"time": 100.0, "notice": "", "driver": "580.159",
     "gpus": [{"index": 0 (required), "name": "H200" (required), "uuid": "" (required), "util": 83, ...,
               "processes": [{"pid": 1, "user": "me", "kind": "C", "memory": 1, "util": 5, "name": "python",
                              "command": "python x.py"}] (all seven required; null where unknown),
               "mig": [{"index": 0, "name": "3g.71gb", "uuid": "", "mem_used": 1, "mem_total": 2}]}],
     "cpu": {"percent": 12.5, ..., "processes": [as above]},
     "history": {"0": {"util": [percent, ...], "memory": [bytes, ...], "power": [watts, ...]}}}

`history` (oldest first; "-1" is the host) fills the graphs once, at the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from .samples import CpuSample, GpuSample, History, MigSample, ProcessSample, TelemetrySnapshot
from .text import one_line
from .types import UsageError


def fake_file() -> Path | None:
    """The file named by the test hook, if any; UsageError outside a test."""
    path = os.environ.get("LMTOP_FAKE_GPU")
    if not path:
        return None
    if os.environ.get("LMTOP_TEST") != "1":
        raise UsageError("LMTOP_FAKE_GPU is a hook for tests: unset it, or set LMTOP_TEST=1 as well")
    return Path(path)


class FakeMachine:
    """Plays the file. The constructor raises UsageError when it cannot be used; later faults keep the last state."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.history: dict[int, History] = {}
        try:
            told = self._read()
            self._last = _snapshot_from(told)
            for device, rings in told.get("history", {}).items():
                self.history[int(device)] = History(**{name: tuple(it) for name, it in rings.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"LMTOP_FAKE_GPU={path}: {one_line(str(error))}") from error

    def _read(self) -> Any:
        return json.loads(self._path.read_text(encoding="utf-8"))

    def sample(self) -> TelemetrySnapshot:
        # a file that is just being rewritten keeps the last state
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            self._last = _snapshot_from(self._read())
        return self._last

    def close(self) -> None:
        pass


def _snapshot_from(told: dict[str, Any]) -> TelemetrySnapshot:
    cpu = told.get("cpu")
    return TelemetrySnapshot(
        time=float(told.get("time", time.monotonic())),
        gpus=tuple(_gpu_from(entry) for entry in told.get("gpus", ())),
        cpu=None if cpu is None else _cpu_from(cpu),
        notice=one_line(told.get("notice", "")),
        driver=one_line(told.get("driver", "")),
    )


def _gpu_from(entry: dict[str, Any]) -> GpuSample:
    processes = entry.get("processes")
    sample = GpuSample(
        **{
            **entry,
            "processes": None if processes is None else _processes_from(processes),
            "mig": tuple(MigSample(**instance) for instance in entry.get("mig", ())),
        }
    )
    return replace(sample, name=one_line(sample.name))


def _cpu_from(entry: dict[str, Any]) -> CpuSample:
    load = entry.get("load")
    return CpuSample(
        **{
            **entry,
            "load": None if load is None else tuple(load),
            "processes": _processes_from(entry.get("processes", ())),
        }
    )


def _processes_from(entries: Any) -> tuple[ProcessSample, ...]:
    samples = (ProcessSample(**entry) for entry in entries)
    return tuple(replace(it, name=one_line(it.name), command=one_line(it.command)) for it in samples)
