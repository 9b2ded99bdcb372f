"""Every file format encodes and decodes as the library it comes from; bad files are refused by name."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from support.tokenizer_files import (
    SPECIALS,
    byte_level,
    merged,
    sentencepiece_model,
    tiktoken_file,
    tiktoken_ranks,
)

from lmtop.engine.sentencepiece import SentencePieceModel, to_definition
from lmtop.engine.tokenizer import Tokenizer, load_tokenizer
from lmtop.engine.types import ModelError

SHARED = Path(__file__).parents[2].parent / "shared"
ALPHABET = "abc XYZ  \n\t.,;:!?0123456789éüß你好世界的是🙂<>|/\\_-=+"


def awkward(count: int, alphabet: str = ALPHABET) -> list[str]:
    rnd = random.Random(7)
    texts = [
        "",
        " ",
        "  two  spaces\n\ttab",
        "你好，世界！🙂",
        "a\0b",
        "ＡＢＣ①",
        "a\u200bb",
        " lead",
        "trail ",
        "\r\n",
    ]
    return texts + ["".join(rnd.choice(alphabet) for _ in range(rnd.randint(1, 60))) for _ in range(count)]


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


# --- SentencePiece -----------------------------------------------------------------------------------------


def assert_equals_sentencepiece(directory: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    spm = pytest.importorskip("sentencepiece")
    theirs = spm.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    for text in texts:
        ids = theirs.encode(text)
        assert tokenizer.encode(text, add_special=False) == ids, text
        if theirs.unk_id() not in ids:
            assert tokenizer.decode(ids) == theirs.decode(ids), text


def test_internlm2_equals_sentencepiece() -> None:
    directory = shared("tokenizers/internlm2")
    tokenizer = load_tokenizer(directory, "InternLM2", 92544)
    assert_equals_sentencepiece(directory, tokenizer, awkward(2000))
    assert tokenizer.prefix == (1,)
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>", add_special=True)[:2] == [1, 92543]
    assert tokenizer.token_text(92542) == "<|im_end|>"
    assert {92542, 92543} <= tokenizer.special_ids


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("plain_spaces", [True, False])
def test_trained_sentencepiece(
    tmp_path: Path, algorithm: str, dummy_prefix: bool, byte_fallback: bool, plain_spaces: bool
) -> None:
    pytest.importorskip("sentencepiece")
    directory = sentencepiece_model(
        tmp_path,
        model_type=algorithm,
        add_dummy_prefix=dummy_prefix,
        byte_fallback=byte_fallback,
        remove_extra_whitespaces=not plain_spaces,
        normalization_rule_name="identity" if plain_spaces else "nmt_nfkc",
    )
    tokenizer = load_tokenizer(directory, "Llama", 1000)
    assert_equals_sentencepiece(directory, tokenizer, awkward(250))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2})


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_user_defined_pieces(tmp_path: Path, dummy_prefix: bool) -> None:
    pytest.importorskip("sentencepiece")
    directory = sentencepiece_model(
        tmp_path,
        model_type="bpe",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=["<sep>", "\u2581\u2581", "\u2581\u2581\u2581\u2581", "new"],
    )
    tokenizer = load_tokenizer(directory, "Llama", 1000)
    rnd = random.Random(3)
    words = ["a", "ne", "new", " ", "  ", "<sep>", "ba\n", "<", "模"]
    mixed = ["".join(rnd.choices(words, k=12)) for _ in range(300)]
    texts = ["a<sep>b", "x    y", "newer new", " <sep> ", "a  b   c     d", *mixed]
    if (
        dummy_prefix
    ):  # in front of an added token we write no space, as Hugging Face does and templates expect
        texts = [text for text in texts if not text.startswith(("new", "<sep>", " "))]
    assert_equals_sentencepiece(directory, tokenizer, texts)


def test_merges_follow_the_scores_not_the_ids() -> None:
    pieces = [
        ("<unk>", 0.0, 2),
        ("a", -9.0, 1),
        ("b", -9.0, 1),
        ("c", -9.0, 1),
        ("ab", -5.0, 1),
        ("bc", -1.0, 1),
    ]
    definition = to_definition(SentencePieceModel(pieces, algorithm=2, dummy_prefix=False), "x")
    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    assert backend.encode("abcab").ids == [1, 5, 4]


def test_chatglm_prefix_and_specials(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    directory = sentencepiece_model(tmp_path, model_type="bpe", byte_fallback=True)
    pieces = load_tokenizer(directory, "Llama", 1000).vocab_size
    tokenizer = load_tokenizer(directory, "ChatGLM", 1000)
    assert tokenizer.prefix == (pieces + 1, pieces + 3)
    assert tokenizer.encode("[gMASK]sop", add_special=False) == [pieces + 1, pieces + 3]
    assert pieces + 3 not in tokenizer.encode("a soprano", add_special=False)


# --- tokenizer.json ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "rows"), [("tokenizers/phi3", "Phi-3", 32064), ("models/stories260k", "Llama", 512)]
)
def test_json_equals_transformers(name: str, family: str, rows: int) -> None:
    directory = shared(name)
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer rebuilds Llama classes from flags

    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer = load_tokenizer(directory, family, rows)
    for text in [*awkward(2000), "a<|end|>  b</s> c"]:
        assert tokenizer.encode(text, add_special=True) == theirs.encode(text), text
        ids = theirs.encode(text, add_special_tokens=False)
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids) == expected, text
    assert tokenizer.bos_id == theirs.bos_token_id
    assert theirs.eos_token_id in tokenizer.eos_ids


def test_byte_level_round_trip(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path), "Llama", 300)
    for text in awkward(200):
        assert tokenizer.decode(tokenizer.encode(text, add_special=True)) == text
    assert tokenizer.encode("hello<|im_end|>", add_special=False) == [268, 4]
    assert tokenizer.token_text(268) == "hello"
    assert tokenizer.token_text(7 + 0) == "!"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, {4}, 269)
    assert tokenizer.decode([10_000]) == ""


def test_bos_rule(tmp_path: Path) -> None:
    directory = byte_level(tmp_path)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for wanted, expected in ((None, ()), (True, (1,)), (False, ())):
        path.write_text(json.dumps(config | ({} if wanted is None else {"add_bos_token": wanted})))
        assert load_tokenizer(directory, "Llama", 300).prefix == expected
    frame = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    frame.append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor = {
        "type": "TemplateProcessing",
        "single": frame,
        "pair": [*frame, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
            "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
        },
    }
    byte_level(directory, post_processor=processor)
    tokenizer = load_tokenizer(directory, "Llama", 300)
    assert tokenizer.encode("a", add_special=True) == [1, *tokenizer.encode("a", add_special=False)]


def test_eos_is_the_union_of_all_files(tmp_path: Path) -> None:
    directory = byte_level(tmp_path)
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 10_000, True]}))
    assert load_tokenizer(directory, "Llama", 300).eos_ids == {2, 3, 4}


# --- tiktoken ----------------------------------------------------------------------------------------------

# The published patterns in Python's own terms: no \p classes in `re`, so letters are \w less digits.
_WORD = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:(?![\r\n])[^\w]|_)?[^\W\d_]+|DIGITS"
    r"| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+".replace("DIGITS", r"\d")
)
_WORD3 = re.compile(_WORD.pattern.replace(r"|\d|", r"|\d{1,3}|"))


def bpe(text: str, ranks: dict[bytes, int], words: re.Pattern[str]) -> list[int]:
    ids: list[int] = []
    for match in words.finditer(text):
        parts = [bytes([byte]) for byte in match[0].encode()]
        while True:
            pairs = [a + b for a, b in pairwise(parts) if a + b in ranks]
            if not pairs:
                break
            parts = merged(parts, min(pairs, key=ranks.__getitem__))
        ids += [ranks[part] for part in parts]
    return ids


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [("qwen.tiktoken", "QWen", _WORD), ("tokenizer.model", "Llama", _WORD3)],
)
def test_tiktoken(tmp_path: Path, name: str, family: str, words: re.Pattern[str]) -> None:
    ranks = tiktoken_ranks()
    tokenizer = load_tokenizer(tiktoken_file(tmp_path / name, ranks), family, 2000)
    for text in [*awkward(300), "it's we'll 12345", "cafe\u0301"]:
        normal = unicodedata.normalize("NFC", text) if family == "QWen" else text
        ids = tokenizer.encode(text, add_special=False)
        assert ids == bpe(normal, ranks, words), text
        assert tokenizer.decode(ids) == normal
    count = len(ranks)
    if family == "QWen":
        assert tokenizer.prefix == ()
        assert tokenizer.vocab_size == count + 208
        assert tokenizer.eos_ids == {count, count + 2}
        assert tokenizer.encode("<|im_start|><|extra_204|>", add_special=False) == [count + 1, count + 207]
    else:
        assert tokenizer.prefix == (count,)
        assert tokenizer.vocab_size == count + 256
        assert tokenizer.encode("<|eot_id|>", add_special=False) == [count + 9]


# --- M14 ---------------------------------------------------------------------------------------------------


def test_m14_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer: tokenizer\.json"):
        load_tokenizer(tmp_path, "Llama", 300)


def test_m14_merge_of_absent_tokens(tmp_path: Path) -> None:
    byte_level(tmp_path, merges=[["q", "zzz"]])
    with pytest.raises(ModelError, match=r"tokenizer\.json: .*zzz"):
        load_tokenizer(tmp_path, "Llama", 300)


def test_m14_two_tokens_with_one_id(tmp_path: Path) -> None:
    byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    definition = json.loads(path.read_text())
    definition["model"]["vocab"]["another"] = 268
    path.write_text(json.dumps(definition))
    with pytest.raises(ModelError, match=r"(hello|another).*one id, 268"):
        load_tokenizer(tmp_path, "Llama", 300)


def test_m14_two_added_tokens_with_one_id(tmp_path: Path) -> None:
    byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    definition = json.loads(path.read_text())
    definition["added_tokens"].append(definition["added_tokens"][4] | {"content": "<twin>"})
    path.write_text(json.dumps(definition))
    with pytest.raises(ModelError, match=r"one id, 4"):
        load_tokenizer(tmp_path, "Llama", 300)
    definition["added_tokens"] = definition["added_tokens"][:5]
    definition["added_tokens"][3]["content"] = "<other>"
    path.write_text(json.dumps(definition))
    with pytest.raises(ModelError, match=r"<other>.* id 3"):
        load_tokenizer(tmp_path, "Llama", 300)


def test_m14_token_without_a_row(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": 269}))
    assert load_tokenizer(tmp_path, "Llama", 270).encode("<extra>", add_special=False) == [269]
    with pytest.raises(ModelError, match=r"<extra>.* 269; the model has only 269 rows"):
        load_tokenizer(tmp_path, "Llama", 269)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"{", b"[]", b'{"model": 3}', b"version https://git-lfs.github"]
)
def test_m14_unreadable(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"^tokenizer\.json: "):
        load_tokenizer(tmp_path, "Llama", 300)


def test_bad_sentencepiece_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    pytest.importorskip("sentencepiece")
    whole = (sentencepiece_model(tmp_path, model_type="bpe") / "tokenizer.model").read_bytes()
    for data in (b"", b"\xff" * 40, whole[: len(whole) // 2], b"\x0a\x7f" + whole[:50], b"AAAA x\n"):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"^tokenizer\.model: "):
            load_tokenizer(tmp_path, "Llama", 1000)


def test_too_large(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ModelError, match=r"at most 64 MiB"):
        load_tokenizer(tmp_path, "Llama", 300)


def test_lone_surrogate_is_encoded_as_a_question_mark(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path), "Llama", 300)
    assert tokenizer.encode("a\ud800b", add_special=False) == tokenizer.encode("a?b", add_special=False)
    assert len(SPECIALS) == 7
