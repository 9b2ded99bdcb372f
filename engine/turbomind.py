"""LMDeploy 0.1's way to a model: `TurboMind.from_pretrained(path).create_instance().stream_infer(...)`.

Kept for the scripts of its tutorials; `engine.pipeline` is the API. An instance keeps the token ids of each
session; that their keys and values are still in the cache is the prefix cache's doing.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from .messages import GenerationConfig, TurbomindEngineConfig
from .pipeline import Pipeline, pipeline
from .pipeline_prompts import many_token_ids
from .pipeline_settings import sampling
from .types import Message, Request, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from .template import ChatTemplate
    from .tokenizer import Tokenizer

_PROBE = "lmtop-probe-4c1d"


class TurboMindTokenizer:
    """`encode` and `decode` as LMDeploy's tokenizer names them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, s: str, add_bos: bool = True) -> list[int]:
        """Token ids of `s`, special tokens in it included. `add_bos`: with the model's first token, unless
        the text begins with it."""
        ids = self._tokenizer.encode(s, add_special=False)
        prefix = list(self._tokenizer.prefix)
        return prefix + ids if add_bos and ids[: len(prefix)] != prefix else ids

    def decode(self, t: Any, offset: int | None = None) -> str:
        """The text of token ids (a list, array or tensor), from `offset` on; special tokens are left out."""
        (ids,), _ = many_token_ids(t)
        return self._tokenizer.decode(ids[offset or 0 :])


class TurboMindModel:
    """The chat format, as LMDeploy's `model`."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def get_prompt(self, prompt: str, sequence_start: bool = True) -> str:
        """The text that asks for an answer to `prompt`; without `sequence_start`, as it follows an earlier
        answer."""
        turn = Message("user", prompt)
        if sequence_start:
            return self._template.render_text([turn])
        before = [Message("user", "-"), Message("assistant", _PROBE)]
        return self._template.render_text([*before, turn]).partition(_PROBE)[2]


class TurboMind:
    """A loaded model. `tokenizer`, `model` (the chat format) and `session_len` as in LMDeploy 0.1."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self.tokenizer = TurboMindTokenizer(pipe.tokenizer)
        self.model = TurboMindModel(pipe.template)
        self.session_len = pipe.session_len

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        model_name: str | None = None,
        model_format: str | None = None,
        group_size: int | None = None,
        tp: int | None = None,
        **kwargs: Any,
    ) -> TurboMind:
        """Load a model; `kwargs` are fields of `TurbomindEngineConfig`. Raises as `lmtop.pipeline` does."""
        known = TurbomindEngineConfig.__dataclass_fields__
        for name in kwargs:
            if name not in known:
                raise UsageError(f"from_pretrained: {name}: not a field of TurbomindEngineConfig")
        config = TurbomindEngineConfig(model_format=model_format, tp=tp or 1, **kwargs)
        return cls(pipeline(pretrained_model_name_or_path, config))

    def create_instance(self, cuda_stream_id: int = 0) -> TurboMindInstance:
        """A generator with sessions of its own; all of one model share its batch."""
        return TurboMindInstance(self._pipe)

    def close(self) -> None:
        """Free the model's memory."""
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TurboMindInstance:
    """Generates from token ids. One thread at a time."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self._name = uuid.uuid4().hex[:8]
        self._sessions: dict[int, list[int]] = {}
        self._ends = pipe.tokenizer.eos_ids.union(pipe.template.stop_ids)

    def stream_infer(
        self,
        session_id: int,
        input_ids: Sequence[int] | Sequence[Sequence[int]],
        request_output_len: int = 512,
        sequence_start: bool = True,
        sequence_end: bool = False,
        step: int = 0,
        stop: bool = False,
        top_p: float = 0.8,
        top_k: int = 40,
        temperature: float = 0.8,
        repetition_penalty: float = 1.0,
        ignore_eos: bool = False,
        random_seed: int | None = None,
        stream_output: bool = False,
    ) -> Iterator[list[tuple[Tensor, int]]]:
        """Yield `[(ids, count)]`: all token ids generated so far, int64 [count], an end token left out.
        `stream_output` False yields once, at the end.

        `sequence_start` False continues what the session has said and heard, of which `step` > 0 keeps only
        the first `step` tokens; `sequence_end` forgets it afterwards, `stop` at once.
        """
        import torch

        if stop:
            self._sessions.pop(session_id, None)
            return
        lists, _ = many_token_ids(input_ids)
        if len(lists) != 1:
            raise UsageError(f"input_ids: {len(lists)} sequences; one instance generates for one at a time")
        before = [] if sequence_start else self._sessions.get(session_id, [])
        prompt = (before[:step] if step else before) + lists[0]
        config = GenerationConfig(
            max_new_tokens=request_output_len,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            ignore_eos=ignore_eos,
            random_seed=random_seed,
        )
        request = Request(
            f"turbomind-{uuid.uuid4().hex}",
            prompt_ids=tuple(prompt),
            sampling=sampling(config, self._pipe.tokenizer),
            session=f"{self._name}-{session_id}",
        )
        ids: list[int] = []
        for piece in self._pipe.stream_request(request):
            ids += piece.token_ids
            if piece.finish_reason == "stop":
                ids.pop()  # the end token
            ended = bool(ids) and ids[-1] in self._ends  # maybe the end token: the next piece tells
            if piece.finish_reason is not None or (stream_output and piece.token_ids and not ended):
                yield [(torch.tensor(ids), len(ids))]
        self._sessions[session_id] = prompt + ids
        if sequence_end:
            del self._sessions[session_id]

    def end(self, session_id: int) -> None:
        """Forget a session."""
        self._sessions.pop(session_id, None)

    def decode(self, input_ids: Sequence[int] | Sequence[Sequence[int]]) -> Any:
        """The logits after each token: float32 [tokens, vocabulary], or a list of these."""
        return self._pipe.get_logits(input_ids)
