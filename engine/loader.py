"""From an `EngineConfig` to a loaded model: files, plan, tokenizer, weights, cache, warm-up.

torch is imported inside, so that importing this module costs nothing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

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
from .faults import NONE, Faults
from .spec import ModelFiles, read_spec
from .types import GREEDY, Cancelled, DeviceError, ModelInfo, RowStart, StepPlan, TableDiff, Work

if TYPE_CHECKING:
    from .model import Decoder
    from .runner import Runner
    from .scheduler import Scheduler
    from .template import ChatTemplate
    from .tokenizer import Tokenizer

ProgressFn = Callable[[float, str], None]
PREPARED = 0.35  # of the progress: what needs no memory is done


@dataclass(slots=True)
class Engine:
    """One loaded model and all that runs it. Owned by the engine thread."""

    config: EngineConfig
    plan: Plan
    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate
    scheduler: Scheduler
    runner: Runner
    overlap: bool
    weights_bytes: int
    kv_bytes: int
    notices: tuple[str, ...] = ()


def sizes_of(files: ModelFiles) -> ModelSizes:
    """What `resolve` needs to know, from the headers alone."""
    spec = files.spec
    return ModelSizes(
        parameters=files.parameters,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        hidden=spec.hidden,
        widest=files.widest,
        vocab=spec.vocab,
        max_position=spec.max_position,
    )


def device_info(wanted: str = "auto", reclaim: int = 0) -> DeviceInfo:
    """The device that `wanted` means here; `reclaim` bytes of ours will be free by then. DeviceError when it is
    forced and missing."""
    if wanted not in ("auto", "cpu"):
        raise DeviceError(f"device = {wanted!r}: only cpu is available in this version; leave it at auto")
    memory = psutil.virtual_memory()
    return DeviceInfo("cpu", "CPU", memory.total, min(memory.total, memory.available + reclaim))


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
    then is free once the exception is handled."""
    import torch

    from ..kernels import reference
    from . import weights as weights_module
    from .blocks import BlockPool
    from .model import Decoder
    from .runner import allocating
    from .scheduler import Scheduler

    def check() -> None:
        if cancelled():
            raise Cancelled

    config, files, plan = prepared.config, prepared.files, prepared.plan
    device = torch.device(prepared.device.kind)
    torch.set_num_threads(config.threads or _threads(files.parameters))
    check()
    progress(0.4, "reading the weights")
    with allocating():
        faults("alloc")
        weights = weights_module.load_weights(
            files,
            getattr(torch, plan.dtype),
            device,
            progress=lambda share, text: progress(0.4 + 0.5 * share, text),
            cancelled=cancelled,
        )
    check()
    progress(0.9, "laying out the KV cache")
    tokenizer, template = prepared.tokenizer, prepared.template
    eos = frozenset(files.eos_ids) | frozenset(tokenizer.eos_ids) | frozenset(template.stop_ids)
    runner, plan = _with_cache(Decoder(files.spec, weights, reference), prepared, eos, faults)
    scheduler = Scheduler(
        BlockPool(plan.num_blocks, plan.block_size, f"{files.digest}:{plan.kv_dtype}".encode()),
        max_batch=plan.max_batch,
        max_prefill_tokens=config.max_prefill_token_num,
        context_len=plan.context_len,
        eos_ids=eos,
        prefix_caching=config.prefix_caching,
        rope=files.spec.rope,
    )
    check()
    progress(0.95, "warming up")
    with allocating():
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
        notices=(*plan.notices, *files.notices, *weights.notices),
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
    decoder: Decoder, prepared: Prepared, eos: frozenset[int], faults: Faults
) -> tuple[Runner, Plan]:
    """A runner with the planned KV cache, or with half of it, and so on, while one whole context still fits:
    the plan may be older than another process's allocation. MemoryError when not even that is to be had."""
    import torch

    from .runner import Runner, allocating

    plan = prepared.plan
    while True:
        try:
            with allocating():
                faults("alloc.kv")
                runner = Runner(
                    decoder,
                    max_batch=plan.max_batch,
                    num_blocks=plan.num_blocks,
                    block_size=plan.block_size,
                    max_context=plan.context_len,
                    vocab=prepared.files.spec.vocab,
                    device=torch.device(prepared.device.kind),
                    eos_ids=tuple(sorted(eos)),
                )
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
        weights=DTYPE_SHORT[plan.dtype],
        kv=DTYPE_SHORT[plan.kv_dtype],
        max_batch=plan.max_batch,
        has_template=not prepared.template.plain,
    )


def _threads(parameters: int) -> int:
    """CPU threads for a model: a second thread costs a small one more in wake-ups than it computes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if parameters < 50_000_000 else max(1, cores)


def _warm_up(runner: Runner, plan: Plan) -> None:
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
