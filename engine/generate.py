"""`lmtop generate`: one reply to standard output."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .answer import answer, debug_log, load_and_wait, printable, show_loading
from .local import LocalBackend
from .settings import encodable
from .text import one_line
from .types import (
    Accepted,
    Delta,
    DeviceError,
    Failed,
    Finished,
    LmtopError,
    Message,
    ModelError,
    Request,
    UsageError,
)

if TYPE_CHECKING:
    from .arguments import Options

INPUT_LIMIT = 64 << 20
# Kinds of failure by the code of `Failed`; any other is a bug of ours.
KINDS: dict[str, type[LmtopError]] = {
    "invalid_request": UsageError,
    "context_length_exceeded": UsageError,
    "template_failed": ModelError,  # the model's own code, not what was asked
    "nonfinite_logits": ModelError,
    "out_of_memory": DeviceError,
    "engine_dead": DeviceError,
}


def run_generate(options: Options) -> int:
    """Stream the reply as text, or print one JSON object with text, prompt_token_ids, token_ids,
    finish_reason, usage and timings. Returns the exit code."""
    request = _request(options)
    backend = LocalBackend(log=debug_log)
    try:
        mailbox = backend.open()
        load_and_wait(backend, mailbox, options.engine_config(), show_loading)
        as_json = options.values["json"]
        result: dict[str, Any] = {"text": "", "prompt_token_ids": [], "token_ids": []}
        for event in answer(backend, mailbox, request):
            match event:
                case Accepted():
                    result["prompt_token_ids"] = list(event.prompt_ids)
                case Delta():
                    result["token_ids"] += event.token_ids
                    result["text"] += event.text
                    if not as_json:
                        sys.stdout.write(printable(event.text))
                        sys.stdout.flush()
                case Finished():
                    result["finish_reason"] = event.reason
                    result["usage"] = asdict(event.usage)
                    result["timings"] = asdict(event.timings)
                case Failed():
                    raise _error(event)
        if as_json:
            print(json.dumps(result))
        elif not result["text"].endswith("\n"):
            print()
        return 0
    finally:
        backend.close()


def _error(event: Failed) -> LmtopError:
    """The failure whose exit code tells who is to act: the asker, the model's maker, or the machine."""
    return KINDS.get(event.code, LmtopError)(event.message)


def _request(options: Options) -> Request:
    extra = options.extra
    sampling = options.sampling()
    if extra["prompt_ids"] is not None:
        if extra["prompt"] is not None:
            raise UsageError("--prompt-ids and PROMPT exclude each other: give one")
        try:
            ids = tuple(int(part) for part in extra["prompt_ids"].split(",") if part.strip())
        except ValueError:
            raise UsageError(
                f"--prompt-ids = {one_line(extra['prompt_ids'], 60)!r}: must be integers like 1,2,3"
            ) from None
        return Request("generate", prompt_ids=ids, sampling=sampling)
    raw = options.values["raw"]
    prompt = extra["prompt"] if extra["prompt"] is not None else _read_input(may_be_empty=raw)
    if not encodable(prompt):
        raise UsageError("PROMPT: not valid UTF-8")
    if raw:
        return Request("generate", prompt=prompt, sampling=sampling)
    system = options.values["meta_instruction"]
    messages = (Message("system", system),) if system else ()
    return Request("generate", messages=(*messages, Message("user", prompt)), sampling=sampling)


def _read_input(may_be_empty: bool) -> str:
    if sys.stdin.isatty():
        print("lmtop: reading the prompt from standard input; end it with Ctrl-D", file=sys.stderr)
    data = sys.stdin.buffer.read(INPUT_LIMIT + 1)
    if len(data) > INPUT_LIMIT:
        raise UsageError(f"standard input: more than {INPUT_LIMIT >> 20} MiB")
    if not data.strip() and not may_be_empty:
        raise UsageError('no prompt: standard input is empty; `lmtop generate MODEL "PROMPT"`')
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: not valid UTF-8 at byte {error.start}") from None
