"""What is said of chosen rows before they are used: how, queries among them, flags, and chance."""

from collections.abc import Mapping
from typing import Any

from pipeline.copied import command
from pipeline.decided import undecided

FLAGS = {
    "label_issues": ("is_label_issue", "labels"),
    "answer_issues": ("is_answer_issue", "answers"),
    "preference_issues": ("is_preference_issue", "orders of answers"),
}
"""By view the column that marks a row as probably wrong, and what is wrong with it."""


def warnings_about(run: Any, statement: str) -> list[str]:
    """Sentences about the rows that `statement` gives by example_id; none where nothing is found.

    Cost: the view `issues`, which reads all texts.

    Args:
        run: The opened run.
        statement: What `OpenedRun.select` chose by.
    """
    n_rows = _count(run, statement)
    of_queries = "SELECT example_id FROM issues WHERE issue IN ('also a query', 'near a query')"
    n_queries = _count(run, f"{of_queries} AND example_id IN ({_ids(statement)})")
    found = []
    if n_queries:
        found.append(
            f"Of the {n_rows:,} chosen rows {n_queries:,} {'stands' if n_queries == 1 else 'stand'}"
            " among the queries, too, word for word or nearly so: on these queries a model that is "
            "trained on them looks better than it is. The view issues lists such rows."
        )
    for view, (flag, what) in FLAGS.items():
        if view not in run.views():
            continue
        n_flagged = _count(run, _flagged(run, statement, view, flag))
        if n_flagged:
            found.append(
                f"Of the {n_rows:,} chosen rows {n_flagged:,} {'is' if n_flagged == 1 else 'are'} "
                f"flagged: {what} that are probably wrong. Decide about them first: "
                f"{command('flag', run.folder.path, '--review', 'review.csv')}"
            )
    return found


def how(by: str) -> str:
    """How rows were chosen, in words: by what, or at random."""
    return "at random" if by == "random" else f"by {by}"


def is_worse_than_random(expected: Mapping[str, Any]) -> bool:
    """Whether rows train worse than random ones: the 95 % interval over queries lies below 0.

    By a trial of half to twice as many rows that were not chosen by the values of a column, or by
    the forecast of a utility while no other lies above 0; `expected` is what the function of that
    name gives.
    """
    low, high = (
        [
            value
            for row in expected["rows"]
            if row["by"] not in ("all", "random")
            for name, value in row.items()
            if name.endswith(f"_over_random_{end}")
        ]
        for end in ("low", "high")
    )
    is_forecast = any(end < 0 for end in high) and not any(end > 0 for end in low)
    share = expected["n_rows"] / max(1, expected["n_examples"])
    trials = expected["trials"] if expected["per"] is None else []
    alike = [t for t in trials if t["keep"] / 2 <= share <= 2 * t["keep"]]
    return is_forecast or any(trial["gain_high"] < 0 for trial in alike)


def _ids(statement: str) -> str:
    return f"SELECT example_id FROM ({statement})"


def _count(run: Any, statement: str) -> int:
    ((n,),) = run.sql(f"SELECT count(DISTINCT example_id) FROM ({statement})").fetchall()
    return int(n)


def _flagged(run: Any, statement: str, view: str, flag: str) -> str:
    """The chosen rows that are flagged, and that no review has decided about."""
    return (
        f"SELECT example_id FROM {view} WHERE {flag} {undecided(run)} AND "
        f"example_id IN ({_ids(statement)})"
    )
