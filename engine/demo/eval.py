"""Held-out evaluation and samples: greedy answers to prompts that training never showed."""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .corpus import Message
from .heldout import CASES, SAMPLE_PROMPTS, Case
from .net import Net, load_net
from .tokenizer import END, render

_END_ID = 2


@torch.no_grad()
def answers(net: Net, tokenizer: Tokenizer, chats: Sequence[list[Message]], limit: int) -> list[str]:
    """Greedy answers to `chats`, at most `limit` tokens each, all in one right-padded batch."""
    device = next(net.parameters()).device
    rows = [tokenizer.encode(render(chat, generate=True)).ids[-net.shape.context + limit :] for chat in chats]
    done = [False] * len(rows)
    starts = [len(row) for row in rows]
    for _ in range(limit):
        live = [i for i, end in enumerate(done) if not end]
        if not live:
            break
        width = max(len(rows[i]) for i in live)
        ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in live], device=device)
        last = torch.tensor([len(rows[i]) - 1 for i in live], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden = net(ids)[torch.arange(len(live), device=device), last]
            following = net.logits(hidden).argmax(-1).tolist()
        for i, token in zip(live, following, strict=True):
            done[i] = token == _END_ID
            if not done[i]:
                rows[i].append(token)
    return [tokenizer.decode(row[start:]) for row, start in zip(rows, starts, strict=True)]


def dialogues(net: Net, tokenizer: Tokenizer, cases: Sequence[Case], limit: int = 200) -> list[list[Message]]:
    """Play all turns of all cases, the model's own answers in between."""
    chats: list[list[Message]] = [
        [{"role": "system", "content": case.system}] if case.system else [] for case in cases
    ]
    for turn in range(max((len(case.turns) for case in cases), default=0)):
        at = [i for i, case in enumerate(cases) if turn < len(case.turns)]
        for i in at:
            chats[i].append({"role": "user", "content": cases[i].turns[turn]})
        for i, text in zip(at, answers(net, tokenizer, [chats[i] for i in at], limit), strict=True):
            chats[i].append({"role": "assistant", "content": text})
    return chats


def evaluate(net: Net, tokenizer: Tokenizer, cases: Sequence[Case] = CASES, limit: int = 200) -> str:
    """Return a report: accuracy by intent, overall, and every failed case."""
    score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    failed = []
    for case, chat in zip(cases, dialogues(net, tokenizer, cases, limit), strict=True):
        good = re.search(case.want, chat[-1]["content"], re.IGNORECASE) is not None
        score[case.intent][0] += good
        score[case.intent][1] += 1
        if not good:
            failed.append(
                f"FAILED [{case.intent}] {' / '.join(case.turns)!r}\n    -> {chat[-1]['content']!r}"
            )
    right, total = (sum(pair[i] for pair in score.values()) for i in (0, 1))
    lines = [f"{intent:24} {good:3} / {count}" for intent, (good, count) in score.items()]
    return "\n".join([*lines, f"{'all':24} {right:3} / {total}", "", *failed]) + "\n"


def samples(net: Net, tokenizer: Tokenizer, prompts: Sequence[tuple[str, ...]] = SAMPLE_PROMPTS, limit: int = 400) -> str:  # fmt: skip
    """Return greedy conversations as plain text."""
    chats = dialogues(net, tokenizer, [Case("sample", turns, "") for turns in prompts], limit)
    return "\n".join("".join(f"{m['role']}: {m['content']}\n" for m in chat) for chat in chats)


def main() -> None:
    """`python -m lmtop.engine.demo.eval DIR` evaluates a saved model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=Path(__file__).parent / "model")
    parser.add_argument("--samples", action="store_true", help="print the samples instead")
    args = parser.parse_args()
    net = load_net(args.model).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    assert tokenizer.token_to_id(END) == _END_ID
    print((samples if args.samples else evaluate)(net, tokenizer))


if __name__ == "__main__":
    main()
