import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from lmtop.engine.text import one_line, visible

ANY = st.text(st.characters(exclude_categories=()), max_size=200)
ACTING = {"\x1b", "\x9b", "\r", "\x07", "\u202e", "\u2066", "\U000e0041", "\ufeff", "\u200b"}


@settings(deadline=None)
@given(ANY, st.integers(0, 200))
def test_the_result_does_not_depend_on_how_the_text_was_split(text: str, cut: int) -> None:
    assert visible(text[:cut]) + visible(text[cut:]) == visible(text)


@settings(deadline=None)
@given(ANY)
def test_a_second_pass_changes_nothing_and_no_control_survives(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    assert not ACTING & set(shown)


def test_a_hostile_title_is_one_harmless_line() -> None:
    assert one_line("a\x1b]0;x\x07\nb") == "a␛]0;x␇ b"
    assert len(one_line("x" * 500, 80)) == 80


def test_ordinary_text_is_left_alone() -> None:
    text = "naïve 你好 👩‍👩‍👧 [bold] def f():\n\treturn 1\n"
    assert visible(text) is text or visible(text) == text
