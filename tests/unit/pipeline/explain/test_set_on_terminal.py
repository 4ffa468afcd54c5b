"""What is printed of a set of queries."""

from typing import Any

import pytest

from pipeline.explain.set_on_terminal import _print_examples
from pipeline.explain.set_titles import Listed


@pytest.mark.parametrize("label", [None, "positive"])
@pytest.mark.parametrize("suggested", [None, "negative"])
def test_columns_that_no_row_has_are_not_shown(
    label: str | None, suggested: str | None, capsys: Any
) -> None:
    row = {"text": "a text", "text_b": None, "label": label, "score": 0.5, "unseen": 0.1}
    row |= {"in_top": 2, "suggested_label": suggested, "p_wrong": 0.7, "source_id": "row-1"}
    _print_examples(Listed("helpful", "examples", [row], 3), 100)
    heading, line = capsys.readouterr().out.splitlines()
    expected = ["text", *(["label"] if label else []), "mean", "±", "in", "top"]
    expected += ["doubts"] if suggested else []
    assert heading.split() == [*expected, "source_id"]
    assert line.startswith("a text")
    assert line.split()[-1] == "row-1"
    assert ("flagged (0.70 wrong): negative?" in line) == (suggested is not None)
