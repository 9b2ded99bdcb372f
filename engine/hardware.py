"""What a device brings to a load: operations, the form of its weights, and the runner.

The only place that knows how many backends there are. torch and the backends are imported inside, so that importing
this module costs nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import GROUP, EngineConfig, Plan
from .faults import NONE, Faults
from .text import one_line
from .types import DeviceError

if TYPE_CHECKING:
    import torch

    from ..kernels.cuda.ops import Matrix, Shape
    from ..kernels.ops import Dense, Int4, Ops
    from .model import Decoder
    from .runner import StepRunner
    from .spec import ModelFiles

ProgressFn = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The device and operations of one load."""

    device: torch.device
    ops: Ops
    plan: Plan
    config: EngineConfig

    def layer(self, role: str, layer: Dense | Int4) -> Any:
        """The backend's form of a matrix, four-bit where the plan says so: with codes of its own, or rounded here. A
        matrix that a four-bit checkpoint leaves plain stays so."""
        import torch

        from ..quant.int4 import in_format

        plan = self.plan
        wanted = plan.head_format if role == "lm_head" else plan.weight_format
        group = GROUP if role == "lm_head" or not plan.own else None
        layer = in_format(layer, wanted, getattr(torch, plan.dtype), group)
        return self.ops.prepare(layer, role == "gate_up")

    def runner(self, decoder: Decoder, plan: Plan, vocab: int, eos_ids: tuple[int, ...]) -> StepRunner:
        """The runner, its KV cache allocated. `plan` may have fewer blocks than ours."""
        sizes: dict[str, Any] = {
            "max_batch": plan.max_batch,
            "num_blocks": plan.num_blocks,
            "block_size": plan.block_size,
            "max_context": plan.context_len,
            "vocab": vocab,
            "device": self.device,
            "eos_ids": eos_ids,
        }
        if self.device.type == "cpu":
            from .runner import Runner

            return Runner(decoder, **sizes)
        from .graphs import GraphRunner

        runner = GraphRunner(
            decoder, **sizes, graphs=self.config.graphs, together=not self.config.reproducible
        )
        runner.prepare()
        return runner


class KernelError(DeviceError):
    """The GPU's kernels cannot be compiled, loaded or launched."""


@contextmanager
def kernel_errors() -> Iterator[None]:
    """What kernels raise, as KernelError; the compiler's own words go to a file that the message names."""
    from ..kernels.launch import LaunchError
    from ..kernels.nvrtc import CompileError

    try:
        yield
    except CompileError as error:
        path = _write_log(error.log) if error.log else None
        where = f"; the compiler's words are in {path}" if path is not None else ""
        raise KernelError(f"{one_line(str(error), 200)}{where}") from error
    except LaunchError as error:
        raise KernelError(one_line(str(error), 200)) from error
    except Exception as error:
        if not type(error).__module__.startswith("cupy"):  # cannot be imported without a GPU
            raise
        raise KernelError(f"CuPy: {type(error).__name__}: {one_line(str(error), 160)}") from error


def settle() -> None:
    """Wait for the GPU: a last step of a model that goes may still be under way, in memory that is about to be free."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a device that is lost has nothing under way
            torch.cuda.synchronize()


def release_pool() -> None:
    """Hand what allocators keep for later back, torch's to the driver and C's to the system: others may need it, and
    the next plan counts what is free. (A model of 107 M parameters on the CPU left 135 to 490 MB with glibc.)"""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def _write_log(text: str) -> Path | None:
    import platformdirs

    path = Path(platformdirs.user_log_dir("lmtop")) / "kernels.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path


def open_hardware(
    config: EngineConfig,
    plan: Plan,
    files: ModelFiles,
    kind: str,
    progress: ProgressFn,
    cancelled: Callable[[], bool],
    faults: Faults = NONE,
) -> Hardware:
    """The hardware of `kind` ("cpu" or "cuda") for a model. On a GPU its kernels are compiled, where they are not
    yet; KernelError names what fails."""
    import torch

    if kind == "cpu":
        from ..kernels import reference

        return Hardware(torch.device("cpu"), reference, plan, config)
    with kernel_errors():
        if faults("kernels") == "fail":
            from ..kernels.nvrtc import CompileError

            raise CompileError("kernel (fault injected) does not compile", "the compiler's own words")
        return _cuda(config, plan, files, progress, cancelled)


def _cuda(
    config: EngineConfig,
    plan: Plan,
    files: ModelFiles,
    progress: ProgressFn,
    cancelled: Callable[[], bool],
) -> Hardware:
    import torch

    from ..kernels.cuda.ops import CudaOps, units
    from ..kernels.launch import architecture
    from ..kernels.nvrtc import compile_all

    device, spec = torch.device("cuda", 0), files.spec
    compile_all(
        units(_shape(plan, files), device),
        architecture(device),
        lambda done, total, unit: progress(done / total, f"compiling kernels, {done} of {total}"),
        cancelled,
    )
    ops = CudaOps(device, spec.heads, spec.kv_heads, spec.head_dim, plan.max_batch, config.reproducible)
    return Hardware(device, ops, plan, config)


def _shape(plan: Plan, files: ModelFiles) -> Shape:
    import torch

    from ..kernels.cuda.ops import Shape
    from .graphs import buckets

    spec = files.spec
    return Shape(
        dtype=getattr(torch, plan.dtype),
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rope_dim=spec.rope.dim,
        qk_norm=spec.qk_norm,
        windows=tuple(dict.fromkeys(spec.window)),
        matrices=tuple(dict.fromkeys(_matrices(plan, files))),
        kv=plan.kv_format,
        block_size=plan.block_size,
        batches=buckets(plan.max_batch),
        capacity=-(-plan.context_len // plan.block_size) * plan.block_size,
    )


def _matrices(plan: Plan, files: ModelFiles) -> Iterator[Matrix]:
    """Every matrix of the model as it will be computed: its size and the group of its four-bit weights, or 0."""
    from ..kernels.cuda.ops import Matrix

    spec = files.spec
    queries = spec.heads * spec.head_dim
    rows = {"qkv": queries + 2 * spec.kv_heads * spec.head_dim, "o": spec.hidden, "down": spec.hidden}
    for place in files.placed:
        if place.role == "down" and place.part == "weight":
            width = place.shape[1]
            columns = {"qkv": spec.hidden, "o": queries, "gate_up": spec.hidden, "down": width}
            for role, inputs in columns.items():
                group = 0
                if plan.weight_format == "int4":
                    group = files.int4.get((place.layer, role), 0) if plan.own else GROUP
                yield Matrix(rows.get(role, 2 * width), inputs, group, role == "gate_up")
    group = files.int4.get((-1, "lm_head"), GROUP) if plan.head_format == "int4" else 0
    yield Matrix(spec.vocab, spec.hidden, group)
