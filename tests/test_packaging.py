"""Guards what the unusual layout could lose: see the notes in pyproject.toml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.command import clean_environment

ROOT = Path(__file__).parents[1]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
PARTS = sorted({name.split(".")[1] for name in TOOLS["packages"] if "." in name})
# What training left beside the built-in model, for readers of the repository: nothing reads it, none of it ships.
RECORDS = {f"engine/demo/{name}" for name in ("eval.txt", "samples.txt", "training.json")}
NO_PART = {"tests", "build", "dist"}


def product(pattern: str) -> list[Path]:
    """Files of the product that match, relative to the checkout; nothing that only a tool left there."""
    found = [path for part in PARTS for path in (ROOT / part).rglob(pattern) if path.is_file()]
    return sorted(path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)


def is_declared(path: Path) -> bool:
    """Whether package-data ships this data file."""
    for package, patterns in TOOLS["package-data"].items():
        folder = Path(*package.split(".")[1:])
        if path.is_relative_to(folder):
            inside = path.relative_to(folder)
            for pattern in patterns:
                deep = pattern.startswith("**/") and inside.match(pattern.removeprefix("**/"))
                below = pattern.endswith("/**/*") and inside.is_relative_to(pattern.removesuffix("/**/*"))
                if deep or below or (inside.match(pattern) and len(inside.parts) == pattern.count("/") + 1):
                    return True
    return False


def test_every_package_is_listed() -> None:
    folders = {path.parent for path in product("*.py")}
    assert sorted(TOOLS["packages"]) == sorted(
        {"lmtop"} | {".".join(("lmtop", *folder.parts)) for folder in folders}
    )
    others = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert others - set(PARTS) <= NO_PART


def test_every_data_file_is_declared() -> None:
    data = [path for path in product("*") if path.suffix not in (".py", ".pyc", ".md")]
    assert {".tcss", ".toml"} <= {path.suffix for path in data}
    assert {path.as_posix() for path in data if not is_declared(path)} == RECORDS
    assert TOOLS["package-data"]["lmtop"] == ["py.typed"] and (ROOT / "py.typed").is_file()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built in a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed", "__init__.py", "__main__.py"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    return next(out.glob("lmtop-*.whl"))


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"lmtop/{path}" for path in product("*") if path.suffix == ".py" or is_declared(path)}
    assert names == expected | {"lmtop/__init__.py", "lmtop/__main__.py", "lmtop/py.typed"}


def test_the_installed_wheel_starts(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    assert (target / "bin" / "lmtop").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = clean_environment(elsewhere, PYTHONPATH=str(target))

    def start(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert start("-m", "lmtop", "--version") == f"lmtop {version}\n"
    demo = json.loads(start("-m", "lmtop", "list", "--json"))[0]
    assert Path(demo["path"]).is_relative_to(target)
    assert ("family" in demo) == (ROOT / "engine" / "demo" / "model" / "config.json").exists()
    assert start(str(target / "bin" / "lmtop"), "--version").startswith("lmtop ")


def test_a_checkout_that_is_not_installed_starts(tmp_path: Path) -> None:
    (tmp_path / "lmtop").symlink_to(ROOT)
    script = (
        "import sys\n"
        f"sys.path[:0] = [{str(tmp_path)!r}]\n"
        "import importlib.metadata as metadata\n"
        "class Finder(metadata.DistributionFinder):\n"
        "    def find_distributions(self, context):\n"
        "        if context.name == 'lmtop': raise metadata.PackageNotFoundError('lmtop')\n"
        "        return []\n"
        "    def find_spec(self, *arguments): return None\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from lmtop.__main__ import main\n"
        "sys.exit(main(['--version']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=os.environ | clean_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "lmtop (not installed)\n"), done.stderr
