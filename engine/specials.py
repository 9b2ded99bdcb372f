"""Tokens beyond the vocabulary proper: what a model directory's side files say, and what some families leave unsaid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .hfconfig import CONFIG_CAP, INDEX_CAP, quoted, read_json, shown
from .types import ModelError


@dataclass(frozen=True, slots=True)
class AddedPiece:
    """A token that is found in text before the vocabulary's own rules apply. `special` ones are not shown."""

    id: int
    text: str
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class SideFiles:
    """The JSON files beside the vocabulary, {} where a file is missing. Raises ModelError for unreadable ones."""

    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens_map: Mapping[str, Any] = field(default_factory=dict)
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> SideFiles:
        def load(name: str, cap: int = INDEX_CAP) -> Mapping[str, Any]:
            path = directory / name
            return read_json(path, cap) if path.exists() else {}

        return cls(
            load("tokenizer_config.json"),
            load("special_tokens_map.json"),
            load("added_tokens.json"),
            load("config.json", CONFIG_CAP),
            load("generation_config.json", CONFIG_CAP),
        )

    def named(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token`, ...; a token is a string or an object with `content`."""
        for source in (self.tokenizer_config, self.special_tokens_map):
            text = _text_of(source.get(name))
            if text:
                return text
        return None

    def special_texts(self) -> Iterator[str]:
        """Every token that these files call special by name."""
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            text = self.named(name)
            if text:
                yield text
        for source in (self.tokenizer_config, self.special_tokens_map):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                extra = source.get(key)
                values = (
                    extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else ()
                )
                yield from filter(None, map(_text_of, values))

    def ids(self, key: str) -> Iterator[int]:
        """Token ids under `key` (an int or a list) of config.json and generation_config.json."""
        for source in (self.config, self.generation_config):
            value = source.get(key)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, int) and not isinstance(item, bool):
                    yield item

    def added(self) -> Iterator[AddedPiece]:
        """The tokens that tokenizer_config.json and added_tokens.json put at explicit ids."""
        named = set(self.special_texts())
        decoder = self.tokenizer_config.get("added_tokens_decoder")
        for key, value in decoder.items() if isinstance(decoder, dict) else ():
            text = _text_of(value)
            if not text or not key.isdecimal() or len(key) > 9:
                raise ModelError(
                    f"tokenizer_config.json: added_tokens_decoder: {shown(key)!r} is not a token"
                )
            flags = value if isinstance(value, dict) else {}
            special = bool(flags.get("special", False)) or text in named
            strips = (bool(flags.get(name, False)) for name in ("single_word", "lstrip", "rstrip"))
            yield AddedPiece(int(key), text, special, *strips)
        for text, index in self.added_tokens.items():
            if not isinstance(index, int) or isinstance(index, bool) or index < 0 or not text:
                raise ModelError(f"added_tokens.json: {shown(text)!r}: its id is {quoted(index)}")
            yield AddedPiece(index, text, special=text in named)


def _text_of(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


# --- what families define in code, not in files -------------------------------------------------------------

_INTERNLM2 = {  # SentencePiece piece -> the text that the family's templates write
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": "<|im_end|>",
    "[UNUSED_TOKEN_146]": "<|im_start|>",
}
_CHATGLM = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_LLAMA3 = (
    *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"),
    *(
        "finetune_right_pad_id",
        "step_id",
        "start_header_id",
        "end_header_id",
        "eom_id",
        "eot_id",
        "python_tag",
    ),
    *(f"reserved_special_token_{i}" for i in range(2, 247)),
)


def sentencepiece_specials(
    family: str, texts: Mapping[str, int], side: SideFiles, name: str
) -> Iterator[AddedPiece]:
    """Specials that the family's own tokenizer code adds to a SentencePiece vocabulary (text -> id)."""
    if family == "internlm2":
        for piece, text in _INTERNLM2.items():
            if piece in texts:
                yield AddedPiece(texts[piece], text)
    elif family == "chatglm":
        # The words sop and eop would be found inside "soprano" were they not taken as whole words only.
        third = "chatglm3" in name
        for offset, text in enumerate(_CHATGLM + (_CHATGLM3 if third else ())):
            yield AddedPiece(len(texts) + offset, text, single_word=text.isalpha())
    elif family == "baichuan":
        by_id = {index: text for text, index in texts.items()}
        for key in ("user_token_id", "assistant_token_id"):
            for index in side.ids(key):
                if index in by_id:
                    yield AddedPiece(index, by_id[index])


def tiktoken_specials(family: str, ranks: int) -> Iterator[AddedPiece]:
    """Specials behind a tiktoken vocabulary of `ranks` tokens: QWen v1's 208, Llama 3's 256."""
    names: tuple[str, ...] = ()
    if family == "qwen":
        names = ("endoftext", "im_start", "im_end", *(f"extra_{i}" for i in range(205)))
    elif family == "llama":
        names = _LLAMA3
    for offset, text in enumerate(names):
        yield AddedPiece(ranks + offset, f"<|{text}|>")


FAMILY_EOS = {  # end tokens of families whose files name none
    "qwen": ("<|endoftext|>", "<|im_end|>"),
    "llama": ("<|end_of_text|>", "<|eot_id|>"),
    "chatglm": ("<|endoftext|>",),
}
FAMILY_BOS = {"llama": "<|begin_of_text|>"}
# What raw text starts with, where that is not the bos token: ChatGLM2/3, then GLM-4.
FAMILY_PREFIX = {"chatglm": (("[gMASK]", "sop"), ("[gMASK]", "<sop>"))}
