"""What the views of a run say of one of its queries."""

from typing import Any

from pipeline.errors import RunError
from storage.sql import quoted
from storage.views import fetch

Rows = list[dict[str, Any]]
COLUMNS = "source_id, text, text_b, coalesce(label_name, target::VARCHAR) AS label"


class StoredQuery:
    """A query of a run, found by its `query_id`, or else by its `source_id`."""

    def __init__(self, run: Any, name: str, top: int):
        """Looks it up in a `pipeline.open_run.OpenedRun`; `top` rows of each sign are wanted.

        Raises:
            RunError: there is no such query.
        """
        rows = dicts(
            run.sql(
                f"SELECT query_id, {COLUMNS} FROM queries WHERE query_id::VARCHAR = {quoted(name)} "
                f"OR source_id = {quoted(name)} "
                f"ORDER BY query_id::VARCHAR <> {quoted(name)}, query_id LIMIT 1"
            )
        )
        if not rows:
            some = fetch(run.sql("SELECT query_id, text FROM queries ORDER BY query_id LIMIT 1"))
            example = f"such as {some[0][0]} ({some[0][1][:40]!r})" if some else "but it has none"
            raise RunError(
                f"--query {name}: found no such query in the run, expected a query_id or source_id "
                f'{example}. Look it up: assay sql RUN "SELECT query_id, source_id, text FROM '
                'queries".'
            )
        self.facts, self.id = rows[0], int(rows[0]["query_id"])
        self._run, self._top = run, top

    def predictions(self) -> Rows:
        """What each of the run's models predicts."""
        if "predictions" not in self._run.views():
            return []
        return dicts(
            self._run.sql(
                "SELECT method, source, predicted_name AS predicted, confidence, margin, logits "
                f"FROM predictions WHERE role = 'query' AND id = {self.id} ORDER BY method, source"
            )
        )

    def answers(self) -> Rows:
        """What question-answering models take for the answer."""
        if "answers" not in self._run.views():
            return []
        return dicts(
            self._run.sql(
                "SELECT method, answer, char_start, char_end, probability FROM answers "
                f"WHERE role = 'query' AND id = {self.id} ORDER BY method"
            )
        )

    def scores(self, method: str) -> Rows:
        """The best scores of each sign by a pairwise method, with their parts where there are."""
        return dicts(
            self._run.sql(
                "SELECT a.example_id, a.score, c.global_score, c.local_score "
                "FROM attributions AS a "
                "LEFT JOIN components AS c USING (method, query_id, example_id) "
                f"WHERE {self._is_own(method)} AND score <> 0 QUALIFY row_number() OVER "
                f"(PARTITION BY sign(score) ORDER BY abs(score) DESC, example_id) <= {self._top}"
            )
        )

    def values(self) -> dict[str, Rows]:
        """The best values of each sign by each method that values single queries."""
        return {
            method: dicts(
                self._run.sql(
                    "SELECT semivalue, utility, example_id, value, stderr FROM shapley_by_query "
                    f"WHERE {self._is_own(method)} AND value <> 0 QUALIFY row_number() OVER ("
                    "PARTITION BY semivalue, utility, sign(value) ORDER BY abs(value) DESC, "
                    f"example_id) <= {self._top} ORDER BY ALL"
                )
            )
            for method in self._run.methods("shapley_by_query")
        }

    def support(self, method: str) -> tuple[Rows, Rows]:
        """Rows of its spectra, and the sizes of its support sets, which may be empty."""
        rows = self._run.sql(
            "SELECT contrast, rank, example_id, global_score, local_score FROM support "
            f"WHERE {self._is_own(method)} AND example_id IS NOT NULL"
        )
        sizes = self._run.sql(
            f"SELECT DISTINCT contrast, n_support FROM support WHERE {self._is_own(method)}"
        )
        return dicts(rows), dicts(sizes)

    def tokens(self, method: str) -> tuple[Rows, dict[int, str | None]]:
        """Its tokens with their scores by a token method, and names of the outputs explained."""
        rows = self._run.sql(f"SELECT * FROM tokens WHERE {self._is_own(method)}")
        names = self._run.sql(
            f"SELECT output, output_name FROM explained WHERE {self._is_own(method)}"
        )
        return dicts(rows), {row["output"]: row["output_name"] for row in dicts(names)}

    def _is_own(self, method: str) -> str:
        return f"method = {quoted(method)} AND query_id = {self.id}"


def dicts(rows: Any) -> Rows:
    """Rows of a relation by column."""
    return [dict(zip(rows.columns, row, strict=True)) for row in fetch(rows)]
