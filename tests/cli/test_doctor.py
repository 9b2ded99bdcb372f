import json
from pathlib import Path

import pytest
from support.command import call_lmtop, run_lmtop

from lmtop.engine import models


def test_it_tells_what_there_is_and_lets_the_engine_answer(tmp_path: Path) -> None:
    done = run_lmtop(tmp_path, "doctor")
    topics = [line[3:].split()[0] for line in done.stdout.splitlines()[:-1]]
    expected = ["lmtop", "packages", "machine", "gpu", "terminal", "config", "history", "models", "engine"]
    assert list(dict.fromkeys(topics)) == expected
    assert not list(tmp_path.rglob("history.db"))  # it only looks
    engine = done.stdout.splitlines()[-2]
    if models.demo_path().exists():
        assert done.returncode == 0, done.stdout
        assert engine.startswith("ok engine") and "tok/s" in engine


def test_without_the_built_in_model_it_still_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "demo_path", lambda: tmp_path / "gone")
    assert call_lmtop(tmp_path, monkeypatch, "doctor", "--json") == 1
    findings = {finding["topic"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["engine"]["state"] == "bad"
    assert "install lmtop again" in findings["engine"]["text"]


def test_it_names_what_will_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "demo_path", lambda: tmp_path / "gone")
    broken = tmp_path / "models" / "\x1b[31mred"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    (tmp_path / "data").write_text("")  # where the history's folder would be
    folders = ("--folders", str(tmp_path / "models"), "--folders", "/nowhere")
    assert call_lmtop(tmp_path, monkeypatch, "doctor", *folders) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert any(line.startswith("!! history") and "will not be saved" in line for line in lines)
    assert any(line.startswith("-- models") and "\u241b[31mred cannot be loaded" in line for line in lines)
    assert "!! models     /nowhere: no such directory (models.folders)" in lines
    assert lines[-1] == "3 of these will not work"
    assert out.replace("\n", "").isprintable()
