"""What `/metrics` tells Prometheus: gauges of the engine, counts and times of the server's requests.

Each value goes by lmtop's name (`lmtop_...`, base units) and, where LMDeploy has one for it, by that too
(`lmdeploy:...`), so that its dashboards keep working. No label holds anything a client sent.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .types import EngineSnapshot, Finished

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)
STATES = ("none", "loading", "ready", "unloading", "failed", "dead", "sleeping")


class Histogram:
    """Counts of values at most as large as each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, int]]:
        """(bound, values up to it), the last bound being +Inf."""
        names = [*map(str, self._bounds), "+Inf"]
        return list(zip(names, itertools.accumulate(self._counts), strict=True))


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is true now. `connections`: open ones; `heartbeat_age_s`: since the engine's loop last turned."""

    engine: EngineSnapshot
    state: str
    heartbeat_age_s: float
    connections: int


class Metrics:
    """Counts of one server. One thread only."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()  # by reason: stop, length, cancelled; or the code of a failure
        self.received = 0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.ttft, self.queue, self.total, self.prefill, self.decode = (Histogram(SECONDS) for _ in range(5))
        self.per_token = Histogram(TOKEN_SECONDS)
        self.prompt_lengths, self.reply_lengths = Histogram(TOKENS), Histogram(TOKENS)

    def finished(self, event: Finished) -> None:
        """Count a request that was answered, in full or until it was cancelled."""
        usage, timings = event.usage, event.timings
        self.ended[event.reason] += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.generated_tokens += usage.completion_tokens
        self.prompt_lengths.observe(usage.prompt_tokens)
        self.reply_lengths.observe(usage.completion_tokens)
        self.queue.observe(timings.queue_s)
        self.total.observe(timings.total_s)
        if usage.completion_tokens:
            decode = timings.total_s - timings.ttft_s
            self.ttft.observe(timings.ttft_s)
            self.prefill.observe(max(0.0, timings.ttft_s - timings.queue_s))
            self.decode.observe(decode)
            if usage.completion_tokens > 1:
                self.per_token.observe(decode / (usage.completion_tokens - 1))

    def failed(self, code: str) -> None:
        """Count a request that was not answered."""
        self.ended[code] += 1

    def text(self, gauges: Gauges) -> bytes:
        """The exposition, in Prometheus' text format 0.0.4."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector

        metrics, held = self, gauges

        class Families(Collector):
            def collect(self) -> Iterator[Metric]:
                return metrics._families(held)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Families())
        return bytes(generate_latest(registry))

    def _families(self, gauges: Gauges) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def gauge(names: str, help: str, value: float) -> Iterator[Metric]:
            for name in names.split():
                yield GaugeMetricFamily(name, help, value)

        def counter(names: str, help: str, value: float) -> Iterator[Metric]:
            for name in names.split():
                yield CounterMetricFamily(name, help, value)

        def histogram(names: str, help: str, values: Histogram) -> Iterator[Metric]:
            for name in names.split():
                yield HistogramMetricFamily(name, help, values.buckets(), values.total)

        engine, kv = gauges.engine, gauges.engine.kv
        blocks: Any = GaugeMetricFamily("lmtop_kv_blocks", "KV blocks by what they hold", labels=["state"])
        states: Any = GaugeMetricFamily("lmtop_engine_state", "1 for the engine's state", labels=["state"])
        if kv is not None:
            usable = max(kv.total - 1, 1)  # block 0 pads
            for name, count in (("free", kv.free), ("cached", kv.cached), ("used", kv.used)):
                blocks.add_metric([name], count)
            yield from gauge(
                "lmtop_kv_usage_ratio lmdeploy:gpu_cache_usage_perc",
                "share of the KV blocks that requests hold, 0 to 1",
                kv.used / usable,
            )
        for name in STATES:
            states.add_metric([name], float(name == gauges.state))
        yield blocks
        yield states
        yield from gauge(
            "lmtop_requests_running lmdeploy:num_requests_running",
            "requests that hold a slot",
            len(engine.slots),
        )
        yield from gauge(
            "lmtop_requests_waiting lmdeploy:num_requests_waiting",
            "requests in the queue",
            len(engine.queue),
        )
        yield from gauge(
            "lmtop_queue_tokens",
            "prompt tokens of the queue",
            sum(item.prompt_tokens for item in engine.queue),
        )
        yield from gauge(
            "lmtop_decode_tokens_per_second", "generated, over the last second", engine.decode_tps
        )
        yield from gauge(
            "lmtop_prefill_tokens_per_second", "of prompts, over the last second", engine.prefill_tps
        )
        yield from gauge("lmtop_step_seconds_p50", "median of the last steps", engine.step_ms_p50 / 1e3)
        yield from gauge("lmtop_step_seconds_p99", "99th percentile of them", engine.step_ms_p99 / 1e3)
        yield from gauge(
            "lmtop_heartbeat_age_seconds", "since the engine's loop last turned", gauges.heartbeat_age_s
        )
        yield from gauge("lmtop_connections", "open HTTP connections", gauges.connections)
        ended: Any = CounterMetricFamily("lmtop_requests", "requests that ended, by how", labels=["reason"])
        for reason, count in sorted(self.ended.items()):
            ended.add_metric([reason], count)
        yield ended
        answered = sum(self.ended[reason] for reason in ("stop", "length"))
        yield from counter("lmdeploy:num_requests_succeeded", "requests answered in full", answered)
        yield from counter(
            "lmdeploy:num_requests_failed", "requests that ended otherwise", self.ended.total() - answered
        )
        yield from counter("lmtop_requests_received", "requests that reached the engine", self.received)
        tokens = (
            ("prompt_tokens", "tokens of prompts", self.prompt_tokens),
            ("generation_tokens", "tokens generated", self.generated_tokens),
            ("cached_tokens", "tokens of prompts that the prefix cache held", self.cached_tokens),
        )
        for name, help, value in tokens:
            yield from counter(f"lmtop_{name} lmdeploy:{name}", help, value)
        yield from gauge(
            "lmtop_prefix_cache_hit_ratio lmdeploy:prefix_cache_hit_rate",
            "cached of all prompt tokens",
            self.cached_tokens / max(self.prompt_tokens, 1),
        )
        times = (
            ("time_to_first_token_seconds", "from arrival to the first token", self.ttft),
            ("time_per_output_token_seconds", "between tokens, mean of each request", self.per_token),
            ("request_queue_time_seconds", "from arrival to a slot", self.queue),
            ("request_prefill_time_seconds", "from a slot to the first token", self.prefill),
            ("request_decode_time_seconds", "from the first token to the last", self.decode),
            ("request_prompt_tokens", "tokens of each prompt", self.prompt_lengths),
            ("request_generation_tokens", "tokens of each reply", self.reply_lengths),
        )
        for name, help, values in times:
            yield from histogram(f"lmtop_{name} lmdeploy:{name}", help, values)
        yield from histogram(
            "lmtop_request_seconds lmdeploy:e2e_request_latency_seconds",
            "from arrival to the end",
            self.total,
        )
