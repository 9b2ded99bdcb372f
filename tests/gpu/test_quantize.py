"""Quantising on a GPU gives the same model as on the CPU, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.awq_plain import tensors_of
from support.llama import write_llama

from lmtop.engine.demo.corpus import conversation
from lmtop.engine.models import demo_path
from lmtop.engine.quantize import Outcome, quantise_model
from lmtop.engine.quantize_job import Job


def made(directory: Path, out: Path, device: str, **more: Any) -> Outcome:
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    try:
        with torch.inference_mode():
            return quantise_model(
                Job(directory, out, device=device, free=1 << 36, **more),
                lambda stage, done, total: None,
                lambda text: None,
            )
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "more",
    [{}, {"method": "gptq"}, {"search": "none"}, {"symmetric": True, "group": -1}, {"samples": 0}],
    ids=str,
)
def test_a_gpu_makes_the_same_model_as_the_cpu(more: dict[str, Any], tmp_path: Path) -> None:
    source = write_llama(tmp_path / "llama", hidden=128, layers=3)
    more = {"samples": 16, "seqlen": 256} | more
    here = made(source, tmp_path / "cpu", "cpu", **more)
    there = made(source, tmp_path / "cuda", "cuda", **more)
    assert (there.group, there.matrices, there.kept) == (here.group, here.matrices, here.kept)
    assert there.comparison.before == pytest.approx(here.comparison.before, rel=0.02)
    assert there.comparison.divergence == pytest.approx(here.comparison.divergence, rel=0.15)
    one, other = tensors_of(tmp_path / "cpu"), tensors_of(tmp_path / "cuda")
    assert one.keys() == other.keys()
    if more["samples"] == 0:  # nothing is searched: only a tie of the last bit may round otherwise
        for name, tensor in one.items():
            off = (tensor - other[name]).abs() > 1e-6
            assert float(off.float().mean()) < 1e-3, name
    if here.gain is not None and there.gain is not None:
        assert there.gain == pytest.approx(here.gain, rel=0.03)


def test_the_demo_made_on_a_gpu_is_as_good(tmp_path: Path) -> None:
    import json

    for name, seed, count in (("data", 991, 24), ("check", 992, 16)):
        lines = (json.dumps({"messages": conversation(seed, index)}) for index in range(count))
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(lines), encoding="utf-8")
    more = {"data": str(tmp_path / "data.jsonl"), "check": str(tmp_path / "check.jsonl"), "samples": 24}
    here = made(demo_path(), tmp_path / "cpu", "cpu", seqlen=512, **more)
    there = made(demo_path(), tmp_path / "cuda", "cuda", seqlen=512, **more)
    assert abs(there.comparison.rise) < 0.03
    assert there.comparison.divergence == pytest.approx(here.comparison.divergence, rel=0.15)
