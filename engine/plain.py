"""`lmtop chat MODEL --plain`: the line-by-line chat that LMDeploy's users know; works in pipes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .answer import answer, debug_log, load_and_wait, printable, say, show_loading
from .client import Backend, Mailbox
from .local import LocalBackend
from .types import Delta, Failed, Finished, Message, Request, UsageError

if TYPE_CHECKING:
    from .arguments import Options

PROMPT = "\ndouble enter to end input >>> "


def run_plain(options: Options) -> int:
    """Read prompts (an empty line sends; `end` starts a new conversation, `exit` leaves), stream replies.

    Replies go to standard output; the prompt (for a person only) and everything about the replies to standard
    error. Ctrl-C stops a reply, at the prompt it leaves. Returns the exit code."""
    backend = LocalBackend(log=debug_log)
    try:
        mailbox = backend.open()
        info = load_and_wait(backend, mailbox, options.engine_config(), show_loading)
        say(f"{info.name}: {info.weights}, context {info.context_len} tokens, on {info.device}")
        system = options.values["meta_instruction"]
        start = (Message("system", system),) if system else ()
        messages = start
        number = 0
        while (text := _read()) is not None:
            match text.strip():
                case "":
                    continue
                case "exit":
                    break
                case "end":
                    messages = start
                    say("new conversation")
                    continue
            number += 1
            asked = (*messages, Message("user", text))
            request = Request(f"plain-{number}", asked, sampling=options.sampling(), session="plain")
            reply = _stream(backend, mailbox, request)
            if reply is not None:
                messages = (*asked, Message("assistant", reply))
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    finally:
        backend.close()


def _read() -> str | None:
    """Lines up to an empty one, joined; None at the end of the input. UsageError for what is no text."""
    if sys.stdin.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    lines: list[str] = []
    while data := sys.stdin.buffer.readline():
        try:
            line = data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input: not valid UTF-8 at byte {error.start} of a line") from None
        if not line:
            return "\n".join(lines)
        lines.append(line)
    return "\n".join(lines) if lines else None


def _stream(backend: Backend, mailbox: Mailbox, request: Request) -> str | None:
    """Print one reply as it comes; the text so far when stopped, None when it failed."""
    parts: list[str] = []
    events = answer(backend, mailbox, request)
    try:
        for event in events:
            match event:
                case Delta():
                    parts.append(event.text)
                    sys.stdout.write(printable(event.text))
                    sys.stdout.flush()
                case Finished(usage=usage, timings=timings):
                    print(flush=True)
                    say(
                        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, "
                        f"first after {timings.ttft_s:.2f} s, "
                        f"{timings.decode_tps:.1f} tok/s, context left {usage.context_left}"
                    )
                case Failed():
                    if parts:
                        print(flush=True)
                    say(f"error: {event.message}; `end` starts a new conversation")
                    return None
    except KeyboardInterrupt:
        events.close()
        print(flush=True)
        say("stopped")
    return "".join(parts)
