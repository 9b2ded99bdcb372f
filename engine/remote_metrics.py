"""What a server's Prometheus page says about its load: running, waiting, KV share, and rates between two readings.

Names: vLLM `vllm/v1/metrics/loggers.py`, SGLang `sglang/srt/metrics/collector.py`, LMDeploy
`lmdeploy/metrics/loggers.py`, llama.cpp `tools/server` (`--metrics`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .types import ServerLoad

SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{[^\n]*\})?[ \t]+(\S+)")
SAMPLES = 20_000  # lines that are looked at
RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "lmdeploy:num_requests_running",
    "llamacpp:requests_processing",
)
WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "lmdeploy:num_requests_waiting",
    "llamacpp:requests_deferred",
)
KV_SHARE = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",  # its name until 2025
    "sglang:token_usage",
    "lmdeploy:gpu_cache_usage_perc",
    "llamacpp:kv_cache_usage_ratio",
)
GENERATED = (
    "vllm:generation_tokens_total",
    "sglang:generation_tokens_total",
    "lmdeploy:generation_tokens_total",
    "llamacpp:tokens_predicted_total",
)
PROMPT = (
    "vllm:prompt_tokens_total",
    "sglang:prompt_tokens_total",
    "lmdeploy:prompt_tokens_total",
    "llamacpp:prompt_tokens_total",
)
KNOWN = frozenset((*RUNNING, *WAITING, *KV_SHARE, *GENERATED, *PROMPT))


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the page, at monotonic second `time`. `values`: each known metric's values, one per engine."""

    time: float
    values: Mapping[str, tuple[float, ...]]

    def total(self, names: tuple[str, ...]) -> float | None:
        """The sum over all engines of the first of these metrics that is there."""
        found = next((self.values[name] for name in names if name in self.values), None)
        return sum(found) if found else None

    def mean(self, names: tuple[str, ...]) -> float | None:
        """The mean over all engines."""
        found = next((self.values[name] for name in names if name in self.values), None)
        return sum(found) / len(found) if found else None


def read_metrics(page: str, time: float) -> Reading | None:
    """The known metrics on a page; None when there are none."""
    values: dict[str, tuple[float, ...]] = {}
    for line in page.splitlines()[:SAMPLES]:
        if line.startswith("#") or (match := SAMPLE.match(line)) is None or match[1] not in KNOWN:
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            values[match[1]] = (*values.get(match[1], ()), value)
    return Reading(time, values) if values else None


def load_of(now: Reading, before: Reading | None = None) -> ServerLoad:
    """The load at `now`. Rates need a reading `before`; counters that went back, after a restart, give none."""
    share = now.mean(KV_SHARE)
    running, waiting = now.total(RUNNING), now.total(WAITING)
    return ServerLoad(
        running=None if running is None else round(running),
        waiting=None if waiting is None else round(waiting),
        kv_share=None if share is None or share > 1 else share,
        decode_tps=_rate(now, before, GENERATED),
        prefill_tps=_rate(now, before, PROMPT),
    )


def _rate(now: Reading, before: Reading | None, names: tuple[str, ...]) -> float | None:
    if before is None or now.time <= before.time:
        return None
    new, old = now.total(names), before.total(names)
    return None if new is None or old is None or new < old else (new - old) / (now.time - before.time)
