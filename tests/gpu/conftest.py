"""Everything here needs an NVIDIA GPU, CuPy and torch with CUDA; without them it is skipped."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from lmtop.engine.devices import device_info

    info = device_info()
    if info.kind != "cuda":
        for item in items:
            if "tests/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=info.notice or "needs an NVIDIA GPU"))
