"""Request bodies. Strict: a field that is unknown, or that this server cannot honour, is refused, never ignored.

`null` means "not given", as in OpenAI's API. Bounds are the engine's own; lengths are in `limits`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from .limits import (
    BIAS_LIMIT,
    MESSAGES_LIMIT,
    N_LIMIT,
    PROMPTS_LIMIT,
    STOP_LENGTH,
    STOP_LIMIT,
    TOOLS_LIMIT,
    TOP_LOGPROBS_LIMIT,
)

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20)]
StopText = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.\-]+$")]
SessionId = Annotated[int, Field(ge=-1, lt=2**63)]


def _kind(value: Any) -> str:
    """Which form of a union was meant, so that errors speak of that one alone."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        if value and isinstance(value[0], int) and not isinstance(value[0], bool):
            return "ids"
        if value and isinstance(value[0], list):
            return "many_ids"
        return "many"
    return "object" if isinstance(value, dict) else "text"


class Body(BaseModel):
    """A JSON object with no fields but these."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Body):
    include_usage: bool | None = None


class Sampled(Body):
    """How tokens are drawn. What is not given comes from the model's generation_config.json, else from lmtop."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="0 or -1 is off")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    stop: (
        Annotated[
            Annotated[StopText, Tag("text")]
            | Annotated[list[StopText], Field(max_length=STOP_LIMIT), Tag("many")]
            | Annotated[Literal[False], Tag("off")],
            Discriminator(lambda value: "off" if value is False else _kind(value)),
        ]
        | None
    ) = Field(None, description="false: none, as LMDeploy 0.1's own bodies say")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_new_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: Literal[True] | None = Field(
        None, description="accepted for LMDeploy's clients; special tokens are decoded as they are"
    )
    include_stop_str_in_output: bool | None = None


class OpenAISampled(Sampled):
    """The fields that OpenAI's two endpoints share."""

    model: Annotated[str, Field(max_length=512)] | None = Field(None, description="default: the model served")
    n: Annotated[int, Field(ge=1, le=N_LIMIT)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=BIAS_LIMIT)] | None = Field(
        None, description="token id (as text) to what is added to its logit"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = Field(None, description="a label for the gauges")
    renew_session: Literal[False] | None = Field(None, description="of LMDeploy 0.1: only false is supported")

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> OpenAISampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream = true")
        return self


# --- chat --------------------------------------------------------------------------------------------------


class TextPart(Body):
    type: Literal["text"] = Field(description="the models served here read text only")
    text: str


class FunctionCall(Body):
    name: Name
    arguments: str = Field(description="a JSON object, as text")


class ToolCall(Body):
    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[list[TextPart], Field(max_length=1024), Tag("many")],
            Discriminator(_kind),
        ]
        | None
    ) = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=TOOLS_LIMIT)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _complete(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content: missing")
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content):
            raise ValueError("tool_calls, reasoning_content: only for role assistant")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("tool_call_id: missing for role tool")
        return self


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema", "regex_schema"]
    json_schema: JsonSchema | None = None
    regex_schema: Annotated[str, Field(max_length=4096)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        for name in ("json_schema", "regex_schema"):
            if (self.type == name) != (getattr(self, name) is not None):
                raise ValueError(f"{name}: goes with type {name}, and only with it")
        return self


class ChatRequest(OpenAISampled):
    messages: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES_LIMIT), Tag("many")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "many"),
    ] = Field(description="a conversation; or a text, which is continued without any chat template")
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_LIMIT)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS_LIMIT)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("text")] | Annotated[NamedTool, Tag("object")],
            Discriminator(_kind),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] | None = Field(
        None, description="variables of the model's chat template, such as enable_thinking"
    )
    enable_thinking: bool | None = None
    session_id: SessionId | None = Field(None, description="a label for the gauges")

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs = true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice: only with tools")
        if self.parallel_tool_calls is not None and not self.tools:
            raise ValueError("parallel_tool_calls: only with tools")
        if self.tools and isinstance(self.messages, str):
            raise ValueError("tools: need messages as a list")
        return self


# --- completions -------------------------------------------------------------------------------------------


class CompletionRequest(OpenAISampled):
    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("many")]
        | Annotated[TokenIds, Tag("ids")]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("many_ids")],
        Discriminator(_kind),
    ] = Field(description="one text or several, or their token ids")
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(None, description="default: 16")
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_LIMIT)] | None = None
    echo: Literal[False] | None = Field(None, description="only false is supported")
    best_of: Literal[1] | None = Field(None, description="only 1 is supported")
    suffix: None = None
    session_id: SessionId | None = None


# --- LMDeploy's own ----------------------------------------------------------------------------------------


class GenerateRequest(Sampled):
    """`/generate`, the newer schema."""

    prompt: str | None = None
    input_ids: TokenIds | None = None
    session_id: SessionId | None = None
    return_logprob: bool | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: bool | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateRequest:
        if (self.prompt is None) == (self.input_ids is None):
            raise ValueError("prompt: give exactly one of prompt and input_ids")
        return self


class InteractiveRequest(Sampled):
    """`/v1/chat/interactive`, and the older schema of `/generate`: the server keeps the conversation."""

    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES_LIMIT), Tag("many")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "many"),
    ]
    session_id: SessionId | None = Field(None, description="-1: a new one")
    interactive_mode: bool | None = Field(None, description="remember the conversation for the next call")
    stream: bool | None = None
    cancel: bool | None = Field(None, description="end what this session is generating")
    request_output_len: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    adapter_name: None = None


class EncodeRequest(Body):
    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("many")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "many"),
    ]
    do_preprocess: bool | None = Field(None, description="put the text into the chat template first")
    add_bos: bool | None = Field(None, description="default: true")


class AbortRequest(Body):
    request_id: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="the `id` of an answer"
    )
    session_id: SessionId | None = None
    abort_all: bool | None = None


class PplRequest(Body):
    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[TokenIds, Tag("ids")]
        | Annotated[list[str], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("many")]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("many_ids")],
        Discriminator(_kind),
    ]


class EmbeddingRequest(Body):
    model: str | None = None
    input: Any = None
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
