"""From an `EngineConfig` to a loaded model: files, plan, tokenizer, weights, cache, warm-up.

torch is imported inside, so that importing this module costs nothing.
"""

from __future__ import annotations

import gc
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import models
from .config import (
    DTYPE_SHORT,
    DeviceInfo,
    EngineConfig,
    ModelSizes,
    Plan,
    require_fit,
    resolve,
    with_blocks,
)
from .devices import cpu_info, device_info
from .faults import NONE, Faults
from .hfconfig import name_some
from .memory import DeviceMemory, Vram, memory_of
from .roles import FUSED
from .spec import ModelFiles, read_spec
from .types import GREEDY, Cancelled, DeviceError, ModelInfo, RowStart, StepPlan, TableDiff, Work

if TYPE_CHECKING:
    from .hardware import Hardware
    from .model import Decoder
    from .runner import StepRunner
    from .scheduler import Scheduler
    from .template import ChatTemplate
    from .tokenizer import Tokenizer
    from .weights import Weights

ProgressFn = Callable[[float, str], None]
PREPARED = 0.35  # of the progress: what needs no memory is done
COMPILED = 0.45  # the kernels are there


@dataclass(slots=True)
class Engine:
    """One loaded model and all that runs it. Owned by the engine thread."""

    config: EngineConfig
    plan: Plan
    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate
    scheduler: Scheduler
    runner: StepRunner
    overlap: bool
    weights_bytes: int
    kv_bytes: int
    memory: DeviceMemory
    measured: (
        int | None
    )  # bytes that this process held of a GPU when it was loaded; the plan says `plan.total`
    notices: tuple[str, ...] = ()


def sizes_of(files: ModelFiles) -> ModelSizes:
    """What `resolve` needs to know, from the headers alone."""
    spec = files.spec
    elements: Counter[int] = Counter()  # in the layers' matrices, by the group size of their own codes
    for place in files.placed:
        if place.layer >= 0 and place.part == "weight" and len(place.shape) == 2:
            key = (place.layer, FUSED.get(place.role, place.role))
            elements[files.int4.get(key, 0)] += math.prod(place.shape)
    # fused matrices are as large as what goes into them: gate | up is the largest of a layer
    return ModelSizes(
        matrices=elements.total(),
        largest=spec.hidden * files.widest,
        head=0 if spec.tied else spec.hidden * spec.vocab,
        stored=files.dtype,
        quantised=files.quantised,
        int4=tuple(sorted((group, count) for group, count in elements.items() if group)),
        int4_head=files.int4.get((-1, "lm_head"), 0),
        parameters=files.parameters,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        hidden=spec.hidden,
        widest=files.widest,
        vocab=spec.vocab,
        max_position=spec.max_position,
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that can be loaded: everything is checked that needs no memory."""

    config: EngineConfig
    directory: Path
    files: ModelFiles
    device: DeviceInfo
    plan: Plan
    tokenizer: Tokenizer
    template: ChatTemplate


def prepare(
    config: EngineConfig,
    progress: ProgressFn = lambda share, text: None,
    cancelled: Callable[[], bool] = lambda: False,
    reclaim: int = 0,
) -> Prepared:
    """Find (or download) `config.model`, check its files, plan its memory, read tokenizer and template; another
    model may go on working meanwhile, `reclaim` are the bytes it will give back. Raises ModelError,
    DeviceError, RemoteError, UsageError or Cancelled. `progress` gets a share up to `PREPARED`."""

    def check() -> None:
        if cancelled():
            raise Cancelled

    progress(0.0, "finding the model")
    directory = models.locate(
        config.model, lambda share, text: progress(0.3 * share, text), cancelled, config.folders
    )
    check()
    progress(0.3, "checking the files")
    files = read_spec(directory)
    device = device_info(config.device, reclaim)
    plan = resolve(config, sizes_of(files), device)
    require_fit(plan, device, config.force)

    from .template import load_template
    from .tokenizer import load_tokenizer

    check()
    progress(0.32, "reading the tokenizer")
    tokenizer = load_tokenizer(directory, files.family, files.spec.vocab)
    template = load_template(directory, files.family, tokenizer)
    check()
    progress(PREPARED, "starting torch")
    return Prepared(config, directory, files, device, plan, tokenizer, template)


def build(
    prepared: Prepared,
    progress: ProgressFn = lambda share, text: None,
    cancelled: Callable[[], bool] = lambda: False,
    faults: Faults = NONE,
) -> Engine:
    """Allocate and load what was prepared. Raises ModelError, MemoryError or Cancelled; what was allocated by
    then is free once the exception is handled. A GPU whose kernels do not run is left for the CPU, with a notice,
    unless it was asked for: then DeviceError."""
    from .hardware import KernelError, release_pool

    try:
        return _build(prepared, progress, cancelled, faults)
    except KernelError as error:
        if prepared.config.device != "auto":
            raise DeviceError(f"{error}; device = cpu runs without") from error
        reason = str(error)
    gc.collect()
    release_pool()
    return _build(_on_cpu(prepared, reason), progress, cancelled, faults)


def _on_cpu(prepared: Prepared, reason: str) -> Prepared:
    """The same model on the CPU; DeviceError when it has no room there."""
    device = cpu_info(notice=f"running on the CPU, not on {prepared.device.name}: {reason}")
    plan = resolve(prepared.config, sizes_of(prepared.files), device)
    try:
        require_fit(plan, device, prepared.config.force)
    except DeviceError as error:
        raise DeviceError(f"{reason}; and {error}") from error
    return replace(prepared, device=device, plan=plan)


def _build(prepared: Prepared, progress: ProgressFn, cancelled: Callable[[], bool], faults: Faults) -> Engine:
    import torch

    from . import weights as weights_module
    from .blocks import BlockPool
    from .hardware import kernel_errors, open_hardware
    from .model import Decoder
    from .runner import allocating
    from .scheduler import Scheduler

    def check() -> None:
        if cancelled():
            raise Cancelled

    config, files, plan = prepared.config, prepared.files, prepared.plan
    torch.set_num_threads(config.threads or _threads(files.parameters))
    check()
    memory = memory_of(prepared.device)
    with allocating(), kernel_errors():
        faults("alloc")
        hardware = open_hardware(
            config,
            plan,
            files,
            prepared.device.kind,
            lambda share, text: progress(PREPARED + (COMPILED - PREPARED) * share, text),
            cancelled,
            faults,
        )
        check()
        progress(COMPILED, "reading the weights")
        weights = weights_module.load_weights(
            files,
            getattr(torch, plan.dtype),
            hardware.device,
            progress=lambda share, text: progress(COMPILED + (0.9 - COMPILED) * share, text),
            cancelled=cancelled,
            prepare=hardware.layer,
        )
    check()
    progress(0.9, "laying out the KV cache")
    tokenizer, template = prepared.tokenizer, prepared.template
    eos = frozenset(files.eos_ids) | frozenset(tokenizer.eos_ids) | frozenset(template.stop_ids)
    decoder = Decoder(files.spec, weights, hardware.ops, plan.kv_format)
    with kernel_errors():
        runner, plan = _with_cache(decoder, hardware, files.spec.vocab, eos, faults)
    scheduler = Scheduler(
        BlockPool(plan.num_blocks, plan.block_size, f"{files.digest}:{plan.kv_name}".encode()),
        max_batch=plan.max_batch,
        max_prefill_tokens=config.max_prefill_token_num,
        context_len=plan.context_len,
        eos_ids=eos,
        # a cached beginning was computed in chunks of another prompt
        prefix_caching=config.prefix_caching and not config.reproducible,
        rope=files.spec.rope,
    )
    check()
    progress(0.95, "warming up")
    with allocating(), kernel_errors():
        _warm_up(runner, plan)
    runner.faults = faults
    gc.collect()
    gc.freeze()  # weights and tables live as long as the model: keep the collector off them
    progress(1.0, "ready")
    return Engine(
        config=config,
        plan=plan,
        info=_info(prepared, plan),
        tokenizer=tokenizer,
        template=template,
        scheduler=scheduler,
        runner=runner,
        overlap=config.overlap if config.overlap is not None else prepared.device.kind == "cuda",
        weights_bytes=weights.nbytes,
        kv_bytes=plan.kv,
        memory=memory,
        measured=memory.loaded() if isinstance(memory, Vram) else None,
        notices=(
            *filter(None, (prepared.device.notice,)),
            *plan.notices,
            *files.notices,
            *_told(plan, weights),
        ),
    )


def load(
    config: EngineConfig,
    progress: ProgressFn = lambda share, text: None,
    cancelled: Callable[[], bool] = lambda: False,
    faults: Faults = NONE,
) -> Engine:
    """`prepare` and `build` in one."""
    return build(prepare(config, progress, cancelled), progress, cancelled, faults)


def _with_cache(
    decoder: Decoder, hardware: Hardware, vocab: int, eos: frozenset[int], faults: Faults
) -> tuple[StepRunner, Plan]:
    """A runner with the planned KV cache, or with half of it, and so on, while one whole context still fits:
    the plan may be older than another process's allocation. MemoryError when not even that is to be had."""
    from .runner import allocating

    plan = hardware.plan
    while True:
        try:
            with allocating():
                faults("alloc.kv")
                runner = hardware.runner(decoder, plan, vocab, tuple(sorted(eos)))
            return runner, plan
        except MemoryError:
            smaller = with_blocks(plan, (plan.num_blocks - 1) // 2)
            if smaller.tokens_held < plan.context_len:
                raise
            plan = smaller


def _info(prepared: Prepared, plan: Plan) -> ModelInfo:
    files = prepared.files
    return ModelInfo(
        name=models.display_name(prepared.config.model, prepared.directory),
        path=str(prepared.directory),
        family=files.family,
        parameters=files.parameters,
        layers=files.spec.layers,
        context_len=plan.context_len,
        device=prepared.device.name,
        weights=plan.weights_name,
        kv=plan.kv_name,
        max_batch=plan.max_batch,
        has_template=not prepared.template.plain,
        stored=files.quantised,
    )


def _told(plan: Plan, weights: Weights) -> tuple[str, ...]:
    """What the user should know of loaded weights."""
    if not plan.own or not weights.plain:
        return weights.notices
    why = "no kernel runs them, or what is fused with them is stored in another form"
    names = name_some(weights.plain)
    return (
        f"{plan.own} weights dequantised to {DTYPE_SHORT[plan.dtype]} ({why}): {names}.",
        *weights.notices,
    )


def _threads(parameters: int) -> int:
    """CPU threads for a model: a second thread costs a small one more in wake-ups than it computes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if parameters < 50_000_000 else max(1, cores)


def _warm_up(runner: StepRunner, plan: Plan) -> None:
    """One prefill and one decode step, so that the first request pays for no first call."""
    tokens = (0,) * min(16, plan.context_len - 2)
    start = RowStart(
        row=0, seq=-1, sampling=GREEDY, seed=0, history=tokens, n_prompt=len(tokens), rope_len=len(tokens)
    )
    table = TableDiff(row=0, first=0, blocks=(0,))
    first = Work(-1, 0, 0, 0, len(tokens), tokens, samples=True)
    second = Work(-1, 0, 0, len(tokens), 1, (), samples=True)
    runner.collect(runner.launch(StepPlan(0, (start,), (table,), (), (first,))))
    runner.collect(runner.launch(StepPlan(1, (), (), (second,), ())))
    runner.reset()
