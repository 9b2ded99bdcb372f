"""Texts for calibration: windows of a text, conversations, data sets, the bundled text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.llama import write_llama

from lmtop.engine.calibration import BUNDLED, DATASETS, Windows, held_out, load_windows
from lmtop.engine.models import demo_path
from lmtop.engine.template import ChatTemplate, load_template
from lmtop.engine.tokenizer import Tokenizer, load_tokenizer
from lmtop.engine.types import Message, UsageError


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, ChatTemplate]:
    """A byte-level tokenizer whose texts begin with <s>, and its template."""
    directory = write_llama(tmp_path_factory.mktemp("model"))
    config = json.loads((directory / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory, "llama", 261)
    return tokenizer, load_template(directory, "llama", tokenizer)


def windows(tools: tuple[Tokenizer, ChatTemplate], data: str | None, count: int, length: int) -> Windows:
    return load_windows(data, *tools, count, length)


def test_windows_follow_each_other_and_begin_as_prompts_do(
    tools: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    path = tmp_path / "text.md"
    path.write_text("".join(chr(97 + n % 26) for n in range(400)))
    found = windows(tools, str(path), 100, 65)
    assert [len(ids) for ids in found.ids] == [
        65
    ] * 6  # 402 bytes with the paragraph's end; the rest is no window
    assert {ids[0] for ids in found.ids} == {1}
    text = "".join(tools[0].decode(ids[1:]) for ids in found.ids)
    assert text == path.read_text()[: 6 * 64]
    assert found.source == "text.md" and found.notices == ("text.md gives 6 of the 100 samples asked for",)
    few = windows(tools, str(path), 3, 65)
    assert few.ids == found.ids[::2] and few.notices == ()  # spread over the text
    assert windows(tools, str(path), 0, 65).ids == ()


def test_a_short_text_is_one_short_window_and_a_shorter_one_none(
    tools: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("twenty bytes of text")
    assert [len(ids) for ids in windows(tools, str(path), 8, 512).ids] == [23]
    path.write_text("ten bytes.")
    with pytest.raises(UsageError, match=r"text\.txt: fewer than 16 tokens"):
        windows(tools, str(path), 8, 512)


def test_conversations_are_rendered_by_the_models_own_template(
    tools: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    path = tmp_path / "chats.json"
    turns = [("user", "what is a fjord?"), ("assistant", "a long, narrow bay of the sea.")]
    names = {"user": "human", "assistant": "gpt"}
    path.write_text(
        json.dumps(
            [
                {"messages": [{"role": role, "content": text} for role, text in turns]},
                {"conversations": [{"from": names[role], "value": text} for role, text in turns]},
                [{"role": role, "content": text} for role, text in turns],
                {"text": "and a plain text, which is cut into windows as it is"},
            ]
        )
    )
    messages = [Message(role, text) for role, text in turns]  # type: ignore[arg-type]
    rendered = tuple(tools[1].render(messages, add_generation_prompt=False))
    found = windows(tools, str(path), 8, 512)
    assert found.ids[:3] == (rendered,) * 3 and len(found.ids) == 4
    assert windows(tools, str(path), 8, 20).ids[0] == rendered[:20]


@pytest.mark.parametrize(
    "line", ['{"messages": []}', '{"role": "user"}', "7", '{"messages": [{"role": "judge", "content": "x"}]}']
)
def test_what_is_no_conversation_is_named_by_its_line(
    line: str, tools: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"text": "a plain text before it"}\n\n' + line)
    with pytest.raises(UsageError, match=r"chats\.jsonl:3: needs"):
        windows(tools, str(path), 8, 512)


def test_files_that_cannot_be_read_are_refused(tools: tuple[Tokenizer, ChatTemplate], tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    for name, words in (
        ("bytes.txt", "not valid UTF-8 at byte 3"),
        ("none.txt", "neither a file nor one of"),
    ):
        with pytest.raises(UsageError, match=words):
            windows(tools, str(tmp_path / name), 8, 512)


def test_a_data_set_is_streamed_only_as_far_as_it_is_needed(
    tools: tuple[Tokenizer, ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, config: str | None, **more: Any) -> Iterator[dict[str, str]]:
        asked.append((path, config, more["streaming"]))
        for number in range(1000):
            asked.append(number)
            yield {"text": f"text number {number} " * 10}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    found = windows(tools, "wikitext2", 2, 64)
    assert len(found.ids) == 2 and found.source == "wikitext2" and found.notices == ()
    assert asked[0] == ("Salesforce/wikitext", "wikitext-2-raw-v1", True) and 1 < len(asked) < 20
    assert set(DATASETS) >= {"c4", "ptb", "wikitext2", "pileval"}  # LMDeploy 0.1's


def test_the_bundled_texts_are_varied_and_do_not_overlap() -> None:
    calibration, held = (
        (BUNDLED / f"{name}.txt").read_text(encoding="utf-8") for name in ("calibration", "held_out")
    )
    assert len(calibration.encode()) > 40_000 and len(held.encode()) > 9_000
    shared = set(calibration.split("\n")) & set(held.split("\n"))
    assert all(len(line) < 12 for line in shared)  # rules, brackets
    for part in ("def ", "#include", "SELECT", '"id": 10', " = ", "的", "の", "ß", "ы", "User:"):
        assert part in calibration, part
    directory = demo_path()
    tokenizer = load_tokenizer(directory, "llama", 4096)
    assert held_out(tokenizer, 4, 256).tokens == 1024
    assert load_windows(None, tokenizer, load_template(directory, "llama", tokenizer), 4, 256).tokens == 1024
