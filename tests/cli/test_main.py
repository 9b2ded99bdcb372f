import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import Terminal, call_lmtop, clean_environment, command_line, run_lmtop
from support.llama import write_llama

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32, layers=1)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, **more: Any) -> tuple[int, str, str]:
        code = call_lmtop(tmp_path, monkeypatch, *arguments, **more)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def refused(run: Run, code: int, *arguments: str, **more: Any) -> str:
    """The one line with which `arguments` end."""
    started = time.monotonic()
    got, out, err = run(*arguments, **more)
    assert time.monotonic() - started < 2
    assert (got, out) == (code, "")
    assert err.startswith("lmtop: error: ") and err.count("\n") == 1, err
    assert err.strip().isprintable()
    return err


# --- C: command line and configuration -------------------------------------------------------------------


def test_help_and_version_are_quick(tmp_path: Path) -> None:
    for flag in ("--help", "--version"):
        took = []
        for _ in range(5):
            started = time.monotonic()
            assert run_lmtop(tmp_path, flag).returncode == 0
            took.append(time.monotonic() - started)
        print(f"lmtop {flag}: median {statistics.median(took):.3f} s of {[round(t, 3) for t in took]}")
        assert min(took) < 0.3


def test_help_names_every_command_and_every_flag_with_its_default(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("chat", "generate", "top", "list", "doctor", "bench", "kernels"):
        assert f"    {command} " in out
        code, flags, _ = run(command, "--help")
        assert (code, flags.startswith(f"usage: lmtop {command} [FLAG ...]")) == (0, True)
    _, flags, _ = run("chat", "--help")
    assert "--temperature X" in flags and "(0.7)" in flags and "--system TEXT" in flags


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b"a = ", "config.toml: Invalid value"),  # C1
        (b"\xff", "not valid UTF-8"),  # C2
        (b"a = '\0'", "line 1"),
        (b"[sampling]\ntempreature = 1\n", "did you mean 'temperature'?"),  # C3
        (b"[engine]\nmax_batch_size = -1\n", "max_batch_size = -1: must be an integer from 1 to 512"),  # C4
        (b"[engine]\nmax_batch_size = 'x'\n", "max_batch_size = 'x': must be an integer from 1 to 512"),
    ],
)
def test_c1_to_c4_a_bad_config_file(run: Run, tmp_path: Path, written: bytes, words: str) -> None:
    config = tmp_path / "config.toml"
    config.write_bytes(written)
    line = refused(run, 2, "list")
    assert words in line and "config.toml" in line
    assert config.read_bytes() == written


def test_c5_a_config_that_cannot_be_read_is_not_replaced_by_defaults(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    assert "cannot read" in refused(run, 2, "list")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--nonsense"],
        ["chat"],
        ["generate", "a", "--seed"],
        ["chat", "one", "two"],
        ["demo"],
        ["top", "--interval", "0"],
        ["\x1b[2J"],
    ],
)
def test_c6_a_bad_command_line_shows_its_usage(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    *usage, last = err.splitlines()
    assert last.startswith("lmtop: error: ")
    assert len(usage) <= 1 and err.replace("\n", "").isprintable()


def test_c6_a_models_name_in_place_of_a_command_is_told_how(run: Run) -> None:
    assert "`lmtop chat MODEL`" in run("demo")[2]


@pytest.mark.parametrize("arguments", [[], ["chat", "demo"], ["top"]])
def test_c10_without_a_terminal_it_says_what_works(tmp_path: Path, arguments: list[str]) -> None:
    done = run_lmtop(tmp_path, *arguments, TERM="xterm")
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a terminal" in done.stderr and "--plain" in done.stderr
    assert "\x1b" not in done.stderr


def test_c10_a_dumb_terminal_is_refused_before_any_escape(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "chat", "demo", dumb=True)
    assert terminal.wait() == 2
    assert b"TERM is dumb" in terminal.output
    assert b"\x1b" not in terminal.output


@pytest.mark.parametrize("hook", ["LMTOP_FAULTS", "LMTOP_STEP_MS", "LMTOP_FAKE_GPU"])
def test_c11_hooks_for_tests_need_a_test(run: Run, hook: str) -> None:
    assert hook in refused(run, 2, "list", **{hook: "1"})


@pytest.mark.parametrize("home", ["missing", "file"])
def test_c12_a_home_that_cannot_be_used_does_not_matter_to_commands(tmp_path: Path, home: str) -> None:
    place = tmp_path / "home"
    if home == "file":
        place.write_text("")
    folders = {f"XDG_{name}_HOME": str(place / name) for name in ("CONFIG", "DATA", "CACHE", "STATE")}
    done = run_lmtop(tmp_path, "list", HOME=str(place), LMTOP_CONFIG="", HF_HOME=str(place / "hf"), **folders)
    assert done.returncode == 0
    assert done.stdout.startswith("NAME")


# --- M: model directories ---------------------------------------------------------------------------------


def test_m1_what_is_no_model_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "no such model directory" in refused(run, 3, "generate", str(tmp_path / "missing"), "hi")
    assert "no such model directory" in refused(run, 3, "generate", str(tmp_path / "file"), "hi")
    assert "no config.json" in refused(run, 3, "generate", str(tmp_path / "empty"), "hi")
    assert "no model named" in refused(run, 3, "generate", "", "hi")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "", 7])
def test_m10_a_shard_is_a_plain_file_name(run: Run, model: Path, shard: object) -> None:
    sentinel = model.parent / "x.safetensors"
    os.mkfifo(sentinel)  # opening it would hang
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "shard name must be a plain file name" in refused(run, 3, "generate", str(model), "hi")


def test_m11_shards_and_tensors_that_are_not_there(run: Run, model: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert "model-2.safetensors" in refused(run, 3, "generate", str(model), "hi")
    index.write_text("[]")
    assert index.name in refused(run, 3, "generate", str(model), "hi")
    index.write_text(json.dumps({"weight_map": {"lost.weight": "model.safetensors"}}))
    assert "lost.weight" in refused(run, 3, "generate", str(model), "hi")


def test_m12_a_link_loads_and_what_is_no_file_is_refused(run: Run, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.rename(model.parent / "blob")
    weights.symlink_to(model.parent / "blob")
    assert run("generate", str(model), "hi", "--max-new-tokens", "1")[0] == 0
    weights.unlink()
    os.mkfifo(weights)
    refused(run, 3, "generate", str(model), "hi")
    weights.unlink()
    weights.mkdir()
    refused(run, 3, "generate", str(model), "hi")


def test_m13_pickle_is_never_opened(run: Run, model: Path) -> None:
    (model / "model.safetensors").unlink()
    marker = model.parent / "marker"
    # a pickle that makes the marker when it is loaded: os.system("touch ...")
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR.")
    line = refused(run, 3, "generate", str(model), "hi")
    assert "pickle weights are not supported; convert to safetensors" in line
    assert not marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ lipsum.__globals__['os'].system('touch MARKER') }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception('\x1b[2J no') }}",
        "{% for i in range(99999999) %}{% endfor %}",
    ],
)
def test_m15_a_template_that_reaches_out_is_refused(run: Run, model: Path, template: str) -> None:
    marker = model.parent / "marker"
    config = model / "tokenizer_config.json"
    stored = json.loads(config.read_text()) | {"chat_template": template.replace("MARKER", str(marker))}
    config.write_text(json.dumps(stored))
    assert "template refused" in refused(run, 3, "generate", str(model), "hi")
    assert not marker.exists()
    assert run("generate", str(model), "hi", "--raw", "--max-new-tokens", "1")[0] == 0


def test_the_models_own_code_is_not_run(run: Run, model: Path) -> None:
    marker = model.parent / "marker"
    for name in ("modeling_x.py", "configuration_x.py", "setup.py", "__init__.py", "sitecustomize.py"):
        (model / name).write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    (model / "config.json").write_text(json.dumps(config))
    code, _, err = run("generate", str(model), "hi", "--max-new-tokens", "1")
    assert (code, err.count("\n")) == (0, 1)
    assert "auto_map" in err and "never run" in err
    assert not marker.exists()


NAMES = ["\x1b]0;owned\x07\x1b[2J", "two\nlines", "n" * 255, "\udcff\udcfe", "[bold]x[/bold]"]


@pytest.mark.parametrize("name", NAMES)
def test_m20_a_directory_of_any_name_loads_and_is_shown_safely(
    run: Run, tiny: Path, tmp_path: Path, name: str
) -> None:
    path = shutil.copytree(tiny, tmp_path / "models" / name)
    code, out, err = run("chat", str(path), "--plain", "--max-new-tokens", "1", stdin=b"hi\n\n")
    assert code == 0
    assert all(line.isprintable() for line in err.splitlines())
    code, out, _ = run("list", "--folders", str(tmp_path / "models"))
    assert (code, len(out.splitlines())) == (0, 3)
    assert out.replace("\n", "").isprintable()
    code, out, _ = run("list", "--json", "--folders", str(tmp_path / "models"))
    assert json.loads(out)[1]["path"] == str(path)
    (path / "config.json").write_text("{")
    assert "config.json" in refused(run, 3, "generate", str(path), "hi")


def test_m21_an_archive_is_not_unpacked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04")
    before = sorted(tmp_path.iterdir())
    line = refused(run, 3, "generate", str(tmp_path / "x.zip"), "hi")
    assert "archives are not accepted; unpack it" in line
    assert sorted(tmp_path.iterdir()) == before


# --- output -----------------------------------------------------------------------------------------------


def test_output_that_nobody_can_take_is_no_traceback(tmp_path: Path) -> None:
    for shell in ('"$@" | true', '"$@" >&-', '"$@" >/dev/full'):
        for arguments in (["list"], ["--help"]):
            done = subprocess.run(
                ["sh", "-c", shell, "sh", *command_line(*arguments)],
                env=clean_environment(tmp_path),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
            assert done.stderr.count("\n") == ("full" in shell), done.stderr


def test_an_output_without_unicode_gets_question_marks(tmp_path: Path) -> None:
    (tmp_path / "模型").mkdir()
    (tmp_path / "模型" / "config.json").write_text("{}")
    done = run_lmtop(tmp_path, "list", "--folders", "模型", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "??" in done.stdout
