from pathlib import Path

import pytest
from textual.app import App

from lmtop import themes
from lmtop.engine.types import UsageError


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(themes, "folder", lambda: tmp_path)
    return tmp_path


def test_the_built_in_themes_are_installed_and_textual_takes_them() -> None:
    assert themes.names() == ["dark", "light", "ansi", "contrast"]
    app: App[None] = App()
    for name in themes.names():
        theme = themes.load(name)
        app.register_theme(theme)
        app.theme = theme.name
        assert app.get_css_variables()["primary"]


def test_a_users_theme_loads_and_replaces_a_built_in_one(own: Path) -> None:
    (own / "mine.toml").write_text('dark = false\n[colors]\nprimary = "teal"\n')
    (own / "light.toml").write_text('[colors]\nprimary = "#010203"\n')
    assert "mine" in themes.names()
    assert themes.load("mine").dark is False
    assert themes.load("light").primary == "#010203"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[colors]\n", "primary"),
        ('[colors]\nprimary = "no colour"\n', "primary = 'no colour'"),
        ('[colors]\nprimary = "teal"\nprimry = "red"\n', "primry"),
        ("[colors]\nprimary = 3\n", "colors"),
        ('dark = "yes"\n[colors]\nprimary = "teal"\n', "true or false"),
        ("colours = 1\n", "colours"),
        ("[colors\n", "mine.toml"),
    ],
)
def test_a_bad_theme_is_one_line_that_names_file_and_key(own: Path, text: str, words: str) -> None:
    (own / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=r"mine\.toml") as caught:
        themes.load("mine")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "../dark", "/etc/passwd"])
def test_a_theme_that_does_not_exist_lists_those_that_do(name: str) -> None:
    with pytest.raises(UsageError, match="dark, light"):
        themes.load(name)
