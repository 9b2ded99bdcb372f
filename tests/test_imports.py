"""The rules of the house that a look at the source can check: who imports whom, and what nobody may touch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("engine", "kernels", "quant", "themes", "tui")
BELOW = {  # a part may import itself and these
    "": {"engine"},
    "__main__": {"engine", "tui"},
    "tui": {"engine", "quant", "kernels", "themes"},
    "engine": {"quant", "kernels"},
    "quant": {"kernels"},
    "kernels": set[str](),
    "themes": {"engine"},
}
HEAVY = {"torch", "transformers", "cupy", "safetensors", "tokenizers"}
LIGHT = (
    *("engine." + name for name in ("types", "config", "scheduler", "blocks", "client", "text", "telemetry")),
    *("engine." + name for name in ("faults", "settings", "arguments", "models", "spec", "listing", "answer", "hub", "guard")),
    *("engine." + name for name in ("local", "loader", "generate", "plain", "messages", "pipeline_settings", "api_client")),
    *("engine." + name for name in ("remote", "remote_probe", "servers")),
    *("engine." + name for name in ("monitor", "metrics", "bench_serve", "server.app", "server.run", "server.http_server")),
    *("tui." + name for name in ("parent", "doctor", "app", "screens.top", "link", "screens.servers", "screens.choose")),
    "__main__",
)  # fmt: skip
FORBIDDEN_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "imp",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("np", "load"),
    ("load"),
    ("os", "system"),
}


@dataclass(frozen=True)
class Import:
    """`module` as a whole name; ours begins with "lmtop". `eager`: at import time, and not for types only."""

    module: str
    names: tuple[str, ...]
    eager: bool
    line: int


def sources() -> dict[str, Path]:
    """Dotted name below lmtop -> file, for every file of the product."""
    files = [ROOT / "__main__.py", ROOT / "__init__.py"]
    files += [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
    named = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imports(name: str) -> Iterator[Import]:
    package = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]

    def walk(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, (), eager, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                parts = ["lmtop", *above] if child.level else []
                module = ".".join([*parts, *((child.module or "").split(".") if child.module else [])])
                yield Import(module, tuple(alias.name for alias in child.names), eager, child.lineno)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, False)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.body, []), False)
                yield from walk(ast.Module(child.orelse, []), eager)
            else:
                yield from walk(child, eager)

    return walk(TREES[name], True)


def ours(item: Import) -> set[str]:
    """The files of the product that this import reaches, packages on the way included."""
    if item.module.split(".")[0] != "lmtop":
        return set()
    module = item.module.removeprefix("lmtop").removeprefix(".")
    reached = {module, *(f"{module}.{name}".removeprefix(".") for name in item.names)}
    steps = {".".join(name.split(".")[:i]) for name in reached for i in range(1, name.count(".") + 2)}
    return steps & SOURCES.keys() - {""}


def test_the_walk_sees_the_house() -> None:
    assert len(SOURCES) > 80
    assert "engine.types" in {name for item in imports("engine.client") for name in ours(item)}
    assert "kernels.reference" in {name for item in imports("engine.hardware") for name in ours(item)}
    assert any(item.module == "torch" and not item.eager for item in imports("engine.loader"))
    assert any(item.module == "torch" and item.eager for item in imports("kernels.reference"))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_point_one_way(name: str) -> None:
    part = name.split(".")[0]
    for item in imports(name):
        for target in ours(item):
            other = target.split(".")[0]
            assert other == part or other in BELOW.get(part, set()), (
                f"{SOURCES[name]}:{item.line} imports {target}"
            )


def reachable(name: str) -> dict[str, str]:
    """Every module that importing `name` imports, with the module that does: ours by their dotted names."""
    seen: dict[str, str] = {name: ""}
    queue = [name]
    while queue:
        current = queue.pop()
        for item in imports(current):
            if not item.eager:
                continue
            foreign = set() if item.module.startswith("lmtop") else {item.module.split(".")[0]}
            for target in ours(item) | foreign:
                if target not in seen:
                    seen[target] = current
                    if target in SOURCES:
                        queue.append(target)
    return seen


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_reach_nothing_heavy(name: str) -> None:
    heavy = {module: by for module, by in reachable(name).items() if module in HEAVY}
    assert not heavy


def test_the_command_line_reaches_no_screens() -> None:
    assert not {"textual", "rich"} & reachable("__main__").keys()
    assert not {"textual", "rich"} & reachable("engine.arguments").keys()
    assert not {"textual", "rich"} & {
        module for name in SOURCES if name.startswith("engine") for module in reachable(name)
    }


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_unpickles_runs_text_or_knows_cupy(name: str) -> None:
    for item in imports(name):
        top = item.module.split(".")[0]
        assert top not in FORBIDDEN_MODULES, f"{SOURCES[name]}:{item.line}"
        assert top != "cupy" or name.startswith("kernels."), f"{SOURCES[name]}:{item.line}"
    for node in ast.walk(TREES[name]):
        where = f"{SOURCES[name]}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, where
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in FORBIDDEN_ATTRIBUTES, where
        if isinstance(node, ast.keyword):
            assert node.arg not in ("trust_remote_code", "allow_pickle"), where


def test_kernels_cannot_shadow_hugging_faces() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
