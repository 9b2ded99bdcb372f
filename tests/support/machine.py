"""A machine and an engine in mid-work, as snapshots: what the gauges are tested with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmtop.engine.telemetry import Telemetry, TelemetrySnapshot
from lmtop.engine.types import EngineSnapshot, KVSnapshot, MemorySplit, QueueSnapshot, SlotSnapshot

GIB = 1 << 30
SESSIONS = ("kernels", "api#41", "sql plan", "notes")
LETTERS = {
    "kernels": ("A", "owner.0"),
    "notes": ("B", "owner.1"),
    "essay": ("C", "owner.2"),
    "sql plan": ("D", "owner.3"),
    "api#41": ("X", "owner.4"),
}


def gpu_entry(index: int, **fields: Any) -> dict[str, Any]:
    """One GPU of a fake machine file."""
    return {
        "index": index,
        "name": "NVIDIA H200",
        "uuid": f"GPU-{index}",
        "util": 83.0,
        "mem_used": int(33.2 * GIB),
        "mem_total": 141 * GIB,
        "temperature": 62.0,
        "power": 412.0,
        "power_limit": 700.0,
        "fan": None,
        "sm_clock": 1755,
        "mem_clock": 3201,
        "pcie_rx": 1_200_000_000,
        "pcie_tx": 300_000_000,
        "processes": [
            {
                "pid": 4180,
                "user": "me",
                "kind": "C",
                "memory": int(18.5 * GIB),
                "util": 81,
                "name": "lmtop",
                "command": "lmtop chat qwen3-8b",
            },
            {
                "pid": 7112,
                "user": "bob",
                "kind": "C",
                "memory": int(9.1 * GIB),
                "util": 2,
                "name": "python",
                "command": "python train.py --epochs 3",
            },
            {
                "pid": 912,
                "user": None,
                "kind": "G",
                "memory": None,
                "util": None,
                "name": "n/a",
                "command": "n/a",
            },
        ],
    } | fields


def wave(n: int, low: float, high: float, period: int) -> list[float]:
    """A saw-tooth history."""
    return [round(low + (high - low) * (i % period) / (period - 1), 1) for i in range(n)]


def machine_file(path: Path, gpus: list[dict[str, Any]], **more: Any) -> Path:
    """Write a fake machine with histories; returns the file."""
    told = {
        "time": 1000.0,
        "driver": "580.159",
        "gpus": gpus,
        "cpu": {
            "percent": 23.0,
            "cores": 16,
            "load": [1.2, 0.9, 0.5],
            "ram_total": 128 * GIB,
            "ram_available": 100 * GIB,
            "rss": 2 * GIB,
        },
        "history": {
            str(gpu["index"]): {
                "util": wave(300, 10, 95, 17 + gpu["index"]),
                "memory": [it * GIB for it in wave(300, 20, 80, 60)],
                "power": wave(300, 90, 650, 23),
            }
            for gpu in gpus
        }
        | {
            "-1": {
                "util": wave(300, 2, 60, 19),
                "memory": [it * GIB for it in wave(300, 10, 40, 50)],
                "power": [],
            }
        },
    } | more
    path.write_text(json.dumps(told))
    return path


def telemetry_of(path: Path, monkeypatch: Any) -> TelemetrySnapshot:
    """The snapshot that a fake machine file gives."""
    monkeypatch.setenv("LMTOP_TEST", "1")
    monkeypatch.setenv("LMTOP_FAKE_GPU", str(path))
    return Telemetry().sample()


def pool(
    blocks: dict[int, int], total: int, sessions: tuple[str, ...] = SESSIONS, shared: int = 0
) -> KVSnapshot:
    """A pool whose first blocks belong to the owners of `blocks` (code -> count), in that order; the first
    `shared` blocks of each session are held twice."""
    owners = np.zeros(total, "<u2")
    held = np.zeros(total, np.uint8)
    at = 0
    for code, size in blocks.items():
        owners[at : at + size] = code
        if code > 1:
            held[at : at + size] = 1
            held[at : at + min(shared, size)] = 2
        at += size
    used, cached = int((owners > 1).sum()), int((owners == 1).sum())
    return KVSnapshot(
        64, total, total - used - cached, cached, used, owners.tobytes(), held.tobytes(), sessions
    )


def engine_snapshot(**fields: Any) -> EngineSnapshot:
    """Two requests running, one waiting."""
    base = EngineSnapshot(
        time=1000.0,
        status="ready",
        heartbeat=1,
        steps=1,
        memory=MemorySplit(
            "GPU0", 141 * GIB, int(4.9 * GIB), int(4.6 * GIB), int(7.4 * GIB), int(1.6 * GIB), int(14.7 * GIB)
        ),
        kv=pool({2: 1940, 3: 190, 4: 1375, 5: 500, 1: 2100}, 10627, shared=61),
        slots=(
            SlotSnapshot(0, "r1", "kernels", "kernels", "decode", 31000, 31000, 212, 1940, 71.4, 0.21, 0.7),
            SlotSnapshot(1, "r2", "api#41", "api#41", "prefill", 20000, 12200, 0, 190, 0.0, None, 1.0),
        ),
        max_batch=8,
        queue=(QueueSnapshot("r3", "essay", "essay", 120_000, 4.2, "needs 7500 blk, 6622 free or cached"),),
        decode_tps=142.0,
        prefill_tps=3100.0,
        step_ms_p50=11.2,
        step_ms_p99=19.5,
    )
    return replace(base, **fields)
