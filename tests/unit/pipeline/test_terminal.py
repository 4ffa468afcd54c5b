"""What stands on a screen for texts that would rule it."""

import pytest

from pipeline.terminal import cell, show, table

HOSTILE = "a\x1b[2Jb\rc\nd\te\x07f\x9bg\u202eh\u2066i\x7fj"


def is_harmless(said: str) -> bool:
    return not any(
        ord(sign) < 32 or 0x7F <= ord(sign) < 0xA0 or sign in "\u202e\u2066" for sign in said
    )


def test_controls_of_a_text_are_shown_and_never_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cell("text", HOSTILE) == "a␛[2Jbc↵d␉e␇f\\x9bg\\u202eh\\u2066i␡j"
    show(table([HOSTILE], [[HOSTILE]]))
    show(HOSTILE)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 5  # A heading, the cell, two lines of the text, and the end.
    assert all(map(is_harmless, lines))


def test_a_plain_text_is_shown_as_it_is() -> None:
    plain = "naïve 文字 🙂 'quoted' [bold]"
    assert cell("text", plain) == plain
