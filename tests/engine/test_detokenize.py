"""Streaming text: complete characters only, equal to the whole decoding, nothing past a stop (engine check 20)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_files import byte_level, sentencepiece_model

from lmtop.engine.detokenize import PieceCodec, StopMatcher, StreamDecoder
from lmtop.engine.tokenizer import Tokenizer, load_tokenizer
from lmtop.engine.types import ModelError

EMOJI = "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈👍🏽"
text_with_emoji = st.text(
    st.sampled_from("ab <>é你好世界🙂👩\u200d👧🏽\ufe0f\u0301\n▁") | st.characters(codec="utf-8"), max_size=40
)


@pytest.fixture(scope="module")
def bytelevel(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(byte_level(tmp_path_factory.mktemp("bytes")), "Llama", 300)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    pytest.importorskip("sentencepiece")
    directory = sentencepiece_model(
        tmp_path_factory.mktemp("sp"),
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )
    return load_tokenizer(directory, "Llama", 1000)


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip)
    return [*map(decoder.push, ids), decoder.flush()]


# --- StreamDecoder -----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=text_with_emoji)
def test_check_20_stream_equals_text(bytelevel: Tokenizer, llama: Tokenizer, text: str) -> None:
    for tokenizer in (bytelevel, llama):
        pieces = stream(tokenizer, tokenizer.encode(text, add_special=True))
        expected = text.replace("▁", " ") if tokenizer is llama else text
        assert "".join(pieces) == expected
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_ids_equal_the_library(
    bytelevel: Tokenizer, llama: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    for tokenizer in (bytelevel, llama):
        # From a run of byte pieces that holds one bad byte the SentencePiece decoder keeps nothing: no byte pieces.
        first = 0 if tokenizer is bytelevel else 259
        ids = data.draw(st.lists(st.integers(first, tokenizer.vocab_size - 1), max_size=20))
        ours = "".join(stream(tokenizer, ids, skip))
        assert ours == tokenizer._backend.decode(ids, skip_special_tokens=skip)
        assert ours == tokenizer.decode(ids, skip)


def test_zwj_families_stream_whole_characters(bytelevel: Tokenizer, llama: Tokenizer) -> None:
    for tokenizer in (bytelevel, llama):
        pieces = stream(tokenizer, tokenizer.encode(EMOJI, add_special=False))
        assert "".join(pieces) == EMOJI
        assert len([piece for piece in pieces if piece]) > 5


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a30_limit_inside_a_character(bytelevel: Tokenizer, llama: Tokenizer, cut: int) -> None:
    for tokenizer in (bytelevel, llama):
        whole = tokenizer.encode("ok 🙂", add_special=False)
        pieces = stream(tokenizer, whole[: len(whole) - cut])
        assert "".join(pieces[:-1]) == "ok "
        assert pieces[-1] == "\ufffd"
        assert tokenizer.decode(whole[: len(whole) - cut]) == "ok \ufffd"


def test_leading_space_only_at_the_start(llama: Tokenizer) -> None:
    ids = llama.encode("hello world", add_special=False)
    assert "".join(stream(llama, ids)) == "hello world"
    assert "".join(stream(llama, [1, *ids])) == "hello world"
    assert "".join(stream(llama, [1, *ids], skip=False)) == "<s> hello world"
    assert llama.token_text(ids[0]).startswith(" ")
    assert llama.decode(llama.encode("  two", add_special=False)) == "  two"


def test_a_special_token_inside_a_character_is_skipped(bytelevel: Tokenizer) -> None:
    first, *rest = bytelevel.encode("🙂", add_special=False)
    assert stream(bytelevel, [first, 4, *rest]) == ["", "", "", "", "🙂", ""]


def test_unknown_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match=r"x: decoder WordPiece"):
        PieceCodec({"type": "WordPiece", "prefix": "##", "cleanup": True}, "x")
    with pytest.raises(ModelError, match=r"x: it has no decoder"):
        PieceCodec(None, "x")


def test_metaspace() -> None:
    codec = PieceCodec({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, "x")
    assert (codec.to_bytes("▁a▁b"), codec.strip_first) == (b" a b", True)
    never = PieceCodec({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}, "x")
    assert not never.strip_first


def test_push_costs_at_most_15_microseconds(bytelevel: Tokenizer, llama: Tokenizer) -> None:
    for tokenizer in (bytelevel, llama):
        ids = tokenizer.encode("The quick brown fox, 你好 🙂. " * 400, add_special=False)
        best = float("inf")
        for _ in range(5):
            decoder, matcher = StreamDecoder(tokenizer), StopMatcher(("\nUser:", "<|im_end|>"))
            start = time.thread_time()
            for token in ids:
                matcher.push(decoder.push(token))
            best = min(best, (time.thread_time() - start) / len(ids))
        assert best < 15e-6


# --- StopMatcher -------------------------------------------------------------------------------------------


def run(stops: tuple[str, ...], chunks: list[str], include: bool = False) -> tuple[str, bool]:
    matcher, text = StopMatcher(stops, include), ""
    for chunk in chunks:
        emitted, stopped = matcher.push(chunk)
        text += emitted
        if stopped:
            assert matcher.push("more") == ("", True)
            return text + matcher.flush(), True
    return text + matcher.flush(), False


def cut(stops: tuple[str, ...], text: str, include: bool) -> tuple[str, bool]:
    """The definition: read on until some stop string is complete; the longest of those that end there."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: end if include else min(starts)], True
    return text, False


@settings(max_examples=400, deadline=None)
@given(
    stops=st.lists(st.text("ab🙂你", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple),
    chunks=st.lists(st.text("ab🙂你", max_size=5), max_size=12),
    include=st.booleans(),
)
def test_check_20_stop_is_the_same_over_all_splits(
    stops: tuple[str, ...], chunks: list[str], include: bool
) -> None:
    text = "".join(chunks)
    expected = cut(stops, text, include)
    assert run(stops, chunks, include) == expected
    assert run(stops, list(text), include) == expected
    assert run(stops, [text], include) == expected


def test_check_20_stop_inside_multi_byte_tokens(bytelevel: Tokenizer) -> None:
    ids = bytelevel.encode("one🙂two你好three", add_special=False)
    for include, expected in ((False, "one🙂two"), (True, "one🙂two你好")):
        decoder, matcher = StreamDecoder(bytelevel), StopMatcher(("你好",), include)
        shown = ""
        for token in ids:
            text, stopped = matcher.push(decoder.push(token))
            shown += text
            if stopped:
                break
        assert stopped
        assert shown == expected


def test_possible_prefix_is_held_back_and_given_back() -> None:
    matcher = StopMatcher(("</end>",))
    assert matcher.push("text </en") == ("text ", False)
    assert matcher.push("d of it") == ("</end of it", False)
    assert matcher.push(" <") == (" ", False)
    assert matcher.flush() == "<"
    assert matcher.flush() == ""


def test_check_20_overlapping_stops() -> None:
    assert run(("END", "ENDING"), ["an ENDING"]) == ("an ", True)
    assert run(("ab", "b"), ["xab"]) == ("x", True)
    assert run(("abcd", "bc"), ["xabcd"]) == ("xa", True)
    assert run((), ["anything"]) == ("anything", False)


def test_a22_sixteen_long_stops_never_leak() -> None:
    stops = tuple("s" * 255 + chr(97 + i) for i in range(16))
    for end in ("a", "p"):
        assert run(stops, ["x", *("s" * 300), end, "tail"]) == ("x" + "s" * 45, True)
