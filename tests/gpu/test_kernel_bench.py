"""The bench of the kernels: it runs, and its figures are possible ones."""

from __future__ import annotations

import pytest
import torch

from lmtop.kernels import bench
from lmtop.kernels.timing import microseconds, read_bandwidth


def test_a_reading_is_below_the_ceiling() -> None:
    reading = bench.quick_reading()
    assert 50 < reading.bandwidth < 20_000
    assert 0.3 < reading.share < 1.05


def test_time_grows_with_the_work() -> None:
    device = torch.device("cuda")
    small, large = (torch.zeros(size, device=device) for size in (1 << 26, 1 << 28))
    assert 2 < microseconds([large.neg_]) / microseconds([small.neg_]) < 8
    assert read_bandwidth(device) == pytest.approx(read_bandwidth(device), rel=0.1)


@pytest.mark.parametrize(
    "words",
    ["matvec int4 o", "gemm fp16 o 4096x4096, 64", "decode kv8", "prefill kv16 512", "rms_norm", "sample"],
)
def test_every_kind_of_case_runs(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    device = torch.device("cuda")
    chosen = [case for case in bench.cases(device) if f"{case.kernel} {case.shape}".startswith(words)]
    assert chosen
    assert bench.main([f"{chosen[0].kernel} {chosen[0].shape}"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith(chosen[0].kernel) and "%" in row
