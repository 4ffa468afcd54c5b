"""Budgets of tokens: how they are written."""

import pytest

from pipeline.budgets import is_in_tokens, tokens_of
from pipeline.errors import RunError


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("50000 tokens", 50_000),
        ("2M-tokens", 2_000_000),
        ("200k-tokens", 200_000),
        ("200K tokens", 200_000),
        ("1.5m tokens", 1_500_000),
        (" 50,000tokens ", 50_000),
        ("1_000 Tokens", 1_000),
    ],
)
def test_a_budget_is_written_as_people_do(written: str, tokens: int) -> None:
    assert is_in_tokens(written)
    assert tokens_of(written) == tokens


@pytest.mark.parametrize("written", ["tokens", "many tokens", "0 tokens", "-5 tokens", "_ tokens"])
def test_others_are_refused(written: str) -> None:
    with pytest.raises(RunError, match="expected a number such as '50000 tokens'"):
        tokens_of(written)


@pytest.mark.parametrize("written", ["20%", "500", 500, None])
def test_rows_are_no_tokens(written: str | int | None) -> None:
    assert not is_in_tokens(written)
