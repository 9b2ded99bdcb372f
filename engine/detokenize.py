"""From token ids to text, one token at a time: complete characters only, and never a character past a stop.

A token stands for a fixed run of bytes, whatever surrounds it; only a space at the very start of a text may be
the tokenizer's own and is dropped. So decoding is appending bytes to an incremental UTF-8 decoder: constant work
per token, and the pieces joined are the decoding of the whole.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from .types import ModelError


def _byte_alphabet() -> dict[int, str]:
    """Byte -> the printable character that stands for it in byte-level vocabularies (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceCodec:
    """What a tokenizer.json's `decoder` does to one token, as bytes. `strip_first`: a space that opens the text
    belongs to the tokenizer (SentencePiece's dummy prefix)."""

    def __init__(self, decoder: Mapping[str, Any] | None, name: str) -> None:
        """Raises ModelError for a decoder that no language model of the supported families has."""
        self.strip_first = False
        self._steps: list[Callable[[str], str]] = []
        self._byte_level = self._byte_fallback = False
        if decoder is None:
            raise ModelError(f"{name}: it has no decoder, so its tokens cannot be turned into text")
        for step in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
            self._add(step, name)

    def _add(self, step: Mapping[str, Any], name: str) -> None:
        kind = step["type"]
        if kind == "ByteLevel":
            self._byte_level = True
        elif kind == "ByteFallback":
            self._byte_fallback = True
        elif kind == "Metaspace":
            mark = step["replacement"]
            self._steps.append(lambda text: text.replace(mark, " "))
            self.strip_first = step.get("prepend_scheme", "always") != "never"
        elif kind == "Replace" and "String" in step["pattern"]:
            old, new = step["pattern"]["String"], step["content"]
            self._steps.append(lambda text: text.replace(old, new))
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0 and step["start"] <= 1:
            self.strip_first = step["start"] == 1
        elif kind != "Fuse":
            raise ModelError(f"{name}: decoder {kind} is not supported")

    def to_bytes(self, piece: str) -> bytes:
        """The UTF-8 bytes, possibly part of a character, that a token stands for."""
        if self._byte_level:
            try:
                return bytes(map(_CHAR_TO_BYTE.__getitem__, piece))
            except KeyError:  # an added token: plain text
                return piece.encode("utf-8", "replace")
        for step in self._steps:
            piece = step(piece)
        match = _BYTE_PIECE.fullmatch(piece) if self._byte_fallback else None
        return bytes([int(match[1], 16)]) if match else piece.encode("utf-8", "replace")


class TokenBytes(Protocol):
    """The part of a tokenizer that a decoder needs."""

    @property
    def strip_first(self) -> bool: ...
    @property
    def special_ids(self) -> Collection[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class StreamDecoder:
    """Text of a growing sequence of tokens. All `push` results and one `flush` joined are `Tokenizer.decode`."""

    def __init__(self, tokenizer: TokenBytes, skip_special_tokens: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skip = tokenizer.special_ids if skip_special_tokens else ()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strip_first

    def push(self, token_id: int) -> str:
        """The characters that this token completes; "" while one is still incomplete. Bytes that can never
        become a character give U+FFFD once that is certain."""
        if token_id in self._skip:
            return ""
        data = self._token_bytes(token_id)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The end of the text: one U+FFFD if a character stayed incomplete, else ""."""
        return self._utf8.decode(b"", True)


class StopMatcher:
    """Cuts a stream of text at the first stop string that completes.

    The stop whose last character comes first wins; of several ending there, the longest. This makes the result
    independent of how the text was split, and generation ends as early as it can. Text that may be the start of a
    stop is held back.
    """

    def __init__(self, stop_strings: Sequence[str], include_stop: bool = False) -> None:
        self._stops = tuple(stop for stop in stop_strings if stop)
        self._include = include_stop
        self._heads = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string has been reached). Nothing follows a stop."""
        if self.stopped or not self._stops:
            return ("" if self.stopped else text), self.stopped
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self._held, self.stopped = "", True
            return text[: end if self._include else start], True
        keep = self._open_prefix(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """What was held back, once no more text can come; "" after a stop."""
        text, self._held = self._held, ""
        return text

    def _open_prefix(self, text: str) -> int:
        """Where the longest ending of `text` that begins a stop string starts; len(text) when there is none."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._heads:
                tail = text[at:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return at
        return len(text)
