"""`lmtop bench --serve URL`: measured against our own server, and against none."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import call_lmtop
from support.server import Server

from lmtop.engine.bench_serve import Run, percentile, row_of
from lmtop.engine.bench_traffic import Answered, questions

KEY = "sk-canary-4711"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(keys=(KEY,))
    yield server
    server.close()


def test_a_table_a_csv_and_json(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.csv"
    arguments = [
        "bench",
        "--serve",
        server.url,
        "--key-env",
        "SERVED",
        "--batch",
        "1,4",
        "--num-prompts",
        "8",
    ]
    arguments += ["--prompt", "12", "--new-tokens", "9"]
    code = call_lmtop(tmp_path, monkeypatch, *arguments, "--csv", str(file), SERVED=KEY)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    lines = printed.out.splitlines()
    assert lines[0].split()[:4] == ["STREAMS", "RATE/S", "OK", "FAILED"]
    assert [line.split()[:4] for line in lines[1:]] == [["1", "-", "8", "0"], ["4", "-", "8", "0"]]
    assert KEY not in printed.out + printed.err
    rows = list(csv.DictReader(file.open()))
    assert [row["streams"] for row in rows] == ["1", "4"]
    for row in rows:
        assert float(row["out_per_s"]) == pytest.approx(8 * 9 / float(row["seconds"]))
        assert 0 < float(row["ttft_p50"]) <= float(row["ttft_p99"])
        assert 1e3 * float(row["e2e_p50"]) > float(row["ttft_p50"])

    arguments = [
        "bench",
        "--serve",
        server.url,
        "--key-env",
        "SERVED",
        "--request-rate",
        "50",
        "--num-prompts",
        "6",
    ]
    assert call_lmtop(tmp_path, monkeypatch, *arguments, "--json", SERVED=KEY) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["rate"], run["ok"], run["failed"]) == (50.0, 6, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--serve", "localhost:1"), 5, "cannot be reached"),
        (("--serve", "ftp://x"), 2, "begins with http"),
        (("demo", "--serve", "localhost:1"), 2, "give no MODEL"),
        (("--serve", "localhost:1", "--request-rate", "0"), 2, "--request-rate"),
        (("--serve", "localhost:1", "--num-prompts", "x"), 2, "--num-prompts"),
        (("--serve", "localhost:1", "--key-env", "NOT_SET_HERE"), 2, "is not set"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call_lmtop(tmp_path, monkeypatch, "bench", *arguments) == code
    assert said in capsys.readouterr().err


def test_a_wrong_key_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_lmtop(tmp_path, monkeypatch, "bench", "--serve", server.url) == 5
    assert "HTTP 401" in capsys.readouterr().err


def test_lengths_are_those_of_conversations_and_can_be_fixed() -> None:
    drawn = questions(4000, 1, None, None)
    words = [len(question.text.split()) for question in drawn]
    answers = [question.new_tokens for question in drawn]
    assert 150 < statistics.mean(words) < 260 and 150 < statistics.mean(answers) < 230
    assert statistics.median(words) < statistics.mean(words)  # the tail is heavy
    assert max(answers) <= 1024
    assert drawn == questions(4000, 1, None, None)
    assert drawn != questions(4000, 2, None, None)
    assert len({question.text.split()[0] for question in drawn}) == 4000  # no prefix in common
    fixed = questions(3, 1, 20, 7)
    assert {(len(question.text.split()), question.new_tokens) for question in fixed} == {(17, 7)}


def test_the_figures() -> None:
    answers = [Answered(1.0 + i, 0.5, 10, 11) for i in range(4)] + [Answered(error="HTTP 503")]
    row = row_of(Run(2, 0.0, 5), answers, 2.0)
    assert (row.ok, row.failed, row.errors) == (4, 1, {"HTTP 503": 1})
    assert (row.requests_per_s, row.out_per_s, row.in_per_s) == (2.0, 22.0, 20.0)
    assert (row.e2e_p50, row.e2e_p99, row.ttft_p50) == (2.0, 4.0, 500.0)
    assert row.tpot_p50 == pytest.approx(1e3 * 1.5 / 10)
    assert percentile([], 50) is None
    assert [percentile([1, 2, 3, 4], share) for share in (25, 50, 51, 100)] == [1, 2, 3, 4]
