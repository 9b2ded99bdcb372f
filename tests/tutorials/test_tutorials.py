"""The scripts that LMDeploy's tutorials teach run here with the import, the model and the address changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.command import clean_environment

import lmtop

HERE = Path(__file__).parent
INTRO = "I am demo, a toy model built into lmtop."


def run(script: str, home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=home,
        env=clean_environment(home),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clean_environment(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        with lmtop.serve("demo", server_port=0) as client:
            yield client.api_server_url


@pytest.mark.parametrize("script", ["pipeline_batch.py", "pipeline_kv.py"])
def test_two_prompts_at_once(script: str, tmp_path: Path) -> None:
    said = run(script, tmp_path)
    assert said.count("Response(text=") == 2
    assert INTRO in said


def test_settings_messages_and_pieces(tmp_path: Path) -> None:
    said = run("pipeline_sampling.py", tmp_path).splitlines()
    assert said[0].count("finish_reason='") == 2
    assert sum("finish_reason='" in line for line in said[1:]) == 2


def test_the_engine_without_a_pipeline(tmp_path: Path) -> None:
    assert len(run("turbomind_generator.py", tmp_path).strip()) > 10  # it samples, as it did


def test_the_openai_client(server: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    said = run("openai_demo.py", tmp_path, server)
    assert "ChatCompletion(id=" in said
    assert "finish_reason='stop'" in said


def test_the_api_client(server: str, tmp_path: Path) -> None:
    said = run("api_client_demo.py", tmp_path, server).splitlines()
    assert "'object': 'chat.completion'" in said[0]
    assert "'object': 'text_completion'" in said[1]
    assert said[-1].rsplit(" ", 2)[-1] in ("stop", "length")


@pytest.mark.parametrize(
    ("path", "body"),
    [("chat/completions", "chat_completions.json"), ("chat/interactive", "chat_interactive.json")],
)
def test_the_bodies_that_curl_sends(server: str, path: str, body: str) -> None:
    data = (HERE / body).read_bytes()
    answer = httpx.post(
        f"{server}/v1/{path}", content=data, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    text = found["text"] if path == "chat/interactive" else found["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    assert json.loads(data).keys() >= {"stop"}
