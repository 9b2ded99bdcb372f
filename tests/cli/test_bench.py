from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import Terminal, call_lmtop
from support.llama import write_llama

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--new-tokens", "4", "--repeat", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32, layers=1))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, quick: tuple[str, ...] = QUICK, **more: Any) -> tuple[int, str, str]:
        code = call_lmtop(tmp_path, monkeypatch, "bench", *arguments, *quick, **more)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_a_table_with_a_row_for_each_cell_and_a_line_for_each_load(run: Run, tiny: str) -> None:
    code, out, err = run(tiny, "--batch", "1,3", "--prompt", "8,40", "--dtype", "float32")
    assert (code, err) == (0, "")
    header, *rows, memory = out.splitlines()
    assert header.split()[:5] == ["WEIGHTS", "KV", "BATCH", "PROMPT", "TOK/S"]
    assert [row.split()[:4] for row in rows] == [
        ["fp32", "fp32", batch, prompt] for batch in ("1", "3") for prompt in ("8", "40")
    ]
    assert len({len(line) for line in (header, *rows)}) == 1 and len(header) <= 80
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row.split()[4:])
    assert re.match(r"  planned 0\.\d+ GiB, took \d+\.\d+ GiB .* first token of 8: ", memory), memory


def test_json_and_csv_hold_the_same(run: Run, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    code, out, _ = run(tiny, "--batch", "2", "--prompt", "16", "--json", "--csv", str(path))
    told = json.loads(out)
    (setup,) = told["setups"]
    (cell,) = setup["cells"]
    assert code == 0
    assert (told["model"], told["device"], told["new_tokens"], told["repeat"]) == (tiny, "CPU", 4, 1)
    assert (cell["batch"], cell["prompt"]) == (2, 16)
    assert setup["memory"]["planned"] > setup["memory"]["weights"] > 0
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert float(row["decode_tps"]) == pytest.approx(cell["decode_tps"], rel=1e-4)
    assert int(row["memory_planned"]) == setup["memory"]["planned"]


def test_transformers_beside_it(run: Run, tiny: str) -> None:
    code, out, err = run(tiny, "--batch", "1,2", "--prompt", "8", "--baseline", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert [(cell["batch"], cell["prompt"]) for cell in told["transformers"]] == [(1, 8), (2, 8)]
    assert all(cell["decode_tps"] > 0 for cell in told["transformers"])


def test_random_weights_need_no_model(run: Run, tiny: str) -> None:
    config = str(Path(tiny) / "config.json")
    code, out, _ = run("--random-weights", config, "--batch", "1", "--prompt", "8")
    assert code == 0 and len(out.splitlines()) == 3


def test_what_has_no_room_is_left_out_with_the_reason(run: Run, tiny: str) -> None:
    code, out, err = run(tiny, "--batch", "1", "--prompt", "8,2048")
    assert (code, len(out.splitlines())) == (0, 3)
    assert "batch 1, prompt 2048: left out: 2048 + 4 tokens; the context is 1024" in err
    code, out, err = run(tiny, "--batch", "1", "--prompt", "8", "--cache-size", "1TiB")
    assert (code, out) == (6, "")
    assert err.splitlines()[-1].startswith("lmtop: error: not enough memory on CPU")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a MODEL, or --random-weights CONFIG"),
        (["m", "--random-weights", "llama-3-8b"], "give a MODEL, or --random-weights CONFIG"),
        (["--random-weights", "llama-3-8b", "--baseline"], "--baseline needs a MODEL"),
        (["m", "--batch", "0"], "--batch = '0': must be integers like 1,16,64, each from 1 to 512"),
        (["m", "--prompt", "8,x"], "--prompt = '8,x'"),
        (["m", "--kv", "16,5"], "--kv = '16,5': must be some of 16, int8, int4"),
        (["m", "--weights", "int3"], "--weights = 'int3': must be some of 16, int4"),
        (["m", "--csv", "/nowhere/x.csv"], "--csv = '/nowhere/x.csv': cannot write: No such file"),
    ],
)
def test_a_bad_question_is_a_usage_error(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lmtop: error: ") and words in err and err.count("\n") == 1


def test_a_number_of_tokens_must_be_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_lmtop(tmp_path, monkeypatch, "bench", "m", "--new-tokens", "4,5") == 2
    assert "--new-tokens = '4,5': must be an integer from 2" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_what_was_measured(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    grid = ("--batch", "1,8", "--prompt", "8", "--new-tokens", "200", "--repeat", "20")
    bench = Terminal(tmp_path, "bench", tiny, *grid, "--csv", str(path))
    bench.until(b"batch 8, prompt 8")
    bench.type("\x03")
    assert bench.wait() == 130
    assert b"Traceback" not in bench.output and b"lmtop: error" not in bench.output
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert row["batch"] == "1" and float(row["decode_tps"]) > 0


def test_the_tutorials_tables(run: Run, tiny: str) -> None:
    code, out, err = run(tiny, "--tutorial", "--dtype", "float32", quick=QUICK[:2])
    assert (code, err) == (0, "")
    first, second = out.split("\n\n")
    title, header, *rows = first.splitlines()
    assert "4 tokens each" in title
    assert header.split() == ["ENGINE", "WEIGHTS", "KV", "CHAR/S", "TOK/S", "x", "HF", "MEMORY", "MiB"]
    assert rows[0].startswith("transformers fp32      fp32")
    assert [re.sub(r" +", " ", row[:28]).strip() for row in rows[1:]] == [
        "lmtop fp32 fp32",
        "lmtop int4 g128 fp32",
        "lmtop fp32 int8",
        "lmtop int4 g128 int8",
    ]
    title, header, *rows = second.splitlines()
    assert [row.split()[-4] for row in rows] == ["0.8", "0.5", "0.01", "0.01"]


def test_the_tutorials_tables_as_json_without_a_model(run: Run, tiny: str) -> None:
    shape = str(Path(tiny) / "config.json")
    code, out, err = run("--random-weights", shape, "--tutorial", "--json", quick=QUICK[:2])
    assert code == 0
    assert err == "lmtop: no transformers beside it: these weights are in no file\n"
    found = json.loads(out)
    assert [row["characters_per_s"] for row in found["speed"]] == [None] * 4
    assert all(row["tokens_per_s"] > 0 and row["memory"] > 0 for row in found["speed"])
    assert [row["share"] for row in found["memory"]] == [0.8, 0.5, 0.01, 0.01]
    code, _, err = run(tiny, "--tutorial", "--batch", "4", quick=())
    assert code == 2
    assert (
        err.splitlines()[-1]
        == "lmtop: error: --tutorial has tables of its own: only --new-tokens goes with it"
    )
