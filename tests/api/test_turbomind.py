"""LMDeploy 0.1's `TurboMind`: ids so far, sessions that continue, logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lmtop import TurboMind, turbomind
from lmtop.engine.types import UsageError

QUERY = "Hi, pls intro yourself"


@pytest.fixture(scope="module")
def model() -> Iterator[TurboMind]:
    with TurboMind.from_pretrained("demo", session_len=256, max_batch_size=2) as loaded:
        yield loaded


def said(model: TurboMind, ids: object) -> str:
    return model.tokenizer.decode(ids)


def test_the_last_piece_is_the_whole_answer(model: TurboMind) -> None:
    assert turbomind.TurboMind is TurboMind
    ids = model.tokenizer.encode(model.model.get_prompt(QUERY))
    generator = model.create_instance()
    (only,) = generator.stream_infer(session_id=0, input_ids=[ids], top_k=1)
    res, tokens = only[0]
    assert isinstance(res, torch.Tensor)
    assert tokens == len(res)
    assert said(model, res).startswith("I am demo, a toy model built into lmtop.")
    pieces = list(generator.stream_infer(session_id=0, input_ids=ids, top_k=1, stream_output=True))
    assert [count for ((_, count),) in pieces] == sorted(count for ((_, count),) in pieces)
    assert len(pieces) > 3
    assert pieces[-1][0][0].tolist() == res.tolist()
    (short,) = generator.stream_infer(session_id=0, input_ids=ids, request_output_len=4, ignore_eos=True)
    assert short[0][1] == 4


def test_a_session_continues_where_it_was(model: TurboMind) -> None:
    generator = model.create_instance()
    first = model.tokenizer.encode(model.model.get_prompt("My name is Bob"))
    ((res, _),) = list(generator.stream_infer(7, first, top_k=1))[-1]
    second = model.tokenizer.encode(
        model.model.get_prompt("What is 2+3?", sequence_start=False), add_bos=False
    )
    assert model.model.get_prompt("x", sequence_start=False).startswith("<|im_end|>")
    ((answer, _),) = list(generator.stream_infer(7, second, sequence_start=False, top_k=1))[-1]
    by_hand = model._pipe(
        [
            {"role": "user", "content": "My name is Bob"},
            {"role": "assistant", "content": said(model, res)},
            {"role": "user", "content": "What is 2+3?"},
        ]
    )
    assert said(model, answer) == by_hand.text
    kept = generator._sessions[7]
    ((again, _),) = list(
        generator.stream_infer(
            7, second, sequence_start=False, step=len(first) + len(res), top_k=1, sequence_end=True
        )
    )[-1]
    assert again.tolist() == answer.tolist()
    assert kept[: len(first)] == first
    assert 7 not in generator._sessions
    assert list(generator.stream_infer(7, [], stop=True)) == []


def test_logits_and_errors(model: TurboMind) -> None:
    generator = model.create_instance()
    ids = model.tokenizer.encode("one two three")
    assert generator.decode(ids).shape == (len(ids), 4096)
    with pytest.raises(UsageError, match="2 sequences"):
        list(generator.stream_infer(0, [ids, ids]))
    with pytest.raises(UsageError, match="rope: not a field of TurbomindEngineConfig"):
        TurboMind.from_pretrained("demo", rope=1)
    with pytest.raises(UsageError, match="context"):
        list(generator.stream_infer(0, ids * 200))
