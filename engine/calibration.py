"""Texts to calibrate a quantisation with: a file, a data set that LMDeploy names, or the bundled text.

A plain text is cut into windows that follow each other; conversations are rendered by the model's own template, one
window each. Every window begins as the model's prompts do. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .hfconfig import MIB, shown
from .settings import encodable
from .template import ChatTemplate
from .text import one_line
from .tokenizer import Tokenizer
from .types import Message, Role, TemplateRefused, UsageError

BUNDLED = Path(__file__).with_name("calibration_text")
FILE_CAP = 64 * MIB
SHORTEST = 16  # tokens; a shorter window says nothing
CHARACTERS = 8  # per token: enough of a data set is fetched for so long a token
ANSWER_S = 5.0
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where a data set lies on the hub; `column` holds its texts."""

    path: str
    column: str
    config: str | None = None
    split: str = "train"
    files: str | None = None


# LMDeploy's names (lite/utils/calib_dataloader.py lists them; the columns are those of the hub's pages).
DATASETS = {
    "wikitext2": Dataset("Salesforce/wikitext", "text", "wikitext-2-raw-v1"),
    "c4": Dataset("allenai/c4", "text", files="en/c4-train.00000-of-01024.json.gz"),
    "ptb": Dataset("ptb-text-only/ptb_text_only", "sentence", "penn_treebank"),
    "pileval": Dataset("mit-han-lab/pile-val-backup", "text", split="validation"),
    "gsm8k": Dataset("openai/gsm8k", "question", "main"),
    "neuralmagic_calibration": Dataset("neuralmagic/LLM_compression_calibration", "text"),
    "open-platypus": Dataset("garage-bAInd/Open-Platypus", "instruction"),
    "openwebtext": Dataset("Skylion007/openwebtext", "text"),
}


@dataclass(frozen=True, slots=True)
class Windows:
    """Token ids to run through the model; `source` says in a few words where they come from."""

    ids: tuple[tuple[int, ...], ...]
    source: str
    notices: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def held_out(tokenizer: Tokenizer, count: int, length: int) -> Windows:
    """Windows of the bundled text that no calibration sees."""
    text = (BUNDLED / "held_out.txt").read_text(encoding="utf-8")
    return Windows(_cut(tokenizer, (text,), count, length), "bundled held-out text")


def load_windows(
    data: str | None, tokenizer: Tokenizer, template: ChatTemplate, count: int, length: int
) -> Windows:
    """At most `count` windows of at most `length` tokens from `data`: a file, the name of a data set, or None for
    the bundled text, which also stands in for a data set that cannot be fetched. UsageError names what is wrong
    with a file."""
    if count == 0:
        return Windows((), "no calibration data")
    if data is None:
        return _bundled(tokenizer, count, length)
    path = Path(data).expanduser()
    if data not in DATASETS or path.exists():
        return _file(path, data, tokenizer, template, count, length)
    try:
        texts = _fetch(data, count * length * CHARACTERS)
    except Exception as error:  # noqa: BLE001  whatever that package or the network raises: no data
        reason = one_line(str(error), 120) or type(error).__name__
        if isinstance(error, ImportError):
            reason = "the package `datasets` is not installed"
        notice = (
            f"calibration data {data} cannot be fetched ({reason}): the bundled text is used instead; "
            "--calib-dataset FILE takes a text or chat JSONL file"
        )
        windows = _bundled(tokenizer, count, length)
        return Windows(windows.ids, windows.source, (notice, *windows.notices))
    return _enough(_cut(tokenizer, texts, count, length), data, count)


def _bundled(tokenizer: Tokenizer, count: int, length: int) -> Windows:
    text = (BUNDLED / "calibration.txt").read_text(encoding="utf-8")
    return _enough(_cut(tokenizer, (text,), count, length), "bundled text", count)


def _enough(ids: tuple[tuple[int, ...], ...], source: str, count: int) -> Windows:
    if not ids:
        raise UsageError(f"calibration data {shown(source)}: fewer than {SHORTEST} tokens")
    few = f"{source} gives {len(ids)} of the {count} samples asked for"
    return Windows(ids, source, (few,) if len(ids) < count else ())


def _fetch(name: str, characters: int) -> tuple[str, ...]:
    """The first texts of a data set, `characters` together. Raises whatever goes wrong."""
    import datasets  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from huggingface_hub import HfApi

    entry = DATASETS[name]
    HfApi().dataset_info(entry.path, timeout=ANSWER_S)  # the package itself would try for a minute
    rows = datasets.load_dataset(
        entry.path, entry.config, data_files=entry.files, split=entry.split, streaming=True
    )
    texts, total = [], 0
    for row in rows:
        texts.append(str(row[entry.column]))
        total += len(texts[-1])
        if total >= characters:
            break
    return tuple(texts)


def _cut(tokenizer: Tokenizer, texts: Sequence[str], count: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Windows of the texts, one after the other; where there are more than `count`, evenly spread ones."""
    prefix = tokenizer.prefix
    step = max(1, length - len(prefix))
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text if text.endswith("\n") else text + "\n\n", add_special=False)
    windows = [(*prefix, *ids[at : at + step]) for at in range(0, len(ids), step)]
    if len(windows) > 1 and len(windows[-1]) < length:
        windows.pop()
    windows = [window for window in windows if len(window) >= SHORTEST]
    if len(windows) > count:
        windows = [windows[at * len(windows) // count] for at in range(count)]
    return tuple(windows)


def _file(
    path: Path, name: str, tokenizer: Tokenizer, template: ChatTemplate, count: int, length: int
) -> Windows:
    text = _read(path, name)
    source = one_line(path.name, 60)
    if path.suffix.lower() not in (".jsonl", ".json"):
        return _enough(_cut(tokenizer, (text,), count, length), source, count)
    texts: list[str] = []
    windows: list[tuple[int, ...]] = []
    refused: list[str] = []
    for at, record in _records(text, source):
        messages = _messages(record, f"{source}:{at}")
        if isinstance(messages, str):
            texts.append(messages)
            continue
        try:
            ids = template.render(messages, add_generation_prompt=False)
        except TemplateRefused as error:
            refused.append(str(error))
            continue
        if len(ids) >= SHORTEST:
            windows.append(tuple(ids[:length]))
    if len(windows) < count and texts:
        windows += _cut(tokenizer, texts, count - len(windows), length)
    if refused and not windows:
        raise UsageError(f"calibration data {source}: {one_line(refused[0], 160)}")
    result = _enough(tuple(islice(windows, count)), source, count)
    skipped = (
        (f"{source}: {len(refused)} conversations skipped: {one_line(refused[0], 120)}",) if refused else ()
    )
    return Windows(result.ids, source, (*skipped, *result.notices))


def _read(path: Path, name: str) -> str:
    try:
        if not path.is_file():
            raise UsageError(
                f"calibration data {shown(name)}: neither a file nor one of {', '.join(DATASETS)}"
            )
        if path.stat().st_size > FILE_CAP:
            raise UsageError(f"calibration data {shown(name)}: larger than {FILE_CAP // MIB} MiB")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"calibration data {shown(name)}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"calibration data {shown(name)}: not valid UTF-8 at byte {error.start}") from None
    return text


def _records(text: str, source: str) -> Iterator[tuple[int, Any]]:
    """(line or entry, value) of JSON lines, or of one JSON list."""

    def parse(part: str, where: str) -> Any:
        try:
            return json.loads(part)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(str(error), 80)
            raise UsageError(f"calibration data {where}: not valid JSON: {reason}") from None

    if text.lstrip().startswith("["):
        yield from enumerate(parse(text, source), 1)
        return
    for at, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield at, parse(line, f"{source}:{at}")


def _messages(record: Any, where: str) -> list[Message] | str:
    """A conversation as messages, or a plain text. Understands {"messages": [{"role", "content"}]}, a bare list of
    such, {"conversations": [{"from", "value"}]} and {"text"}."""
    if isinstance(record, str) and encodable(record):
        return record
    turns: Any = record
    if isinstance(record, dict):
        if isinstance(text := record.get("text"), str) and encodable(text):
            return text
        turns = record.get("messages", record.get("conversations"))
    if isinstance(turns, list) and turns:
        messages = [message for turn in turns if (message := _message(turn)) is not None]
        if len(messages) == len(turns):
            return messages
    raise UsageError(
        f'calibration data {where}: needs {{"messages": [{{"role": "user", "content": "..."}}, ...]}} '
        'or {"text": "..."}'
    )


def _message(turn: Any) -> Message | None:
    if not isinstance(turn, dict):
        return None
    role = ROLES.get(str(turn.get("role", turn.get("from"))))
    content = turn.get("content", turn.get("value"))
    if role is None or not isinstance(content, str) or not encodable(content):
        return None
    return Message(role, content)


def digest_of(windows: Iterable[Sequence[int]], update: Callable[[bytes], object]) -> None:
    """Feed the ids to a hash."""
    for window in windows:
        update(",".join(map(str, window)).encode() + b"\n")
