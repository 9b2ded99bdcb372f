"""Every value that crosses a boundary of the engine: requests in, events and snapshots out.

Standard library only. All values are frozen, picklable and validated once, at construction.
Data walks one way: Request -> Sequence -> StepPlan -> device -> StepOutput -> Event -> screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

# --- errors ------------------------------------------------------------------------------------------------


class LmtopError(Exception):
    """A failure with one clear line for the user: what, where, and the way out. `exit_code` ends a command."""

    exit_code = 70


class UsageError(LmtopError):
    """A flag, a configuration key or a request field that cannot be accepted."""

    exit_code = 2


class ContextExceeded(UsageError):
    """A prompt that is longer than the context."""


class TemplateRefused(UsageError):
    """A chat template that refuses these messages, or is refused itself: the model's doing, not the request's."""


class ModelError(LmtopError):
    """A model directory that cannot be loaded."""

    exit_code = 3


class HistoryError(LmtopError):
    """A history database that cannot be used."""

    exit_code = 4


class RemoteError(LmtopError):
    """A hub or server that cannot be reached or answers wrongly."""

    exit_code = 5


class DeviceError(LmtopError):
    """Too little memory, or a device that cannot be used."""

    exit_code = 6


class Cancelled(Exception):
    """Long work was cancelled by the user; everything it took is freed. No failure, so no LmtopError."""


# --- requests ----------------------------------------------------------------------------------------------


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UsageError(f"{name} = {value!r}: must be {allowed}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when a reply ends.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off. `repetition_penalty` multiplies (1 is off;
    prompt and output count), presence and frequency penalties subtract (0 is off; output counts only).
    `logit_bias` is (token id, bias) pairs. `seed` None draws a fresh one. `logprobs` None is off, n >= 0
    returns the chosen token's log-probability and the n most likely ones. `max_new_tokens` None: to the end
    of the context. `stop` strings may span tokens; they are cut from the text unless `include_stop`.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        def finite(value: float, low: float, high: float) -> bool:
            return isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high

        _require(finite(self.temperature, 0, 2), "temperature", self.temperature, "from 0 to 2")
        _require(0 <= self.top_k < 2**31, "top_k", self.top_k, "0 (off) or a positive integer")
        _require(finite(self.top_p, 0, 1) and self.top_p > 0, "top_p", self.top_p, "above 0 and at most 1")
        _require(finite(self.min_p, 0, 1), "min_p", self.min_p, "from 0 to 1")
        _require(
            finite(self.repetition_penalty, 0, 10) and self.repetition_penalty > 0,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0 and at most 10",
        )
        _require(finite(self.presence_penalty, -2, 2), "presence_penalty", self.presence_penalty, "-2 to 2")
        _require(
            finite(self.frequency_penalty, -2, 2), "frequency_penalty", self.frequency_penalty, "-2 to 2"
        )
        _require(len(self.logit_bias) <= 1024, "logit_bias", len(self.logit_bias), "at most 1024 entries")
        for token, bias in self.logit_bias:
            _require(
                token >= 0 and finite(bias, -100, 100), "logit_bias", (token, bias), "(id >= 0, -100 to 100)"
            )
        _require(
            self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit signed integer"
        )
        _require(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", self.logprobs, "0 to 20")
        _require(
            self.max_new_tokens is None or self.max_new_tokens >= 1,
            "max_new_tokens",
            self.max_new_tokens,
            "at least 1",
        )
        _require(self.min_new_tokens >= 0, "min_new_tokens", self.min_new_tokens, "at least 0")
        _require(len(self.stop) <= 16, "stop", len(self.stop), "at most 16 strings")
        for stop in self.stop:
            _require(0 < len(stop) <= 256, "stop", stop, "1 to 256 characters")


GREEDY = SamplingParams(temperature=0.0, top_p=1.0)

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model asked for; `arguments` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. An assistant's may hold `tool_calls`, and the `reasoning` that led to it; a tool's
    is the result of the call `tool_call_id`."""

    role: Role
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One reply to generate. Exactly one of `messages` (chat template), `prompt` (raw text, encoded with the
    tokenizer's own bos rule) and `prompt_ids` is set. `session` groups requests on the gauges (a short label
    such as the session's title is in `label`); it never changes a token. With messages only: `tools` are the functions
    that the model may ask for (a JSON list, as text, "" is none), `template_options` further variables of its chat
    template."""

    id: str
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    session: str = ""
    label: str = ""
    priority: int = 0
    tools: str = ""
    template_options: tuple[tuple[str, bool | int | float | str], ...] = ()

    def __post_init__(self) -> None:
        given = sum(x is not None for x in (self.messages, self.prompt, self.prompt_ids))
        _require(given == 1, "request", given, "given exactly one of messages, prompt and prompt_ids")
        _require(self.messages is None or len(self.messages) > 0, "messages", (), "at least one message")


# --- events ------------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One candidate at one position: natural logarithm of its probability before any sampling filter."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token and the most likely ones at its position, most likely first."""

    chosen: TopLogprob
    top: tuple[TopLogprob, ...] = ()


NOT_TOLD = -1  # a count that a server did not give


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `context_left` is what the context could still hold when it ended. Of a server's
    reply each may be `NOT_TOLD`, as may `Timings.queue_s`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    context_left: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since submission, and rates in tokens/s (0.0 where nothing was measured)."""

    queue_s: float
    ttft_s: float
    total_s: float
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """The prompt was encoded and fits; it waits for a slot."""

    id: str
    prompt_ids: tuple[int, ...]
    context_len: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request holds a batch slot; `cached_tokens` of its prompt came from the prefix cache."""

    id: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Prompt tokens computed so far (cached ones included), while the first token is awaited."""

    id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why there is no text yet, in plain words; each one replaces the one before."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New text (complete characters only) and the tokens behind it."""

    id: str
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that was answered (also when it was cancelled)."""

    id: str
    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be answered. `code` is stable, `message` is for people."""

    id: str
    code: str
    message: str


ModelStatus = Literal["none", "loading", "ready", "unloading", "failed", "dead"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded. Sizes are in bytes, `context_len` in tokens."""

    name: str
    path: str
    family: str
    parameters: int
    layers: int
    context_len: int
    device: str
    weights: str  # "fp32", "bf16", "fp16", "int4 g128", "AWQ int4 g128"
    kv: str  # "fp32", "bf16", "fp16", "int8", "int4"
    max_batch: int
    has_template: bool
    stored: str = ""  # "AWQ int4 g128", "FP8": what the files hold where it is quantised


@dataclass(frozen=True, slots=True)
class ModelState:
    """The engine's model changed state. While loading, `progress` runs from 0 to 1 and `message` says what is
    being done; `failed` and `dead` carry the reason in `message`, and `failed` the error itself. `place` names the
    server that the model runs on, empty for this process; where `info` is not known, `context_len` may be."""

    status: ModelStatus
    name: str = ""
    progress: float = 0.0
    message: str = ""
    info: ModelInfo | None = None
    error: LmtopError | None = None
    place: str = ""
    context_len: int | None = None

    @property
    def context(self) -> int | None:
        """Tokens of the context, as far as it is known."""
        return self.info.context_len if self.info is not None else self.context_len


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know once, in plain words: a clamped setting, a fallback, a warning."""

    text: str
    level: Literal["info", "warning", "error"] = "info"


Event = Accepted | Started | Progress | Waiting | Delta | Finished | Failed | ModelState | Notice


# --- snapshots ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemorySplit:
    """Bytes on the engine's device (VRAM, or RAM where there is no GPU). None: cannot be read.

    weights + kv_used + kv_rest + workspace + others + free = total. `kv_rest` is free and evictable blocks;
    `others` is everything not ours.
    """

    device: str
    total: int | None
    weights: int
    kv_used: int
    kv_rest: int
    workspace: int
    others: int | None


@dataclass(frozen=True, slots=True)
class KVSnapshot:
    """The block pool. `owners[i]` is 0 for a free block, 1 for a cached one nobody holds (evictable), 2 + k
    for the k-th entry of `sessions`; `shared[i]` counts holders when more than one, else 0 or 1. Both are
    empty when the map was not asked for."""

    block_size: int
    total: int
    free: int
    cached: int
    used: int
    owners: bytes = b""  # little-endian uint16 per block
    shared: bytes = b""  # uint8 per block, saturating
    sessions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """One batch row that holds a request."""

    row: int
    request: str
    session: str
    label: str
    phase: Literal["prefill", "decode"]
    prompt_tokens: int
    computed: int
    generated: int
    blocks: int
    tokens_per_s: float
    ttft_s: float | None
    temperature: float


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """One waiting request and, in plain words, why it waits."""

    request: str
    session: str
    label: str
    prompt_tokens: int
    waited_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server says of itself where it tells totals only. None: it does not say. `kv_share` is from 0 to 1,
    rates are tokens/s over all its requests."""

    running: int | None = None
    waiting: int | None = None
    kv_share: float | None = None
    decode_tps: float | None = None
    prefill_tps: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What the gauges show, measured at `time` (monotonic seconds). Rates are over the last second.

    `heartbeat` rises with each step and each idle tick, so that a stall can be told from idleness. `load` is set for
    a server whose requests and blocks cannot be seen: it then says all there is, and the other figures nothing.
    """

    time: float
    status: ModelStatus
    heartbeat: int
    steps: int
    memory: MemorySplit | None
    kv: KVSnapshot | None
    slots: tuple[SlotSnapshot, ...]
    max_batch: int
    queue: tuple[QueueSnapshot, ...]
    decode_tps: float
    prefill_tps: float
    step_ms_p50: float
    step_ms_p99: float
    load: ServerLoad | None = None


# --- inside the loop ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowStart:
    """A sequence takes a batch row: what the sampler of that row must know. `seed` is already drawn.

    `history` is prompt + tokens generated before a preemption, `n_prompt` of which are the prompt. `rope_len`
    is the length that length-dependent rotary frequencies start from (`engine.rope`): the prompt's, or more
    after a recompute.
    """

    row: int
    seq: int
    sampling: SamplingParams
    seed: int
    history: tuple[int, ...]
    n_prompt: int
    rope_len: int


@dataclass(frozen=True, slots=True)
class TableDiff:
    """Entries [first, first + len(blocks)) of a row's block table."""

    row: int
    first: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Compute positions [start, start + count) of a row. `tokens` are their ids; empty for a decode work,
    whose one id is the row's last sampled token, still on the device. `samples`: draw the next token, whose
    position is start + count."""

    seq: int
    epoch: int
    row: int
    start: int
    count: int
    tokens: tuple[int, ...]
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, as plain integers. `starts` and `tables` are applied first, then `decode`, then `prefill`."""

    step: int
    starts: tuple[RowStart, ...]
    tables: tuple[TableDiff, ...]
    decode: tuple[Work, ...]
    prefill: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class RowOutput:
    """The token drawn for a work that samples. `logprob` and `top` ((id, logprob), most likely first) are set
    when the request asked for them. Not `finite`: the logits held NaN or inf, the token is meaningless."""

    seq: int
    epoch: int
    token: int
    finite: bool = True
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step drew. `prefill_s` and `decode_s` are the measured seconds of its two parts."""

    step: int
    rows: tuple[RowOutput, ...]
    prefill_s: float = 0.0
    decode_s: float = 0.0
