"""Words against the examples of UAX 29 and words of many scripts, marked by hand."""

import pytest

from stages.reading.words import terms_of, words_of


@pytest.mark.parametrize(
    "marked",
    [
        "It's|a|well|-|made|film|,|isn\u2019t|it|?",
        # The figure 1 of UAX 29.
        "The|quick|(|“|brown|”|)|fox|can\u2019t|jump|32.3|feet|,|right|?",
        "e.g|.|u_v_1|a.b|5.00|%|#|tag|1,000",
        "फिल्म|अच्छी|थी|।",
        "क्\u200dष|नमस्ते",
        "தமிழ்|நல்ல",
        "cafe\u0301|naïve|à\u0301",
        "مُحَمَّد|كتاب",
        'ד"ר|שלום',
        "👩\u200d👩\u200d👧|was|👍🏽|🇩🇪|🇫🇷|❤\ufe0f",
        "カタカナ|と|ひ|ら|漢|字|東|京",
        "좋은|한국어",
        "ส|วั|ส|ดี",
        "İstanbul|ﬁlm|\uff11\uff12\uff13",
        "",
    ],
)
def test_words_in_all_scripts(marked: str) -> None:
    words = marked.split("|") if marked else []
    for between in (" ", " \u3000\n\t"):
        text = between.join(words)
        assert [text[start:end] for start, end in words_of(text)] == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("漢字かな", "漢 字 か な"),
        ("can't,won't", "can't , won't"),
        ("x\r\ny", "x y"),
        ("good😀film", "good 😀 film"),
    ],
)
def test_words_that_no_space_parts(text: str, words: str) -> None:
    assert [text[start:end] for start, end in words_of(text)] == words.split()


def test_terms_are_words_with_a_letter_or_digit_in_one_form() -> None:
    assert terms_of("The CAFE\u0301, 3.5 * 😀 … की") == ["the", "café", "3.5", "की"]
    assert terms_of("\u200b \n") == []
    assert terms_of("\u200ffilm\u200e d\u00ade\ufeff") == ["film", "de"]
    assert terms_of("\uff21 a\u0301\u0323") == terms_of("\uff41 \u1ea1\u0301")
