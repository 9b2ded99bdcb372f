"""What the user wants of the engine, and the plan that follows from it.

`EngineConfig` is the intent (every field may be left to `auto`). `resolve` turns it, the model's sizes and the
device's memory into a frozen `Plan`, as a pure function; nothing is decided anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .types import DeviceError, UsageError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPE_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

# Interpreter, torch and the tables of one model, resident beside weights and cache: 330 MB read from
# /proc/self/status with stories260k loaded on the CPU (torch 2.13, x86-64).
RUNTIME_BYTES = 330 << 20


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Intent. `model` is a directory, a hub id or "demo". `cache_max_entry_count` in (0, 1) is a share of the
    memory that is free after weights and workspace (None: 0.8 on a GPU, 0.25 of the RAM on the CPU, which
    others need too), an integer >= 1 is a number of blocks; `cache_bytes` overrides it. Lengths are in
    tokens, `step_ms_target` bounds a prefill chunk while others decode."""

    model: str
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    session_len: int | None = None
    max_batch_size: int = 8
    cache_max_entry_count: float | None = None
    cache_bytes: int | None = None
    cache_block_seq_len: int = 64
    max_prefill_token_num: int = 2048
    step_ms_target: float = 25.0
    prefix_caching: bool = True
    overlap: bool | None = None  # None: on a GPU only
    threads: int | None = None  # CPU threads of the reference backend; None: chosen by size
    max_queue: int = 128
    force: bool = False  # load even where the plan says that it will not fit
    folders: tuple[str, ...] = ()  # where to look for models, beside the usual caches

    def __post_init__(self) -> None:
        size = self.cache_block_seq_len
        if size < 16 or size > 128 or size & (size - 1):
            raise UsageError(f"cache_block_seq_len = {size}: must be 16, 32, 64 or 128")
        if not 1 <= self.max_batch_size <= 512:
            raise UsageError(f"max_batch_size = {self.max_batch_size}: must be from 1 to 512")
        if self.cache_max_entry_count is not None and self.cache_max_entry_count <= 0:
            raise UsageError(
                f"cache_max_entry_count = {self.cache_max_entry_count}: must be a ratio in (0, 1) or a number of blocks"
            )
        if self.session_len is not None and self.session_len < 16:
            raise UsageError(f"session_len = {self.session_len}: must be at least 16")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What the plan needs to know of a model, read from its headers. Lengths in tokens, widths in elements."""

    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    widest: int  # the widest activation row of a layer: gate and up together, or fused q, k, v
    vocab: int
    max_position: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Where the engine runs; bytes as its driver (or the operating system) reports them before the load."""

    kind: str  # cpu | cuda
    name: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of one load, in bytes, decided before anything is allocated. `fits` is advice for the load
    dialog (`reason` says by how much not, and the largest context that would); the loader enforces it."""

    dtype: str
    kv_dtype: str
    context_len: int
    max_batch: int
    block_size: int
    num_blocks: int  # block 0, the pad block, included
    weights: int
    kv_per_token: int
    kv: int
    workspace: int
    total: int
    tokens_held: int
    fits: bool
    reason: str = ""
    notices: tuple[str, ...] = ()


def resolve(intent: EngineConfig, sizes: ModelSizes, device: DeviceInfo) -> Plan:
    """The plan that `intent` gets for a model of `sizes` on `device`. Pure; never raises for lack of memory."""
    dtype = _dtype(intent, sizes, device)
    width = DTYPE_BYTES[dtype]
    notices: list[str] = []
    context = min(intent.session_len or sizes.max_position, sizes.max_position)
    if intent.session_len and intent.session_len > sizes.max_position:
        notices.append(
            f"context clamped to the model's {sizes.max_position} tokens (asked: {intent.session_len})"
        )

    weights = sizes.parameters * width
    per_token = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * width
    chunk = min(intent.max_prefill_token_num, context)
    workspace = RUNTIME_BYTES + 4 * (
        chunk * (4 * sizes.hidden + 2 * sizes.widest) + 3 * intent.max_batch_size * sizes.vocab
    )
    size = intent.cache_block_seq_len
    per_block = per_token * size
    room = device.free - weights - workspace  # negative when not even these fit
    spare = max(0, room)
    wanted = _blocks_for(context, size) * intent.max_batch_size
    blocks = _cache_blocks(intent, device, spare, per_block, wanted)

    need = _blocks_for(context, size)
    fixed = intent.session_len is not None
    if blocks < need and not fixed and blocks > 0:
        context = blocks * size
        notices.append(
            f"context lowered to {context} tokens: that is what the KV cache of {blocks} blocks holds"
        )
    fits = blocks > 0 and blocks >= _blocks_for(context, size) and blocks * per_block <= spare
    total = weights + workspace + blocks * per_block
    reason = "" if fits else _reason(intent, sizes, device, room, per_block, context, blocks)
    return Plan(
        dtype=dtype,
        kv_dtype=dtype,
        context_len=context,
        max_batch=intent.max_batch_size,
        block_size=size,
        num_blocks=blocks + 1,
        weights=weights,
        kv_per_token=per_token,
        kv=(blocks + 1) * per_block,
        workspace=workspace,
        total=total,
        tokens_held=blocks * size,
        fits=fits,
        reason=reason,
        notices=tuple(notices),
    )


def with_blocks(plan: Plan, blocks: int) -> Plan:
    """`plan` with a smaller KV cache of `blocks` blocks, and a notice that says so."""
    per_block = plan.kv_per_token * plan.block_size
    return replace(
        plan,
        num_blocks=blocks + 1,
        kv=(blocks + 1) * per_block,
        total=plan.weights + plan.workspace + blocks * per_block,
        tokens_held=blocks * plan.block_size,
        notices=(
            *plan.notices,
            f"the KV cache was reduced to {blocks * plan.block_size} tokens: the device had no room for more",
        ),
    )


def require_fit(plan: Plan, device: DeviceInfo, force: bool = False) -> None:
    """Raise DeviceError with the numbers when the plan cannot be carried out. `force` takes the prediction as
    advice, but not what the device could never hold."""
    if not plan.fits and (not force or plan.total > device.total):
        raise DeviceError(
            f"not enough memory on {device.name}: needs {_bytes(plan.total)} "
            f"(weights {_bytes(plan.weights)}), {plan.reason}"
        )


def _reason(
    intent: EngineConfig,
    sizes: ModelSizes,
    device: DeviceInfo,
    room: int,
    per_block: int,
    context: int,
    blocks: int,
) -> str:
    """By how much a plan does not fit, and the way out; the setting that asks too little or too much is named."""
    size = intent.cache_block_seq_len
    need = _blocks_for(context, size) * per_block
    if intent.cache_bytes is not None and intent.cache_bytes < need <= room:
        return (
            f"cache_size = {_bytes(intent.cache_bytes)}: a context of {context} tokens needs {_bytes(need)}"
        )
    missing = max(need, blocks * per_block) - room
    largest = max(0, min(room // per_block * size, sizes.max_position))
    way_out = (
        f"the largest context that would fit is {largest} tokens" if largest else "choose a smaller model"
    )
    if intent.cache_bytes is not None and intent.cache_bytes > room >= need:
        more = f"{_bytes(missing)} more than the {_bytes(room)} free for it"
        return f"cache_size = {_bytes(intent.cache_bytes)}: {more}; {way_out}"
    return f"{_bytes(max(missing, 0))} more than the {_bytes(device.free)} free; {way_out}"


def _bytes(value: int) -> str:
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 1 << power:
            return f"{value / (1 << power):.1f} {unit}"
    return f"{value} B"


def _dtype(intent: EngineConfig, sizes: ModelSizes, device: DeviceInfo) -> str:
    if intent.dtype != "auto":
        if intent.dtype not in DTYPE_BYTES:
            raise UsageError(f"dtype = {intent.dtype!r}: must be auto, float32, bfloat16 or float16")
        return intent.dtype
    # fp32 is the CPU's fastest exact type; bf16 halves a model that would crowd the RAM
    return "float32" if device.kind == "cpu" and sizes.parameters * 4 <= device.free // 2 else "bfloat16"


def _blocks_for(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def _cache_blocks(intent: EngineConfig, device: DeviceInfo, spare: int, per_block: int, wanted: int) -> int:
    """Blocks that hold tokens. On the CPU never more than all slots can use: RAM is not ours alone."""
    entry = intent.cache_max_entry_count
    if intent.cache_bytes is not None:
        return intent.cache_bytes // per_block
    if entry is not None and entry >= 1:
        return int(entry)
    if entry is None:
        entry = 0.25 if device.kind == "cpu" else 0.8
    blocks = int(spare * entry) // per_block
    return min(blocks, wanted) if device.kind == "cpu" else blocks
