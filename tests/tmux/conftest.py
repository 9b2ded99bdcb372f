from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.parrot import prose, write_parrot

HERE = Path(__file__).parent
broken: dict[Path, str] = {}  # file -> its first test that failed


@pytest.fixture(scope="session")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "Hello there." when asked for `greeting`, else talks without end."""
    replies = {"greeting": "Hello there.\n", "endless": prose(1500) + "\n\n"}
    return write_parrot(tmp_path_factory.mktemp("models") / "parrot", replies, ("endless",))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The tests of a file share a program: once one has failed, those after it would only wait in vain."""
    report = (yield).get_result()
    if report.failed and item.path.parent == HERE:
        broken.setdefault(item.path, item.name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path in broken:
        pytest.skip(f"{broken[item.path]} failed before it, in the same program")
