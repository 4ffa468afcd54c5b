"""What a report is about: a run, its task, and which of its results are shown."""

import functools
import shlex
from dataclasses import dataclass, replace
from typing import Any

from pipeline.decided import decisions
from pipeline.decisions import KEPT
from pipeline.errors import RunError
from pipeline.page.asked import Asked, Rows, ask
from pipeline.page.document import readable
from pipeline.yaml_text import read_yaml
from stages.corpus.columns import OWN
from storage.credentials import masked
from storage.names import near
from storage.sql import quoted

FEATURES = ("embeddings", "features", "hidden_states", "position_weighted")
"""Views whose vectors tell what is near, the one that is taken first."""
SPOKEN = {"completion": "completions", "preference": "preferences"}
"""Of a task, the view that has prompts as people read them."""
NOUNS = {
    "classification": ("label", "labels"),
    "regression": ("target", "targets"),
    "completion": ("answer", "answers"),
    "question_answering": ("question", "questions"),
    "preference": ("order", "orders of answers"),
}
VERDICTS = {
    "classification": ("label_issues", "is_label_issue", "suggested_label"),
    "completion": ("answer_issues", "is_answer_issue", "reason"),
    "preference": ("preference_issues", "is_preference_issue", "reason"),
}
"""Of a task, the view that judges rows, its column of flags, and that of what is said of a row."""
OF_TEXTS = ("answer_issues", "near_duplicates", "outliers", "preference_issues")
"""Views of examples that were computed without their labels."""


@dataclass(frozen=True)
class Instance:
    """A view, and the stage instance whose rows of it are shown; of several the first."""

    view: str
    method: str
    is_of_texts: bool = False
    """Whether rows that a review dropped are still in the table, as it is of the texts alone."""
    flag: str = ""
    """Of verdicts on texts, the column of flags."""
    held: tuple[int, ...] = ()
    """Rows whose texts a review holds for right, which the stage judges as before."""

    @property
    def rows(self) -> str:
        """The part of a statement that names these rows."""
        kept = f" AND {KEPT}" if self.is_of_texts else ""
        return f"{self._judged} WHERE method = {quoted(self.method)}{kept}"

    @property
    def _judged(self) -> str:
        """The view; rows that are held for right are neither flagged nor likely wrong."""
        if not self.held:
            return self.view
        return (
            f"(SELECT v.* REPLACE (v.{self.flag} AND h.example_id IS NULL AS {self.flag}, "
            f"CASE WHEN h.example_id IS NULL THEN v.p_wrong ELSE 0 END AS p_wrong) "
            f"FROM {self.view} AS v LEFT JOIN (SELECT unnest([{', '.join(map(str, self.held))}]) "
            "AS example_id) AS h USING (example_id))"
        )


class Subject:
    """A run whose report is written; questions to it are asked once."""

    def __init__(self, run: Any, review: str = "review.csv"):
        """Holds `run`, a `pipeline.open_run.OpenedRun`, and the path of its file of decisions."""
        self.run = run
        self.task = run.task()
        self.views = frozenset(run.views())
        self.config = read_yaml(run.record["config"], str(run.folder.config))
        self.has_texts = bool(run.facts("text")["has_text"])
        self.path = shlex.quote(str(run.folder.path))
        self.review = shlex.quote(review)

    def ask(self, statement: str) -> Asked:
        """The answer to a statement, which a page shows beside it."""
        return ask(self.run, statement)

    @functools.cached_property
    def n_examples(self) -> Asked:
        """How many rows the corpus has."""
        return self.ask("SELECT count(*) AS examples FROM tables.label WHERE role = 'example'")

    @functools.cached_property
    def n_queries(self) -> Asked:
        """How many queries there are."""
        return self.ask("SELECT count(*) AS queries FROM tables.label WHERE role = 'query'")

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        rows = self.ask("SELECT label_name FROM provenance.class ORDER BY label").rows
        return [str(row["label_name"]) for row in rows]

    @functools.cached_property
    def judged(self) -> Instance | None:
        """The instance that judged labels, answers or the order of answers."""
        if self.task not in VERDICTS:
            return None
        view, flag, _ = VERDICTS[self.task]
        found = self.instance(view)
        reviewed = decisions(self.run) if found is not None and found.is_of_texts else None
        if found is None or reviewed is None:
            return found
        rows = self.ask(
            f"SELECT example_id FROM ({reviewed}) WHERE decision <> 'drop' ORDER BY example_id"
        ).rows
        return replace(found, flag=flag, held=tuple(row["example_id"] for row in rows))

    @functools.cached_property
    def features(self) -> Instance | None:
        """The vectors that tell which examples are near each other."""
        found = (self.instance(view) for view in FEATURES)
        return next((instance for instance in found if instance is not None), None)

    @functools.cached_property
    def values(self) -> tuple[str, str] | None:
        """Method and utility of the values that are shown."""
        shown: tuple[str, str] | None = self.run.shown_values()
        return shown

    @property
    def flag(self) -> str:
        """The column of flags of what judged the rows."""
        return VERDICTS[self.task][1]

    def instance(self, view: str) -> Instance | None:
        """The instance of a view whose rows are shown; None where there is none."""
        methods = self.run.methods(view)
        return Instance(view, methods[0], view in OF_TEXTS) if methods else None

    def source(self, role: str) -> str:
        """The name of the source that examples (`corpus`) or `queries` were read from."""
        path = masked(str((self.config.get(role) or {}).get("path") or ""))
        return readable(path.rstrip("/").rpartition("/")[2] or path, 120)

    @property
    def query_text(self) -> tuple[str, str]:
        """A join onto `queries AS q`, and the text of a query in it as people read it."""
        view = SPOKEN.get(self.task)
        if view is None:
            return "", "concat_ws(' | ', q.text, q.text_b)"
        joined = f"LEFT JOIN {view} AS t ON t.id = q.query_id AND t.role = 'query'"
        return joined, "coalesce(t.prompt, '')"

    def column(self, name: str) -> str:
        """The column of the view `examples` that holds the column `name` of the source.

        A name that the view has a column of its own for, such as split, is stored under another.

        Raises:
            RunError: there is no such column.
        """
        columns = self.run.sql("FROM examples LIMIT 0").columns
        originals = self.run.facts("extra").get("columns", {}).get("example", [])
        stored = {column["name"]: column["stored"] for column in originals}
        found = stored.get(name)
        if found in columns and found not in OWN:
            return str(found)
        if name not in columns:
            raise RunError(
                f"--by {name}: found no such column{near(name, columns)}, expected one of "
                f"{', '.join(columns)}. Name one."
            )
        return name

    def doubts(self, ids: list[int]) -> dict[int, str]:
        """What examples among `ids` are flagged for: shown wherever they appear."""
        if self.judged is None or not ids:
            return {}
        _, flag, said = VERDICTS[self.task]
        rows = self.ask(
            f"SELECT example_id, {said} AS said FROM {self.judged.rows} AND {flag} "
            f"AND example_id IN ({', '.join(map(str, sorted(set(ids))))})"
        ).rows
        words = "flagged: {}" if said == "reason" else "flagged: {}?"
        return {row["example_id"]: words.format(row["said"]) for row in rows}

    def mark(self, rows: Rows) -> None:
        """Puts `flagged`, what an example is flagged for or None, into each of some rows."""
        doubts = self.doubts([row["example_id"] for row in rows])
        for row in rows:
            row["flagged"] = doubts.get(row["example_id"])


def flag(subject: Subject, rows: Rows) -> Rows:
    """The rows with `flagged`, what each example is flagged for, or None."""
    doubts = subject.doubts([row["example_id"] for row in rows])
    return [{**row, "flagged": doubts.get(row["example_id"])} for row in rows]
