"""A query of the run, whose predictions, scores and values are read from the run's views."""

from typing import Any

from pipeline import short_ids
from pipeline.copied import command
from pipeline.decisions import KEPT
from pipeline.errors import RunError
from pipeline.explain.query import SAID, Rows, said_of
from storage.catalog import fetch
from storage.sql import quoted

LISTED = '"SELECT query_id, source_id, text FROM queries"'
"""What lists the queries of a run, as a command takes it."""
COLUMNS = "source_id, text, text_b, coalesce(label_name, target::VARCHAR) AS label"
"""What is shown of an example or a query, selected from the view of that name."""


class StoredQuery:
    """A query of a run, found by its `query_id`, or else its `source_id`, or how one is shown."""

    def __init__(self, run: Any, name: str, top: int):
        """Looks up the query `name` in the run.

        Args:
            run: The `pipeline.open_run.OpenedRun`.
            name: The query's `query_id` or `source_id`, or what a screen shows of it.
            top: How many rows above and below 0 `scores` and `values` return.

        Raises:
            RunError: the run has no such query.
        """
        rows = dicts(
            run.sql(
                f"SELECT query_id, {COLUMNS} FROM queries WHERE query_id::VARCHAR = {quoted(name)} "
                f"OR source_id = {quoted(name)} "
                f"ORDER BY query_id::VARCHAR <> {quoted(name)}, query_id LIMIT 1"
            )
        )
        if not rows:
            rows = self._shown_as(run, name)
        if not rows:
            first = fetch(run.sql("SELECT source_id, text FROM queries ORDER BY query_id LIMIT 1"))
            example = f"such as {first[0][0]}" if first else "but it has none"
            if first and first[0][1]:
                example += f" ({first[0][1][:40]!r})"
            raise RunError(
                f"--query {name}: found no such query in the run, expected a source_id or query_id "
                f"{example}. Look it up: {command('sql', run.folder.path, LISTED)}"
            )
        self.facts, self.id = {**rows[0], **SAID}, int(rows[0]["query_id"])
        self._run, self._top = run, top
        self.facts.update(said_of(run, "query", [self.id]).get(self.id, SAID))

    @staticmethod
    def _shown_as(run: Any, name: str) -> Rows:
        """The one query whose id is shortened to `name` on a screen; nothing where none is.

        Raises:
            RunError: there are several.
        """
        alike = " OR ".join(
            short_ids.condition(c, name) for c in ("source_id", "query_id::VARCHAR")
        )
        rows = dicts(
            run.sql(
                f"SELECT query_id, {COLUMNS} FROM queries WHERE {alike} ORDER BY source_id LIMIT 4"
            )
        )
        if len(rows) > 1:
            several = ", ".join(str(row["source_id"]) for row in rows[:3])
            raise RunError(
                f"--query {name}: found several queries whose id may be meant ({several}"
                f"{' and more' if len(rows) > 3 else ''}), expected one. Write more of the id."
            )
        return rows

    def predictions(self) -> Rows:
        """The prediction of each of the run's models; see `Query.predictions`."""
        if "predictions" not in self._run.views():
            return []
        return dicts(
            self._run.sql(
                "SELECT method, source, predicted_name AS predicted, confidence, margin, logits "
                f"FROM predictions WHERE role = 'query' AND id = {self.id} ORDER BY method, source"
            )
        )

    def answers(self) -> Rows:
        """The answer of each question-answering model; see `Query.answers`."""
        if "answers" not in self._run.views():
            return []
        return dicts(
            self._run.sql(
                "SELECT method, answer, char_start, char_end, probability FROM answers "
                f"WHERE role = 'query' AND id = {self.id} ORDER BY method"
            )
        )

    def scores(self, method: str) -> Rows:
        """The `top` scores above and below 0 that a pairwise method gives for the query."""
        return dicts(
            self._run.sql(
                "SELECT a.example_id, a.score, c.global_score, c.local_score "
                "FROM attributions AS a "
                "LEFT JOIN components AS c USING (method, query_id, example_id) "
                f"WHERE {self._rows_of(method)} AND score <> 0 AND {KEPT} "
                "QUALIFY row_number() OVER (PARTITION BY sign(score) ORDER BY abs(score) DESC, "
                f"example_id) <= {self._top}"
            )
        )

    def values(self) -> dict[str, Rows]:
        """By method, the `top` stored values above and below 0 of examples for the query alone."""
        return {
            method: dicts(
                self._run.sql(
                    "SELECT semivalue, utility, example_id, value, stderr FROM shapley_by_query "
                    f"WHERE {self._rows_of(method)} AND value <> 0 QUALIFY row_number() OVER ("
                    "PARTITION BY semivalue, utility, sign(value) ORDER BY abs(value) DESC, "
                    f"example_id) <= {self._top} ORDER BY ALL"
                )
            )
            for method in self._run.methods("shapley_by_query")
        }

    def support(self, method: str) -> tuple[Rows, Rows]:
        """The support sets of the prediction and their sizes; see `Query.support`."""
        rows = self._run.sql(
            "SELECT contrast, rank, example_id, global_score, local_score FROM support "
            f"WHERE {self._rows_of(method)} AND example_id IS NOT NULL"
        )
        sizes = self._run.sql(
            f"SELECT DISTINCT contrast, n_support FROM support WHERE {self._rows_of(method)}"
        )
        return dicts(rows), dicts(sizes)

    def tokens(self, method: str) -> tuple[Rows, dict[int, str | None]]:
        """The query's tokens with scores, and names of outputs; see `Query.tokens`."""
        rows = self._run.sql(f"SELECT * FROM tokens WHERE {self._rows_of(method)}")
        names = self._run.sql(
            f"SELECT output, output_name FROM explained WHERE {self._rows_of(method)}"
        )
        return dicts(rows), {row["output"]: row["output_name"] for row in dicts(names)}

    def _rows_of(self, method: str) -> str:
        """The SQL condition for this query's rows of a method."""
        return f"method = {quoted(method)} AND query_id = {self.id}"


def dicts(rows: Any) -> Rows:
    """Rows of a DuckDB relation, each a mapping from column to value."""
    return [dict(zip(rows.columns, row, strict=True)) for row in fetch(rows)]
