import os
import shutil
from pathlib import Path

import pytest
from support.llama import write_llama

from lmtop.engine import models
from lmtop.engine.types import ModelError

ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32, layers=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing here may ask a real hub
    return tmp_path / "hf" / "hub"


def snapshot(cache: Path, name: str, files: Path, revision: str = ONE, main: str = "") -> Path:
    """A snapshot as huggingface_hub lays it: links into blobs/, and refs/main where `main` names a revision."""
    entry = cache / f"models--{name.replace('/', '--')}"
    path = entry / "snapshots" / revision
    path.mkdir(parents=True)
    (entry / "blobs").mkdir(exist_ok=True)
    for file in files.iterdir():
        blob = entry / "blobs" / f"{revision[0]}{file.name}"
        shutil.copy(file, blob)
        (path / file.name).symlink_to(Path("../../blobs") / blob.name)
    if main:
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text(main)
    return path


def names(folders: list[str] | None = None) -> dict[str, models.Found]:
    found = models.discover(folders or [])
    assert len({item.name for item in found}) == len(found)
    return {item.name: item for item in found}


def test_the_hub_cache_is_where_hugging_face_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert models.hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "$HF_HOME/there")
    assert models.hub_cache() == tmp_path / "hf" / "there"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.hub_cache() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"


def test_a_cached_repository_of_links_is_found_and_located_without_the_hub(cache: Path, tiny: Path) -> None:
    path = snapshot(cache, "owner/tiny-1.5", tiny, main=ONE)
    item = names()["owner/tiny-1.5"]
    assert (item.path, item.source) == (path, "hub cache")
    assert item.files is not None
    assert models.locate("owner/tiny-1.5") == path


def test_the_snapshot_that_main_names_wins_and_a_broken_one_gives_way(cache: Path, tiny: Path) -> None:
    old = snapshot(cache, "owner/tiny", tiny, ONE, main=ONE)
    new = snapshot(cache, "owner/tiny", tiny, TWO)
    assert models.locate("owner/tiny") == old
    for broken in ("model.safetensors", "config.json"):
        (old / broken).unlink()
        assert models.locate("owner/tiny") == new
        assert names()["owner/tiny"].files is not None


@pytest.mark.parametrize("main", ["", "../../..", "x" * 5000, TWO])
def test_without_a_usable_main_any_snapshot_will_do(cache: Path, tiny: Path, main: str) -> None:
    path = snapshot(cache, "owner/tiny", tiny, ONE, main=main)
    assert models.locate("owner/tiny") == path


def test_a_snapshot_whose_blob_is_gone_is_listed_with_the_reason(cache: Path, tiny: Path) -> None:
    path = snapshot(cache, "owner/tiny", tiny, main=ONE)
    (path / "model.safetensors").resolve().unlink()
    item = names()["owner/tiny"]
    assert item.files is None
    assert "model.safetensors: cannot read" in item.problem
    (path / "config.json").resolve().unlink()  # nothing that looks like a model is left
    assert "owner/tiny" not in names()


def test_folders_are_searched_three_deep(tmp_path: Path, tiny: Path) -> None:
    root = tmp_path / "models"
    for name in ("a", "owner/b", "x/y/c", ".hidden/d", "1/2/3/too-deep"):
        shutil.copytree(tiny, root / name)
    (root / "empty").mkdir()
    (root / "loop").symlink_to(root)
    own = {
        Path(name).relative_to(root) for name, item in names([str(root)]).items() if item.source == "folder"
    }
    assert {Path("a"), Path("owner/b"), Path("x/y/c")} <= own
    assert not {path for path in own if path.parts[0] in (".hidden", "1", "empty")}


@pytest.mark.parametrize("folder", ["", "/nonexistent", "~nobody/x", "a\0b", "x" * 300])
def test_a_folder_that_is_none_is_named_not_fatal(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [item.name for item in models.discover([folder])] == ["demo"]
    assert models.missing([folder]) == ([folder] if folder else [])


HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J",
    "two\nlines",
    "[bold]x[/bold]",
    "n" * 255,
    "\udcff\udcfe",
    "%s{0}",
    "-x",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_directory_may_have_any_name(name: str, tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "models" / name
    shutil.copytree(tiny, path)
    item = names([str(tmp_path / "models")])[str(path)]
    assert item.files is not None
    assert models.locate(item.name) == path
    assert models.locate(name, folders=[str(tmp_path / "models")]) == path
    shown = models.display_name(item.name, path)
    assert shown.isprintable()
    assert 0 < len(shown) <= 60


def test_a_directory_named_by_dots_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model" / "inner")
    assert models.display_name(".", Path()) == "inner"
    assert models.display_name("..", Path("..")) == "model"
    assert models.display_name("owner/name", tmp_path) == "name"


@pytest.mark.parametrize("model", ["", "  "])
def test_no_name_at_all_says_where_to_look(model: str) -> None:
    with pytest.raises(ModelError, match="no model named"):
        models.locate(model)


@pytest.mark.parametrize(
    "model", ["nothing", "./a/b", "/a/b", "~nobody/b", "a/b/c", "../x", "a" * 300, "\x1b[2J", "x\0y"]
)
def test_a_name_that_is_neither_here_nor_a_hub_id_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="no such model directory") as caught:
        models.locate(model)
    assert str(caught.value).isprintable()


def test_a_directory_here_goes_before_the_hub(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "owner" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert models.locate("owner/tiny") == Path("owner/tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    os.chdir("/")
    assert models.locate("~/owner/tiny") == tmp_path / "owner" / "tiny"


def test_a_missing_built_in_model_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "demo_path", lambda: tmp_path / "gone")
    assert "install lmtop again" in models.discover()[0].problem
    with pytest.raises(ModelError, match="install lmtop again"):
        models.locate("demo")
