"""Text to token ids and back: one runtime backend (`tokenizers`) for every file format a model can ship.

tokenizer.json is read as it is; a bare SentencePiece tokenizer.model and tiktoken vocabularies are converted.
Nothing is taken from `tokenizer_class`: what a directory's files contain decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from .detokenize import PieceCodec, StreamDecoder
from .hfconfig import shown
from .specials import FAMILY_BOS, FAMILY_EOS, SideFiles
from .types import UsageError
from .vocabulary import Source, check_ids, read_source

_SENTINEL = "\U0010fffd"  # a private character that stands for "some special token was here"


class Tokenizer:
    """Encodes and decodes. Immutable; any thread may use it.

    bos_id: None when the model has none. eos_ids: every id that ends a reply by the directory's files.
    special_ids: not part of the shown text. added: text -> id of all tokens found before the vocabulary's rules.
    vocab_size: highest id + 1. prefix: ids in front of raw text (the bos token, where the model wants it).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        name: str,
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        special_ids: Iterable[int] = (),
        prefix: Sequence[int] = (),
        named: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        state = backend.decoder
        self._codec = PieceCodec(None if state is None else json.loads(state.__getstate__()), name)
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        self._added_ids = frozenset(self.added.values())
        self.special_ids = frozenset(special_ids)
        self.prefix = tuple(prefix)
        self.named_tokens = dict(named or {})
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._bytes: list[bytes | None] = [None] * self.vocab_size

    @property
    def strip_first(self) -> bool:
        """Whether a space that opens a decoded text is dropped."""
        return self._codec.strip_first

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Ids of `text`, special tokens written in it included. `add_special` puts `prefix` in front; an end
        token is never added, since the text is to be continued."""
        ids: list[int] = self._backend.encode(_sound(text), add_special_tokens=False).ids
        return [*self.prefix, *ids] if add_special else ids

    def encode_marked(self, text: str, marks: Mapping[str, str]) -> list[int]:
        """Ids of a rendered prompt in which each character of `marks` stands for words that must not be read as
        a token (the text of a special token inside a user's message); `marks` maps it to those words.

        The text between two added tokens is encoded on its own by the backend. So stretches without a mark keep
        their ids, and a stretch with one is encoded again, mark replaced, by a backend that knows no added tokens.
        Raises UsageError if the vocabulary cannot spell the words otherwise.
        """
        text = _sound(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        if not marks:
            return list(encoding.ids)
        result: list[int] = []
        stretch: list[int] = []
        start = 0
        for token, (left, right) in zip(encoding.ids, encoding.offsets, strict=True):
            if token not in self._added_ids:
                stretch.append(token)
                continue
            result += self._stretch(text, start, left, stretch, marks)
            result.append(token)
            stretch, start = [], right
        return result + self._stretch(text, start, len(text), stretch, marks)

    def _stretch(
        self, text: str, start: int, end: int, ids: list[int], marks: Mapping[str, str]
    ) -> list[int]:
        part = text[start:end]
        if not any(mark in part for mark in marks):
            return ids
        for mark, words in marks.items():
            part = part.replace(mark, words)
        # What is not at the start of the whole text gets no prefix space: the sentinel stands for what precedes.
        encoding = self._literal.encode(part if start == 0 else _SENTINEL + part, add_special_tokens=False)
        result: list[int] = encoding.ids if start == 0 else encoding.ids[1:]
        if not self.special_ids.isdisjoint(result):
            words = next(iter(marks.values()))
            raise UsageError(
                f"a message contains {shown(words)!r}, which this model can only read as a command"
            )
        return result

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The same vocabulary without added tokens. Made when first needed: it takes as long as loading."""
        definition = json.loads(self._backend.to_str())
        model = definition["model"]
        hidden = {text: f"\ufdd0{index}" for text, index in self.added.items()}
        if isinstance(model["vocab"], list):
            model["vocab"] = [[hidden.get(text, text), score] for text, score in model["vocab"]]
        else:
            merges = model.get("merges", ())
            pairs = (merge if isinstance(merge, list) else merge.split(" ", 1) for merge in merges)
            hidden[model.get("unk_token") or ""] = model.get("unk_token") or ""
            for pair in pairs:  # a merge needs its parts and its result
                for text in (*pair, "".join(pair)):
                    hidden.pop(text, None)
            model["vocab"] = {hidden.get(text, text): index for text, index in model["vocab"].items()}
        definition["added_tokens"] = []
        definition["post_processor"] = None
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
        backend.add_special_tokens([tokenizers.AddedToken(_SENTINEL, normalized=False)])
        return backend

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, maybe part of a character; b"" for an id without a token."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        data = self._bytes[token_id]
        if data is None:
            piece = self._backend.id_to_token(token_id)
            data = b"" if piece is None else self._codec.to_bytes(piece)
            self._bytes[token_id] = data
        return data

    def token_text(self, token_id: int) -> str:
        """One token for display, its leading space kept; U+FFFD for parts of characters."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; what is not UTF-8 becomes U+FFFD."""
        decoder = StreamDecoder(self, skip_special_tokens)
        return "".join([*map(decoder.push, ids), decoder.flush()])


def _sound(text: str) -> str:
    """`text` without lone surrogates, which have no UTF-8 form."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# --- loading -----------------------------------------------------------------------------------------------


def load_tokenizer(directory: Path, family: str, vocab_rows: int) -> Tokenizer:
    """The tokenizer in `directory`. `family` is the name in families.py, `vocab_rows` the embedding's rows.

    Raises ModelError that names the file and the reason: none there, too large, unreadable, merges of absent
    tokens, two tokens with one id, a token whose id has no row.
    """
    family = family.casefold()
    side = SideFiles.read(directory)
    source = read_source(directory, family, side)
    backend, file = source.backend, source.file
    check_ids(backend, file, vocab_rows)

    def known(texts: Iterable[str | None]) -> list[int]:
        return [i for i in (backend.token_to_id(text) for text in texts if text) if i is not None]

    bos = known([side.named("bos_token"), FAMILY_BOS.get(family)]) + [
        i for i in (source.bos_id,) if i is not None
    ]
    eos = set(known([side.named("eos_token")]))
    if source.eos_id is not None:
        eos.add(source.eos_id)
    eos |= {i for i in side.ids("eos_token_id") if 0 <= i < vocab_rows}
    if file != "tokenizer.json":
        eos |= set(known(FAMILY_EOS.get(family, ())))
    flagged = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    bos_id = bos[0] if bos else None
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return Tokenizer(
        backend,
        file,
        bos_id=bos_id,
        eos_ids=eos,
        special_ids=flagged | set(known(side.special_texts())),
        prefix=_prefix(source, side, bos_id),
        named={name: text for name in names if (text := side.named(name) or _own_name(source, name))},
    )


def _own_name(source: Source, name: str) -> str | None:
    own = {"bos_token": source.bos_id, "eos_token": source.eos_id}.get(name)
    return None if own is None else source.backend.id_to_token(own)


def _prefix(source: Source, side: SideFiles, bos_id: int | None) -> tuple[int, ...]:
    """`add_bos_token` decides where it is given; else the format's own rule."""
    wanted = side.tokenizer_config.get("add_bos_token")
    bos = () if bos_id is None else (bos_id,)
    own = bos if source.prefix is None else source.prefix
    if not isinstance(wanted, bool):
        return own
    rest = tuple(i for i in own if i != bos_id)
    return bos + rest if wanted else rest
