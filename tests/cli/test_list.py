import json
import shutil
from pathlib import Path

import pytest
from support.command import call_lmtop, run_lmtop
from support.llama import write_llama

from lmtop.engine.listing import parameters


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32, layers=1)


def test_a_table_of_what_can_be_loaded_and_why_the_rest_cannot(tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(tiny, folder / "good")
    shutil.copytree(tiny, folder / "bad" / "deep")
    (folder / "bad" / "deep" / "config.json").write_text('{"model_type": "unheard-of\\u001b[2J"}')
    (tmp_path / "config.toml").write_text(f'[models]\nfolders = ["{folder}"]\n')
    done = run_lmtop(tmp_path, "list")
    header, demo, bad, good = done.stdout.splitlines()
    assert header.split() == ["NAME", "FAMILY", "SIZE", "WEIGHTS", "CONTEXT", "SOURCE"]
    assert demo.split()[0] == "demo"
    assert (
        bad.startswith(str(folder / "bad" / "deep")) and "cannot be loaded: " in bad and "unheard-of" in bad
    )
    assert good.split() == [str(folder / "good"), "llama", "29.1k", "fp32", "1024", "folder"]
    assert good.index("1024") == header.index("CONTEXT")
    assert done.stdout.replace("\n", "").isprintable()
    assert done.stderr == ""


def test_json_names_what_load_takes(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_lmtop(tmp_path, monkeypatch, "list", "--json", "--folders", str(tiny.parent)) == 0
    demo, item = json.loads(capsys.readouterr().out)
    assert (demo["name"], demo["source"]) == ("demo", "built in")
    assert item == {
        "name": str(tiny),
        "path": str(tiny),
        "source": "folder",
        "family": "llama",
        "parameters": 29088,
        "weights": "fp32",
        "context": 1024,
    }


def test_a_folder_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_lmtop(tmp_path, monkeypatch, "list", "--folders", "/no/such\x1b[2J") == 0
    captured = capsys.readouterr()
    assert captured.err == "lmtop: models.folders: /no/such\u241b[2J: no such directory\n"
    assert "[models] folders" in captured.out  # how to have more than the built-in one


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (260_032, "260k"),
        (7_450_000, "7.5M"),
        (8_030_261_248, "8.0B"),
        (72 * 10**9, "72.0B"),
    ],
)
def test_parameter_counts_read_as_people_say_them(count: int, text: str) -> None:
    assert parameters(count) == text


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["top", "--json"], ["generate", "/nowhere", "hi"]]
)
def test_commands_that_compute_nothing_import_neither_torch_nor_transformers(
    tmp_path: Path, tiny: Path, arguments: list[str]
) -> None:
    shutil.copytree(tiny, tmp_path / "models" / "tiny")
    (tmp_path / "config.toml").write_text(f'[models]\nfolders = ["{tmp_path}/models"]\n')
    done = run_lmtop(tmp_path, *arguments, PYTHONPROFILEIMPORTTIME="1")
    imported = {
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "argparse" in imported
    assert not {"torch", "transformers", "cupy", "huggingface_hub"} & imported
    if arguments != ["top", "--json"]:
        assert not {"textual", "rich", "numpy"} & imported
