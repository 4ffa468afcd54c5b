"""What is said on a terminal of flagged answers, of completions and of preferences."""

from collections.abc import Mapping
from typing import Any

from pipeline.copied import command
from pipeline.main_results import OTHER_ANSWER, OTHER_ORDER


def about_answers(run: str, reasons: Mapping[str, int], n: int) -> str:
    """How many answers are flagged, and why."""
    if not reasons:
        return (
            f"None of {n} answers is likelier bad than right; "
            f"{command('flag', run, '--top', '100')} lists the likeliest."
        )
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return (
        f"{of_all(sum(reasons.values()), n, 'answers')} flagged as probably bad: {told}. assay "
        f"select leaves them out; {command('flag', run)} lists them."
    )


def about_other_answers(run: str, count: int) -> str:
    """How many rows have a prompt that another row answers otherwise, and how to see them."""
    return (
        f"{count} rows have the prompt of another row and another answer: where a task has one "
        f"right answer, a person must decide. {_listed(run, OTHER_ANSWER)}"
    )


def about_other_orders(run: str, count: int) -> str:
    """How many pairs stand in the corpus the other way round, too, and how to see them."""
    return (
        f"{count} pairs stand there the other way round, too: one of both is wrong, or neither "
        f"answer is better. {_listed(run, OTHER_ORDER)}"
    )


def _listed(run: str, issue: str) -> str:
    statement = f"\"FROM issues WHERE issue = '{issue}'\""
    return f"{command('sql', run, statement)} lists them."


def about_orders(run: str, orders: Mapping[str, Any], n: int) -> str:
    """How many pairs are flagged, and how many are expected to be wrong."""
    expected = f"about {orders['share']:.0%} of all orders are expected to be wrong"
    if not orders["flagged"]:
        return (
            f"None of {n} pairs is likelier wrong than right; {expected}. "
            f"{command('flag', run, '--top', '100')} lists the likeliest."
        )
    return (
        f"{of_all(orders['flagged'], n, 'pairs')} flagged as probably the wrong way round; "
        f"{expected}. assay select leaves them out; {command('flag', run)} lists them."
    )


def of_all(count: int, n: int, what: str) -> str:
    """A count of a whole with its verb, such as `3 of 20 answers are`."""
    return f"{count} of {n} {what} {'is' if count == 1 else 'are'}"
