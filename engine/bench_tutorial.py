"""`lmtop bench --tutorial`: the two tables of LMDeploy's tutorials, made on this machine.

The first: characters per second of one reply at a time and the memory that takes, for transformers and for
each choice of weights and KV cache, with a cache of one context. The second: memory by the share that the
cache gets of what is free.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .answer import say
from .bench import free, interruptible, prepare_model, show_load
from .bench_flags import numbers
from .bench_measure import Stopped
from .bench_report import line
from .client import Mailbox
from .config import EngineConfig
from .generate import KINDS
from .inference import inference
from .loader import Engine, Prepared, build
from .local import encode_request
from .loop import EngineLoop
from .memory import Vram, memory_of
from .types import (
    GREEDY,
    Cancelled,
    Delta,
    DeviceError,
    Failed,
    LmtopError,
    Message,
    Request,
    UsageError,
)

if TYPE_CHECKING:
    from .arguments import Options

# Of our own: an introduction, a plan, an explanation, a story, in the two languages of the tutorials.
PROMPTS = (
    "Introduce yourself in a few sentences.",
    "Plan a weekend in a city by the sea, hour by hour.",
    "解释一下为什么天空是蓝色的。",
    "Tell a story about a lighthouse keeper and a lost letter.",
)
CHOICES = (("16", "16"), ("int4", "16"), ("16", "int8"), ("int4", "int8"))
SHARES = (("16", 0.8), ("16", 0.5), ("16", 0.01), ("int4", 0.01))
CONTEXT = 2048
MIB = 1 << 20
SPEED = (
    ("ENGINE", 12),
    ("WEIGHTS", 9),
    ("KV", 5),
    ("CHAR/S", 9),
    ("TOK/S", 9),
    ("x HF", 6),
    ("MEMORY MiB", 10),
)
MEMORY = (("WEIGHTS", 9), ("KV SHARE", 8), ("TOKENS", 9), ("PLANNED MiB", 11), ("MEMORY MiB", 10))


@dataclass(frozen=True, slots=True)
class Speed:
    """A row of the first table. `memory`: bytes as the driver (or the system) tells them, None where it does
    not. Random weights write no text: `characters_per_s` None."""

    engine: str
    weights: str
    kv: str
    characters_per_s: float | None
    tokens_per_s: float
    memory: int | None


@dataclass(frozen=True, slots=True)
class Share:
    """A row of the second table; `tokens`: what the cache holds."""

    weights: str
    share: float
    tokens: int
    planned: int
    memory: int | None


def run_tutorial(options: Options) -> int:
    """Print both tables (--json: one document). 130 when Ctrl-C ended it."""
    extra = options.extra
    for name in ("batches", "prompts", "kvs", "weight_formats", "repeat", "csv"):
        if extra[name] is not None:
            raise UsageError("--tutorial has tables of its own: only --new-tokens goes with it")
    (tokens,) = numbers("--new-tokens", extra["new_tokens"] or "256", 1 << 20, many=False, low=2)
    config = options.engine_config(options.model or extra["random_weights"])
    with interruptible() as stopped:
        tables = _Tables(options.values["json"], stopped, bool(extra["random_weights"]), tokens)
        try:
            tables.speeds(config)
            tables.shares(config)
            ended = False
        except (Stopped, Cancelled):
            ended = True
    if options.values["json"]:
        print(json.dumps(tables.document(config.model), indent=1))
    return 130 if ended else 0


class _Tables:
    """Fills and prints both tables. A row that the device has no room for is left out and said to be."""

    def __init__(self, quiet: bool, stopped: Callable[[], bool], made_up: bool, new_tokens: int) -> None:
        self.first: list[Speed] = []
        self.second: list[Share] = []
        self._quiet, self._stopped = quiet, stopped
        self._made_up, self._new_tokens = made_up, new_tokens
        self._device = ""

    def speeds(self, config: EngineConfig) -> None:
        """The first table."""
        wanted = replace(config, max_batch_size=1, session_len=config.session_len or CONTEXT)
        for weights, kv in CHOICES:
            with _left_out(f"weights {weights}, kv {kv}"):
                prepared = self._prepare(replace(wanted, weights=weights, kv=kv), one_context=True)
                if not self._device:
                    self._device = prepared.device.name
                    self._print(f"one reply at a time on {self._device}, {self._new_tokens} tokens each")
                    self._print(line([name for name, _ in SPEED], SPEED, 3))
                    self._baseline(prepared)
                self._speed(prepared)
            free()

    def shares(self, config: EngineConfig) -> None:
        """The second table."""
        self._print("\nmemory by the KV cache's share of what is free")
        self._print(line([name for name, _ in MEMORY], MEMORY, 1))
        for weights, share in SHARES:
            with _left_out(f"weights {weights}, share {share}"):
                wanted = replace(config, weights=weights, cache_max_entry_count=share, cache_bytes=None)
                engine = build(self._prepare(wanted), show_load(wanted), self._stopped)
                plan = engine.plan
                row = Share(engine.info.weights, share, plan.tokens_held, plan.total, _memory(engine))
                del engine
                self.second.append(row)
                held = f"{row.tokens:,}"
                cells = [row.weights, f"{share:g}", held, _mib(row.planned), _mib(row.memory)]
                self._print(line(cells, MEMORY, 1))
            free()

    def document(self, model: str) -> dict[str, Any]:
        """Everything measured, for --json."""
        return {
            "model": model,
            "device": self._device,
            "new_tokens": self._new_tokens,
            "speed": [asdict(row) for row in self.first],
            "memory": [asdict(row) for row in self.second],
        }

    def _prepare(self, config: EngineConfig, one_context: bool = False) -> Prepared:
        if self._stopped():
            raise Stopped
        prepared = prepare_model(config, self._made_up, self._stopped)
        if not one_context:
            return prepared
        blocks = -(-prepared.plan.context_len // config.cache_block_seq_len)
        fixed = replace(config, cache_max_entry_count=float(blocks), cache_bytes=None)
        return prepare_model(fixed, self._made_up, self._stopped)

    def _baseline(self, prepared: Prepared) -> None:
        if self._made_up:
            say("no transformers beside it: these weights are in no file")
            return
        from .bench_baseline import reply_baseline

        try:
            ids = [prepared.template.render((Message("user", text),)) for text in PROMPTS]
            memory, plan = memory_of(prepared.device), prepared.plan
            with reply_baseline(
                prepared.directory, plan.dtype, prepared.device.kind, ids, self._new_tokens, self._stopped
            ) as (replies, seconds):
                held = memory.loaded() if isinstance(memory, Vram) else memory.read().own
        except LmtopError as error:
            say(f"no transformers beside it: {error}")
            return
        texts = [prepared.tokenizer.decode(reply, skip_special_tokens=False) for reply in replies]
        self._row(
            Speed(
                "transformers",
                replace(plan, weight_format="16").weights_name,
                replace(plan, kv_format="16").kv_name,
                sum(map(len, texts)) / seconds,
                sum(map(len, replies)) / seconds,
                held,
            )
        )

    def _speed(self, prepared: Prepared) -> None:
        engine = build(prepared, show_load(prepared.config), self._stopped)
        loop = EngineLoop(engine)
        asked = _asked(engine, self._made_up)
        _reply(loop, asked[0], 8, self._stopped)  # pays for what the first reply pays for
        begun = time.perf_counter()
        found = [_reply(loop, request, self._new_tokens, self._stopped) for request in asked]
        seconds = time.perf_counter() - begun
        self._row(
            Speed(
                "lmtop",
                engine.info.weights,
                engine.info.kv,
                None if self._made_up else sum(len(text) for text, _ in found) / seconds,
                sum(count for _, count in found) / seconds,
                _memory(engine),
            )
        )

    def _row(self, row: Speed) -> None:
        self.first.append(row)
        theirs = self.first[0] if self.first[0].engine == "transformers" else None
        ratio = f"{row.tokens_per_s / theirs.tokens_per_s:.1f}" if theirs is not None else "n/a"
        characters = "n/a" if row.characters_per_s is None else f"{row.characters_per_s:,.1f}"
        cells = [row.engine, row.weights, row.kv, characters, f"{row.tokens_per_s:,.1f}", ratio]
        self._print(line([*cells, _mib(row.memory)], SPEED, 3))

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


def _asked(engine: Engine, made_up: bool) -> list[Request]:
    """The prompts; of a model that is nowhere, which reads no text, random tokens."""
    if made_up:
        chosen, vocab = random.Random(0), engine.tokenizer.vocab_size
        rows = [tuple(chosen.randrange(vocab) for _ in range(32)) for _ in PROMPTS]
        return [Request("tutorial", prompt_ids=row) for row in rows]
    return [Request("tutorial", messages=(Message("user", text),)) for text in PROMPTS]


@inference
def _reply(
    loop: EngineLoop, request: Request, new_tokens: int, stopped: Callable[[], bool]
) -> tuple[str, int]:
    """The text of one reply of so many tokens, and their number."""
    mailbox = Mailbox()
    sampling = replace(GREEDY, ignore_eos=True, max_new_tokens=new_tokens, skip_special_tokens=False)
    request = replace(request, sampling=sampling)
    live = encode_request(loop.engine, request, mailbox, time.monotonic_ns(), time.monotonic())
    loop.submit(live)
    while loop.step():
        if stopped():
            raise Stopped
    text, count = "", 0
    for event in mailbox.drain():
        if isinstance(event, Failed):
            raise KINDS.get(event.code, LmtopError)(event.message)
        if isinstance(event, Delta):
            text, count = text + event.text, count + len(event.token_ids)
    return text, count


def _memory(engine: Engine) -> int | None:
    """Bytes that this process holds of the device, as its driver (or the system) tells them."""
    memory = engine.memory
    return memory.loaded() if isinstance(memory, Vram) else memory.read().own


@contextmanager
def _left_out(what: str) -> Iterator[None]:
    """A row without room is left out, and named."""
    try:
        yield
    except (DeviceError, MemoryError) as error:
        say(f"{what}: left out: {error}")


def _mib(value: int | None) -> str:
    return "n/a" if value is None else f"{value / MIB:,.0f}"
