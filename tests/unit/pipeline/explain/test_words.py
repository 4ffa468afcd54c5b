"""Words and their scores, as a terminal and a page show them."""

import re
from typing import Any

from pipeline.explain.words import on_terminal, pieces, title, words_of
from pipeline.page.explanation import page

QUERY = {"text": "slowly <good>", "text_b": "no"}


def token(
    at: int, text: str, column: str | None, start: int | None, word: int | None, total: float
) -> dict[str, Any]:
    end = None if start is None else start + len(text)
    return {
        "token_index": at,
        "token": text,
        "text_column": column,
        "char_start": start,
        "char_end": end,
        "word_index": word,
        "word_score": total,
    }


ROWS = [
    token(5, "good", "text", 8, 2, -0.5),
    token(1, "slow", "text", 0, 0, 1.0),
    token(2, "ly", "text", 4, 0, 1.0),
    token(7, "no", "text_b", 0, 4, 0.25),
    token(9, " more", None, None, None, 0.02),
]


def test_tokens_of_a_word_are_one() -> None:
    words = words_of(ROWS, QUERY)
    assert [word["word"] for word in words] == ["slowly", "good", "no", " more"]
    assert [word["score"] for word in words] == [1.0, -0.5, 0.25, 0.02]
    assert words[0]["char_end"] == 6


def test_a_word_has_its_last_sign() -> None:
    """Some tokenizers drop accents and vowel signs, so that no token reaches to the end."""
    query = {"text": "thi की cafe\u0301 x", "text_b": None}
    rows = [token(1, "क", "text", 4, 1, 1.0), token(2, "cafe", "text", 7, 2, -1.0)]
    words = words_of(rows, query)
    assert [word["word"] for word in words] == ["की", "cafe\u0301"]
    found = list(pieces({"words": words}, query))
    assert found == [("thi ", None), ("की", 1.0), (" ", None), ("cafe\u0301", -1.0), (" x", None)]


def test_pieces_are_the_whole_text() -> None:
    entry = {"words": words_of(ROWS, QUERY)}
    found = list(pieces(entry, QUERY))
    assert "".join(text for text, _ in found) == "slowly <good> | no more"
    shares = {text: share for text, share in found if share}
    assert shares == {"slowly": 1.0, "good": -0.5, "no": 0.25, " more": 0.02}


def test_terminal_and_page_show_sign_and_strength() -> None:
    entry = {"words": words_of(ROWS, QUERY), "method": "ig", "output_name": "bad"}
    told = on_terminal(entry, QUERY)
    assert told.plain == (
        "slowly <good> | no more\nstrongest: slowly +1, good -0.5, no +0.25,  more +0.02"
    )
    styles = {told.plain[span.start : span.end]: str(span.style) for span in told.spans}
    assert styles["slowly"] == "white on rgb(22,120,70)"
    assert re.match(r"black on rgb\(2\d\d,150,145\)", styles["good"])
    assert " more" not in styles
    html = words_on_page(entry)
    assert "&lt;" in html
    assert '<span class="for-10" title="+1">slowly</span>' in html
    assert '<span class="against-5" title="-0.5">' in html
    assert title(entry) == "ig: words that speak for (+) or against (-) bad"


def test_nothing_to_show_is_the_plain_text() -> None:
    entry: dict[str, Any] = {"words": [], "method": "ig", "output_name": None}
    assert "".join(text for text, _ in pieces(entry, QUERY)) == "slowly <good> | no"
    assert "<span" not in words_on_page(entry)
    assert title(entry) == "ig: words that matter most for the model's output"


def test_a_score_of_zero_is_told() -> None:
    entry = {
        "words": [{**words_of(ROWS, QUERY)[0], "score": 0.0}],
        "method": "ig",
        "output_name": None,
    }
    assert '<span class="none" title="+0">slowly</span>' in words_on_page(entry)


def test_a_conversation_is_what_the_model_read() -> None:
    rows = [token(at, text, None, None, None, 0.5) for at, text in enumerate(["user", " hi"])]
    query = {"text": '[{"role":"user","content":"hi"}]', "text_b": None}
    entry = {"words": words_of(rows, query), "method": "ig", "output_name": None}
    assert on_terminal(entry, query).plain.startswith("user hi\n")


def words_on_page(entry: dict[str, Any]) -> str:
    """The part of a page that shows the words."""
    found = {
        "run_id": "r", "query": {**QUERY, "query_id": 1, "label": None}, "predictions": [],
        "answers": [], "methods": [], "values": [], "spectra": [], "tokens": [entry],
    }  # fmt: skip
    return page(found, {}).partition('<p class="words"')[2]


def test_control_characters_of_a_text_are_shown_and_never_sent() -> None:
    query = {"text": "a\x1b[2J \x07b\u202e", "text_b": None}
    rows = [token(1, "a\x1b[2J", "text", 0, 0, 1.0), token(2, "\x07b\u202e", "text", 6, 1, -1.0)]
    entry = {"words": words_of(rows, query), "method": "ig", "output_name": "bad"}
    told = on_terminal(entry, query).plain
    assert told.startswith("a␛[2J ␇b\\u202e\nstrongest: ")
    assert not {"\x1b", "\x07", "\u202e"} & set(told)
