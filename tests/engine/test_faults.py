import re
from pathlib import Path

import pytest

from lmtop.engine import faults as faults_module
from lmtop.engine.faults import POINTS, Faults
from lmtop.engine.types import UsageError


def test_the_nth_call_of_a_point_acts_and_no_other() -> None:
    faults = Faults("forward@3:raise,logits@*:nan")
    assert [faults("forward"), faults("forward"), faults("other")] == ["", "", ""]
    with pytest.raises(RuntimeError):
        faults("forward")
    assert faults("forward") == ""
    assert [faults("logits"), faults("logits")] == ["nan", "nan"]
    with pytest.raises(MemoryError):
        Faults("alloc@1:oom")("alloc")


@pytest.mark.parametrize("text", ["forward", "forward@x:raise", "forward@1", "@"])
def test_a_malformed_rule_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="LMTOP_FAULTS"):
        Faults(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("foward@1:raise", ["unknown point", "forward, logits"]),
        ("forward@1:rise", ["unknown action", "forward knows raise, oom, hang, exit"]),
        ("forward@1:nan", ["unknown action"]),
        ("db.commit@1:nan", ["db.commit knows raise, oom, hang, exit, full"]),
        ("forward@1:hang=long", ["unknown action"]),
        ("forward@1:oom=1", ["unknown action"]),
        ("forward@0:raise", ["counted from 1"]),
    ],
)
def test_a_rule_that_would_never_act_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Faults(f"logits@1:nan,{text}")
    for word in ["LMTOP_FAULTS", text, *words]:
        assert word in str(caught.value)


def test_every_point_in_the_code_is_listed_and_explained() -> None:
    root = Path(faults_module.__file__).parents[1]
    code = "".join(path.read_text() for part in ("engine", "tui") for path in (root / part).rglob("*.py"))
    called = set(
        re.findall(r"""\bself\.faults\("([\w.]+)"|\b_?faults\("([\w.]+)"|_apply\(.*"(db\.\w+)"\)""", code)
    )
    assert {point for groups in called for point in groups if point} == set(POINTS)
    assert faults_module.__doc__ is not None
    assert all(f"| `{point}` |" in faults_module.__doc__ for point in POINTS)


def test_hooks_are_refused_outside_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMTOP_TEST", raising=False)
    monkeypatch.setenv("LMTOP_FAULTS", "forward@1:raise")
    with pytest.raises(UsageError, match="LMTOP_TEST=1"):
        Faults.from_environment()
    monkeypatch.setenv("LMTOP_TEST", "1")
    with pytest.raises(RuntimeError):
        Faults.from_environment()("forward")
    monkeypatch.setenv("LMTOP_STEP_MS", "soon")
    with pytest.raises(UsageError, match="LMTOP_STEP_MS"):
        Faults.from_environment()
