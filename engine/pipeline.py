"""The Python API: a model in this process, `pipeline(path)(prompts)`.

A pipeline owns a `LocalBackend`, whose threads do the work: any thread may call it, several at once, and
their prompts share the batch. There is no second process, so a script needs no `if __name__ == "__main__"`.
`close` (or leaving its `with` block, or the end of the last reference) frees the model's memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from . import score
from .config import EngineConfig
from .messages import (
    ChatTemplateConfig,
    Config,
    GenerationConfig,
    PytorchEngineConfig,
    Response,
    TurbomindEngineConfig,
)
from .pipeline_answers import Ask, Session
from .pipeline_host import Host, log, raise_if_lost, tell
from .pipeline_prompts import Prompts, is_one, many_token_ids
from .pipeline_settings import PACKED, engine_config, examine_old, old_config, sampling, warn_once
from .types import UsageError

if TYPE_CHECKING:
    from torch import Tensor

One = str | Mapping[str, Any] | list[dict[str, Any]]  # a text, a message, a conversation
Many = list[str] | list[list[dict[str, Any]]]
Configs = Config | Sequence[Config] | None


class Pipeline(Host):
    """A loaded model. Made by `pipeline`; see there."""

    def __init__(self, config: EngineConfig, chat_template_config: ChatTemplateConfig | None = None) -> None:
        super().__init__(config)
        try:
            self._prompts = Prompts(self.tokenizer, chat_template_config)
        except BaseException:
            self.close()
            raise

    # --- answers --------------------------------------------------------------------------------------------

    @overload
    def __call__(
        self,
        prompts: One,
        gen_config: Config | None = None,
        *,
        do_preprocess: bool = ...,
        use_tqdm: bool = ...,
        **old: Any,
    ) -> Response: ...

    @overload
    def __call__(
        self,
        prompts: Many,
        gen_config: Configs = None,
        *,
        do_preprocess: bool = ...,
        use_tqdm: bool = ...,
        **old: Any,
    ) -> list[Response]: ...

    @overload
    def __call__(
        self,
        prompts: Iterable[Any],
        gen_config: Configs = None,
        *,
        do_preprocess: bool = ...,
        use_tqdm: bool = ...,
        **old: Any,
    ) -> Any: ...

    def __call__(
        self,
        prompts: Any,
        gen_config: Configs = None,
        *,
        do_preprocess: bool = True,
        use_tqdm: bool = False,
        **old: Any,
    ) -> Any:
        """The answer to one prompt, or the list of the answers to a list, in its order.

        A prompt is a text, a message or a list of messages (`{"role": ..., "content": ...}`); `gen_config` is
        one for all or a list of one for each. `do_preprocess=False` continues a text as it is. LMDeploy 0.1's
        own keywords (`request_output_len`, `top_k`, `top_p`, `temperature`, `repetition_penalty`,
        `ignore_eos`) are accepted in place of `gen_config`, and then it samples as it did there. A single
        prompt that cannot be answered raises; one in a list gets a `Response` with `finish_reason` "error",
        and the others go on.
        """
        gen_config = old_config(old, gen_config) if old else gen_config
        alone = is_one(prompts)
        asks = self._asks([prompts] if alone else prompts, gen_config, do_preprocess)
        answers = self._answers(asks, alone, use_tqdm)
        return answers[0] if alone else answers

    batch_infer = infer = __call__

    def stream_infer(
        self,
        prompts: One | Many | Iterable[Any],
        gen_config: Configs = None,
        *,
        do_preprocess: bool = True,
        **old: Any,
    ) -> Iterator[Response]:
        """The answers in pieces, as they come; `index` tells of which prompt. The last piece of each has its
        `finish_reason`. Dropping the iterator ends what is still open."""
        gen_config = old_config(old, gen_config) if old else gen_config
        alone = is_one(prompts)
        asks = self._asks([prompts] if alone else prompts, gen_config, do_preprocess)
        return (piece for _, piece in self._pieces(asks, alone))

    async def generate(
        self,
        prompt: One,
        gen_config: Config | None = None,
        *,
        session_id: int | None = None,
        do_preprocess: bool = True,
    ) -> AsyncIterator[Response]:
        """`stream_infer` of one prompt for asyncio: never blocks the event loop. Leaving the loop early, or
        cancelling the task, ends the generation."""
        ask = self._ask(0, prompt, gen_config, session_id=session_id, chat=do_preprocess)
        self.require_open()
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(ready.set)

        mailbox = self._backend.open(wake)
        try:
            self._backend.submit(ask.request, mailbox)
            while ask.answer.finish_reason is None:
                await ready.wait()
                ready.clear()
                for event in mailbox.drain():
                    tell(event)
                    raise_if_lost(event, alone=True)
                    if (
                        getattr(event, "id", None) == ask.request.id
                        and (piece := ask.piece(event)) is not None
                    ):
                        yield piece
        finally:
            self._backend.close_mailbox(mailbox)

    @overload
    def chat(
        self,
        prompt: str,
        session: Session | None = None,
        gen_config: Config | None = None,
        stream_response: Literal[False] = False,
    ) -> Session: ...

    @overload
    def chat(
        self, prompt: str, session: Session | None, gen_config: Config | None, stream_response: Literal[True]
    ) -> Iterator[Response]: ...

    @overload
    def chat(
        self,
        prompt: str,
        session: Session | None = None,
        gen_config: Config | None = None,
        *,
        stream_response: Literal[True],
    ) -> Iterator[Response]: ...

    def chat(
        self,
        prompt: str,
        session: Session | None = None,
        gen_config: Config | None = None,
        stream_response: bool = False,
    ) -> Any:
        """Say `prompt` in `session`, or in a new one, and return it with `response` and `history`;
        `stream_response=True` returns the pieces of the answer instead."""
        session = self.session() if session is None else session
        return session.stream(prompt, gen_config) if stream_response else session(prompt, gen_config)

    def session(self) -> Session:
        """A new conversation."""
        return Session(self, next(self._numbers))

    # --- what the model thinks of given tokens --------------------------------------------------------------

    def get_ppl(self, input_ids: Sequence[int] | Sequence[Sequence[int]]) -> list[float]:
        """The mean cross-entropy, in nats, of each list of token ids (LMDeploy's meaning: its exponential is
        what is usually called perplexity)."""
        lists, _ = many_token_ids(input_ids)
        return self._score(score.cross_entropy, lists)

    @overload
    def get_logits(self, input_ids: Sequence[int]) -> Tensor: ...

    @overload
    def get_logits(self, input_ids: Sequence[Sequence[int]]) -> list[Tensor]: ...

    def get_logits(self, input_ids: Sequence[int] | Sequence[Sequence[int]]) -> Tensor | list[Tensor]:
        """The logits after each token, float32 [tokens, vocabulary] on the CPU; a list of these for a
        list."""
        lists, one = many_token_ids(input_ids)
        found = self._score(score.logits, lists)
        return found[0] if one else found

    # --- requests -------------------------------------------------------------------------------------------

    def _asks(self, prompts: Any, configs: Any, chat: bool) -> list[Ask]:
        if not isinstance(prompts, Iterable) or isinstance(prompts, bytes):
            raise UsageError(
                f"prompts: {type(prompts).__name__}: must be a text, messages or a list of those"
            )
        prompts = list(prompts)
        each = list(configs) if isinstance(configs, (list, tuple)) else [configs] * len(prompts)
        if len(each) != len(prompts):
            raise UsageError(f"gen_config: {len(each)} for {len(prompts)} prompts: give one, or one for each")
        pairs = zip(prompts, each, strict=True)
        return [self._ask(index, prompt, config, chat=chat) for index, (prompt, config) in enumerate(pairs)]

    def _ask(
        self, index: int, prompt: Any, config: Config | None, session_id: int | None = None, chat: bool = True
    ) -> Ask:
        number = next(self._numbers)
        request = self._prompts.request(
            f"pipeline-{number}",
            prompt,
            sampling(config, self.tokenizer),
            "" if session_id is None else f"session-{session_id}",
            chat,
        )
        wanted = config.output_logits if isinstance(config, GenerationConfig) else None
        if wanted not in (None, "all", "generation"):
            raise UsageError(f"output_logits = {wanted!r}: must be all, generation or None")
        return Ask(request, Response("", 0, 0, session_id or number, index=index), wanted)


def pipeline(
    model_path: str | os.PathLike[str],
    backend_config: EngineConfig | TurbomindEngineConfig | PytorchEngineConfig | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    log_level: str | None = None,
    **old: Any,
) -> Pipeline:
    """Load a model and return it as something to call.

    `model_path`: a Hugging Face directory, a hub id, or "demo" for the built-in model. Raises ModelError,
    DeviceError (with the memory that is missing), RemoteError or UsageError, all of them LmtopError, each
    with one line that says what is wrong. `log_level` is that of the logger "lmtop", which is told what the
    engine has to say. `model_name`, `tp`, `instance_num`, `max_log_len`, `trust_remote_code` and
    `speculative_config` of other releases are accepted.

    >>> from lmtop import pipeline
    >>> with pipeline("demo") as pipe:
    ...     print(pipe("What is a KV cache?").text)
    """
    if log_level is not None:
        try:
            log.setLevel(log_level.upper())
        except ValueError:
            raise UsageError(
                f"log_level = {log_level!r}: must be DEBUG, INFO, WARNING, ERROR or CRITICAL"
            ) from None
    examine_old(old)
    config = engine_config(model_path, backend_config)
    pipe = Pipeline(config, chat_template_config)
    wanted = getattr(backend_config, "model_format", None)
    if wanted in PACKED and not pipe.info.stored:
        warn_once(f"model_format = {wanted!r}: the weights are {pipe.info.weights} here")
    return pipe
