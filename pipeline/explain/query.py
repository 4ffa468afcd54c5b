"""What an explanation asks of a query: the answers of one in the run, or of a new text."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

Rows = list[dict[str, Any]]
"""Rows of a table, each a mapping from column to value."""
SAID: Mapping[str, str | None] = {"prompt": None, "answer": None}
"""What a row of completions or preferences says as people read it; None of other rows."""
SAID_IN: Mapping[str, str] = {
    "completions": "SELECT id, role, prompt, answer FROM completions",
    "preferences": "SELECT id, role, prompt, trim(chosen) || ', not ' || trim(rejected) AS answer "
    "FROM preferences",
}
"""The statement that gives it, by the view that has it."""


def shown_text(row: Mapping[str, Any]) -> str:
    """The texts of a row on one line: of a completion its prompt and answer as people read them."""
    named = ("prompt", "answer") if row.get("answer") is not None else ("text", "text_b")
    return " | ".join(row[name] for name in named if row[name])


def said_in(run: Any) -> str | None:
    """The statement that gives what rows of `run` say; None where its texts are shown as stored."""
    return next((SAID_IN[view] for view in SAID_IN if view in run.views()), None)


def said_of(run: Any, role: str, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The keys of `SAID` of rows, by their ids; none of a corpus whose texts are shown as stored.

    `role` is "example" or "query".
    """
    id_list = ", ".join(map(str, sorted(ids)))
    said = said_in(run)
    if said is None or not id_list:
        return {}
    rows = run.sql(
        f"SELECT id, prompt, answer FROM ({said}) WHERE role = '{role}' AND id IN ({id_list})"
    ).fetchall()
    return {row_id: {"prompt": prompt, "answer": answer} for row_id, prompt, answer in rows}


class Query(Protocol):
    """A row whose prediction is explained: a `StoredQuery` of the run, or a `NewQuery`.

    A method is named by the stage instance that computes it, such as `tracin`.
    """

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its query_id, source_id, text, text_b, label, and the keys of `SAID`.

        A new text has no ids and no label.
        """

    @property
    def id(self) -> int:
        """Its `query_id`; of a new text an id that no row of the run has."""

    def predictions(self) -> Rows:
        """One row per model of the run.

        Columns: method, source, predicted (the class's name), confidence, margin, logits; of a
        regression, predicted, confidence and margin are None.
        """

    def answers(self) -> Rows:
        """One row per question-answering model: method, answer, its place and probability."""

    def scores(self, method: str) -> Rows:
        """The scores that a pairwise method gives to examples, for this query.

        Columns: example_id, score, global_score, local_score.

        Raises:
            RunError: the method cannot be computed for a new text.
        """

    def values(self) -> dict[str, Rows]:
        """By method: the stored values of examples for this query alone.

        Columns: semivalue, utility, example_id, value, stderr.
        """

    def support(self, method: str) -> tuple[Rows, Rows]:
        """The support sets of the query's prediction against each class, by a support stage.

        The first rows are the examples in them (contrast, rank, example_id, global_score,
        local_score), the second the size of each set (contrast, n_support), which may be 0.
        """

    def tokens(self, method: str) -> tuple[Rows, dict[int, str | None]]:
        """Rows of the view `tokens` by a token method, and the name of each explained output.

        Raises:
            RunError: the method cannot be computed for a new text.
        """
