"""What the user wants of the engine, and the plan that follows from it.

`EngineConfig` is the intent (every field may be left to `auto`). `resolve` turns it, the model's sizes and the
device's memory into a frozen `Plan`, as a pure function; nothing is decided anywhere else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from ..quant.kv import KV_FORMATS, kv_bytes_per_token
from .types import DeviceError, UsageError

WEIGHT_FORMATS = ("16", "int4")
SPARE_CACHE = 4  # times what all slots can use: the most that a GPU's cache gets by default
GROUP = 128  # inputs that share a scale and a zero point in int4 weights
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPE_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

# Interpreter, torch and the tables of one model, resident beside weights and cache: 330 MB read from
# /proc/self/status with stories260k loaded on the CPU (torch 2.13, x86-64).
RUNTIME_BYTES = 330 << 20
# The same of a CUDA process: context, kernels, cuBLAS workspace and graphs.
GPU_RUNTIME_BYTES = 840 << 20


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Intent. `model` is a directory, a hub id or "demo". `cache_max_entry_count` in (0, 1) is a share of the
    memory that is free after weights and workspace (None: 0.8 on a GPU, at most four times what all slots can
    use; 0.25 of the RAM on the CPU, which others need too), an integer >= 1 is a number of blocks; `cache_bytes` overrides it. Lengths are in
    tokens, `step_ms_target` bounds a prefill chunk while others decode."""

    model: str
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    weights: str = "auto"  # auto | 16 | int4
    kv: str = "auto"  # auto | 16 | int8 | int4
    head: str = "auto"  # auto | 16 | int4: the last matrix, which int4 weights leave alone otherwise
    session_len: int | None = None
    max_batch_size: int = 8
    cache_max_entry_count: float | None = None
    cache_bytes: int | None = None
    cache_block_seq_len: int = 64
    max_prefill_token_num: int = 2048
    step_ms_target: float = 25.0
    prefix_caching: bool = True
    overlap: bool | None = None  # None: on a GPU only
    graphs: bool = True  # on a GPU: replay decode steps as CUDA graphs
    reproducible: bool = False  # same seed, same tokens whatever else runs: fixed kernels and chunks, slower
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
    matrices: int = 0  # parameters in the layers' matrices, which int4 weights quantise
    largest: int = 0  # elements of the largest of them
    head: int = 0  # elements of the last matrix, where it is not the embedding itself
    stored: str = "bfloat16"  # type of most of the stored parameters
    quantised: str = ""  # what most matrices are stored as where they are quantised, e.g. "AWQ int4 g128"
    int4: tuple[
        tuple[int, int], ...
    ] = ()  # (group, elements) of the layers' matrices with four-bit codes of their own
    int4_head: int = 0  # group of the last matrix where it has such codes


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Where the engine runs; bytes as its driver (or the operating system) reports them before the load.
    `capability`: of a GPU, 10 * major + minor; `notice`: what the user should know of the choice."""

    kind: str  # cpu | cuda
    name: str
    total: int
    free: int
    capability: int = 90
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of one load, in bytes, decided before anything is allocated. `fits` is advice for the load
    dialog (`reason` says by how much not, and the largest context that would); the loader enforces it."""

    dtype: str
    weight_format: str  # 16 (of `dtype`, whatever its width) | int4
    kv_format: str  # 16 (of `dtype`) | int8 | int4
    head_format: str
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
    own: str = ""  # what the checkpoint's own four-bit weights are called, where they are used as they are

    @property
    def weights_name(self) -> str:
        """What the weights are called on the screen, e.g. "bf16", "int4 g128" or "AWQ int4 g128"."""
        if self.weight_format == "16":
            return DTYPE_SHORT[self.dtype]
        return self.own or f"int4 g{GROUP}"

    @property
    def kv_name(self) -> str:
        """What the KV cache is called on the screen, e.g. "bf16" or "int8"."""
        return DTYPE_SHORT[self.dtype] if self.kv_format == "16" else self.kv_format


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

    weight_format, head_format = _weight_formats(intent, sizes, device, width)
    kv_format = _choice("kv", intent.kv, KV_FORMATS)
    own = sizes.quantised if weight_format == "int4" and sizes.int4 else ""
    if sizes.quantised and not own:
        notices.append(_dequantised(intent, sizes, dtype, weight_format))
    weights = _weight_bytes(sizes, width, weight_format, head_format, device)
    per_token = kv_bytes_per_token(sizes.layers, sizes.kv_heads, sizes.head_dim, kv_format, width)
    workspace = _workspace(intent, sizes, context, weight_format, device)
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
        weight_format=weight_format,
        kv_format=kv_format,
        head_format=head_format,
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
        own=own,
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


def _choice(name: str, wanted: str, allowed: tuple[str, ...]) -> str:
    if wanted != "auto" and wanted not in allowed:
        raise UsageError(f"{name} = {wanted!r}: must be auto, {', '.join(allowed)}")
    return "16" if wanted == "auto" else wanted


def _dtype(intent: EngineConfig, sizes: ModelSizes, device: DeviceInfo) -> str:
    if intent.dtype != "auto" and intent.dtype not in DTYPE_BYTES:
        raise UsageError(f"dtype = {intent.dtype!r}: must be auto, float32, bfloat16 or float16")
    if device.kind == "cuda":
        return _gpu_dtype(intent.dtype, sizes, device)
    if intent.dtype != "auto":
        return intent.dtype
    # fp32 is the CPU's fastest exact type; bf16 halves a model that would crowd the RAM
    return "float32" if sizes.parameters * 4 <= device.free // 2 else "bfloat16"


def _gpu_dtype(wanted: str, sizes: ModelSizes, device: DeviceInfo) -> str:
    """The stored type where the GPU computes in it."""
    if wanted == "float32":
        raise UsageError(
            "dtype = 'float32': a GPU computes in float16 or bfloat16; use them, or device = cpu"
        )
    if wanted == "bfloat16" and device.capability < 80:
        raise UsageError(f"dtype = 'bfloat16': {device.name} has no bfloat16; use float16")
    if wanted != "auto":
        return wanted
    return "bfloat16" if sizes.stored == "bfloat16" and device.capability >= 80 else "float16"


def _weight_formats(
    intent: EngineConfig, sizes: ModelSizes, device: DeviceInfo, width: int
) -> tuple[str, str]:
    """Formats of the layers' matrices and of the last one. Left to us, four-bit weights of the checkpoint stay so,
    but for a CPU with room for more: there they have to be made plain again for every step, at 20 times the cost."""
    weights = _choice("weights", intent.weights, WEIGHT_FORMATS)
    head = _choice("head", intent.head, WEIGHT_FORMATS)
    keep = device.kind == "cuda" or sizes.parameters * width > device.free // 2
    if intent.weights == "auto" and sizes.int4 and keep:
        weights = "int4"
    if intent.head == "auto" and sizes.int4_head and weights == "int4":
        head = "int4"
    return weights, head


def _dequantised(intent: EngineConfig, sizes: ModelSizes, dtype: str, weight_format: str) -> str:
    """What the user should know of quantised weights that are not used as they are."""
    made = f"{sizes.quantised} weights are dequantised to {DTYPE_SHORT[dtype]} at load"
    if weight_format == "int4":
        return f"{made}, then rounded to int4 g{GROUP}"
    if sizes.int4 and intent.weights == "auto":
        return f"{made}: faster on a CPU; weights = int4 keeps them small"
    return made


def _weight_bytes(
    sizes: ModelSizes, width: int, weight_format: str, head_format: str, device: DeviceInfo
) -> int:
    """Bytes of all weights. Packed int4: a nibble and its part of the group's scale and zero point; the CPU
    keeps a code in a byte of its own."""

    def packed(elements: int, group: int) -> int:
        return int(elements * (0.5 + 4 / group if device.kind == "cuda" else 1 + 3 / group))

    quantised = ((GROUP, sizes.matrices),) if not sizes.int4 else sizes.int4
    total = sizes.parameters * width
    if weight_format == "int4":
        total += sum(packed(elements, group) - elements * width for group, elements in quantised)
    if head_format == "int4":
        # a tied embedding stays beside its quantised twin
        total += packed(sizes.hidden * sizes.vocab, sizes.int4_head or GROUP) - sizes.head * width
    return total


def _workspace(
    intent: EngineConfig, sizes: ModelSizes, context: int, weight_format: str, device: DeviceInfo
) -> int:
    """Bytes beside weights and cache: the runtime itself, the activations of a prefill chunk, logits of a whole
    batch, and on a GPU a matrix unpacked for large products."""
    chunk = min(intent.max_prefill_token_num, context)
    activations = chunk * (4 * sizes.hidden + 2 * sizes.widest)
    if device.kind == "cpu":
        return RUNTIME_BYTES + 4 * (activations + 3 * intent.max_batch_size * sizes.vocab)
    unpacked = 2 * sizes.largest if weight_format == "int4" else 0
    logits = 4 * intent.max_batch_size * sizes.vocab
    return GPU_RUNTIME_BYTES + 2 * activations + logits + unpacked


def _blocks_for(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def _cache_blocks(intent: EngineConfig, device: DeviceInfo, spare: int, per_block: int, wanted: int) -> int:
    """Blocks that hold tokens. On the CPU never more than all slots can use: RAM is not ours alone."""
    entry = intent.cache_max_entry_count
    if intent.cache_bytes is not None:
        return intent.cache_bytes // per_block
    if entry is not None and entry >= 1:
        return int(entry)
    if device.kind == "cpu":
        return min(int(spare * (entry or 0.25)) // per_block, wanted)
    # unasked, a small model leaves the card to others; what is more than the slots' own need keeps prefixes
    most = SPARE_CACHE * wanted if entry is None else sys.maxsize
    return min(int(spare * (entry or 0.8)) // per_block, most)
