"""A finished run, opened in Python: SQL over its views, and the tables that commands print."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datalab import datalab
from pipeline.decided import decisions
from pipeline.decisions import OF_TASK, suspicious
from pipeline.errors import RunError
from pipeline.results import Answer, Rows, notebook_html
from pipeline.run_outputs import show, write, write_corpus, write_review
from pipeline.selection import PREFERRED_UTILITY, SHAPLEY, choose, expected
from storage.sql import quoted

if TYPE_CHECKING:  # `assay --help` imports this module, and should not pay for torch and DuckDB.
    from pipeline.folder import RunFolder
    from pipeline.progress import Progress
    from pipeline.settings import Run
    from storage.catalog_files import CatalogFiles
    from storage.manifest import Manifest


def open_run(path: str | Path, is_shut_in: bool = False) -> "OpenedRun":
    """The run in the folder `path`, read-only; reading never blocks a run that writes.

    SQL over an own run may join other files. With `is_shut_in`, and where the catalog is not this
    user's own (`RunFolder.has_own_catalog`), it reads the store alone.

    Raises:
        pipeline.errors.RunFolderError: the folder holds no run.
        storage.schema.MissingError: its catalog is not there.
    """
    from pipeline.folder import RunFolder

    return OpenedRun(RunFolder(Path(path).expanduser().resolve()), is_shut_in)


class OpenedRun:
    """A run opened for reading: its views, and the results of commands over them."""

    _repr_html_ = notebook_html
    datalab = datalab
    show = show
    write = write
    write_review = write_review
    write_corpus = write_corpus

    def __init__(self, folder: "RunFolder", is_shut_in: bool = False):
        """Opens the catalog of `folder` as it is now; later changes are not seen."""
        from storage import catalog
        from storage.read_only import Shut

        self.folder = folder
        self._catalog = catalog
        self.record = folder.read_record()
        self.store = folder.store(self.record)
        is_own = folder.has_own_catalog()
        self.connection = folder.open_catalog(self.store, self.record, is_own)
        if is_own and not self.store.is_local:
            self._files.serve()
        self.shut: Shut | None = None
        if is_shut_in or not is_own:
            self.shut = Shut(self.connection, [self.store.absolute_root])

    @functools.cached_property
    def _files(self) -> "CatalogFiles":
        """The files behind the views; listed when they are first asked for."""
        from storage.catalog_files import CatalogFiles

        return CatalogFiles(self.connection, self.store, self.folder.hashed)

    def __repr__(self) -> str:
        views = self.views()
        counts = [f"{len(self.sql(f'FROM {view}'))} {view}" for view in ("examples", "queries")]
        for method in self.methods("label_issues")[:1]:
            issues = f"label_issues WHERE is_label_issue AND method = {quoted(method)}"
            counts.append(f"{len(self.sql(f'FROM {issues}'))} labels flagged")
        stages = [instance for instance in self.record["tables"] if instance != "corpus"]
        return (
            f"Run {self.record['run_id']}: {', '.join(counts)}\n"
            f"stages   {', '.join(stages)}\n"
            f"views    {', '.join(views)}\n"
            f"catalog  {self.folder.catalog}"
        )

    def config(self) -> "Run":
        """The resolved configuration."""
        return self.folder.read_run()

    def views(self) -> list[str]:
        """Names of the views, those whose tables the run has."""
        return self._catalog.view_names(self.connection)

    def sql(self, statement: str) -> Rows:
        """The rows that `statement` gives over the run's views, as a DuckDB relation has them.

        Raises:
            storage.schema.StorageError: DuckDB refuses the statement.
            storage.schema.FileError: a file that it reads is damaged (`storage.catalog_files`).
        """
        self.check(statement)
        return Rows(self._catalog.query(self.connection, statement))

    def check(self, statement: str, **hashed: Any) -> None:
        """Raises FileError where a file that a statement reads is damaged."""
        self._files.check(self._files.tables_read(statement), **hashed)

    def decided(self, statement: str) -> Rows:
        """The rows of a statement that something is decided by: all files are hashed."""
        self.check(statement, most_bytes=None)
        return Rows(self._catalog.query(self.connection, statement))

    def files(self, view: str, method: str | None = None) -> list[str]:
        """The Parquet files that the rows of a view lie in, as absolute paths or URLs, in order.

        For readers of many files, such as `ray.data.read_parquet`, Daft and `polars.scan_parquet`.
        Their columns are those of the table, with all rows of both roles: `method` and `run_id`,
        which are one value each, are in no file. They are immutable, and shared by the runs over
        a store.

        Args:
            view: A view that shows the rows of a single table as they are, such as `ntk` or
                `attributions`; or `tables.NAME` for a table, as in SQL.
            method: The stage instance, when several wrote the table.

        Raises:
            storage.schema.StorageError: there is no such view, or its rows are computed and lie in
                no file; the message names the tables that it is computed from.
            RunError: several instances wrote the table, and `method` names none.
        """
        from storage.view_files import files_of, table_behind

        table = table_behind(self.connection, view)
        writers = (
            f'SELECT instance AS method FROM provenance.manifest WHERE "table" = {quoted(table)}'
        )
        instance = self.choice(f"({writers})", "method", method)
        self._files.check([table])
        return files_of(self.connection, self.store, table, instance)

    def require(
        self, view: str, stage: str, works_on: str | None = "classification", fields: str = "{}"
    ) -> None:
        """Raises unless `view` has rows, naming the stage to add, with these fields.

        Raises:
            RunError: the view has no rows, or the corpus has another task than `works_on`.
        """
        task = self.task()
        if works_on is not None and task != works_on:
            raise RunError(
                f"{self.folder.path}: found a corpus with task: {task}, expected {works_on}, "
                f"as results of {stage} are asked for. {OF_TASK[task]}"
            )
        rows = "" if view not in self.views() else f"FROM {SHAPLEY if view == 'shapley' else view}"
        if rows and self.sql(f"{rows} LIMIT 1").fetchall():
            return
        if self.record["tables"].get(stage):
            raise RunError(
                f"{self.folder.path}: found no results of {stage} yet, expected a run that came to "
                f"its end. Go on with `assay run {self.folder.config}`."
            )
        raise RunError(
            f"{self.folder.path}: found no view {view}, expected the results of a stage such as "
            f"{stage}. Add `{stage}: {fields}` under `stages:` and run again."
        )

    def task(self) -> str:
        """The `task` of the corpus (`stages.stage.CorpusTask`)."""
        return str(self.facts("label").get("task", "classification"))

    def flag(
        self,
        top: int | None = None,
        method: str | None = None,
        precision: float | None = None,
        is_all: bool = False,
    ) -> Rows:
        """Examples whose label, answer or order of answers is suspicious, the worst first.

        Columns: example_id, source_id, text (and text_b for pairs), given_label, suggested_label,
        label_score (in [0, 1], low = suspicious), p_wrong, is_label_issue, method, and true_label
        with true_label_name, the label before a wrong one was planted. Of completions and
        preferences: example_id, source_id, prompt, answer (or chosen and rejected), reason,
        p_wrong, is_answer_issue (or is_preference_issue), method.

        Args:
            top: How many of the lowest scores, flagged or not; by default all that are flagged.
            method: The stage instance, when the run has several.
            precision: As many of the lowest scores as have this part of wrong labels, 0 to 1, by
                the mean of their `p_wrong`; give this or `top`.
            is_all: Also rows that a review has decided about, with a column `decision`.

        Raises:
            RunError: both `top` and `precision` are given, or it is not between 0 and 1.
        """
        reviewed = decisions(self)
        return self.decided(suspicious(self, top, method, precision, reviewed, is_all))

    def select(
        self,
        keep: str | int | None = None,
        drop: str | int | None = None,
        by: str | None = None,
        utility: str | None = None,
        method: str | None = None,
        per_class: bool = True,
        quota: Mapping[str, str | int] | None = None,
        soft: float | None = None,
        keep_flagged: bool = False,
        per: str | None = None,
    ) -> Rows:
        """Examples to train on, the best first.

        Columns: example_id, source_id, text (and text_b for pairs), label, label_name, value (above
        0 helps), rank; with `soft` also weight. Of a regression target stands for the label; of
        completions there are prompt and answer, of preferences prompt, chosen and rejected.

        The same share of each class is kept, those with the largest values of it: a mean utility
        is raised most by the class that its queries lack, so the best rows of all together may be
        of one class. Rows without a class are one together.

        Args:
            keep: How many to keep: a number of rows, a share such as `"20%"`, or as many of the
                first as have no more tokens than `"50000 tokens"`.
            drop: How many of the least valuable to leave out.
            by: `coreset` (the default where the run has one; the value is the gain), `shapley` or
                `label_score`; of completions `query_relevance` (the default where there is one; the
                value is the similarity) or `answer_issues`; of preferences `middle` (the default),
                `margin`, `influence` or `preference_issues`, see `pipeline.pair_selection`. Or
                `random`. Nothing is forecast here: see `expected`, by which `assay select` takes
                random rows where those of the default would do worse.
            utility: The utility whose values count; by default cross-entropy, or the only one.
            method: The stage instance, when the run has several.
            per_class: Whether values are compared within classes, or all together.
            quota: How many of each class to keep, by its name; of others none. Give one of `keep`,
                `drop`, `quota` and `soft`.
            soft: All rows with a sampling weight, of mean 1 in every class; the first row of a
                class has exp(2 / soft) times the weight of its last.
            keep_flagged: Of completions and preferences, whether flagged rows and near duplicates
                are kept, too.
            per: A column of the source whose values stand for classes, such as where rows are from.

        Raises:
            RunError: none or several of the four are given, or the run lacks the values.
        """
        given = (keep, drop, by, utility, method, per_class, quota, soft, keep_flagged, per)
        chosen = choose(self, *given)
        return Rows(self.decided(chosen.statement).relation, (chosen, given))

    def expected(self, progress: "Progress | None" = None, **asked: Any) -> Answer:
        """What training on the rows of `select(**asked)` is expected to give, as plain values.

        Against random rows and all rows, by the surrogate, on queries that had no say in the
        choice; with the shares of the classes. See `pipeline.selection.expected`.
        """
        from pipeline.on_terminal import print_expected

        stepped = progress.stepped if progress is not None else None
        found = expected(self, choose(self, **asked), stepped)
        return Answer(found, lambda values, is_json: print_expected(values))

    def explain(
        self,
        query: str | int | None = None,
        text: str | None = None,
        text_b: str | None = None,
        methods: Sequence[str] = (),
        top: int = 5,
        progress: "Progress | None" = None,
        queries: "str | Path | Sequence[str | int] | None" = None,
        remove: int = 20,
        prompt: str | None = None,
        new_tokens: int = 64,
        kept: dict[str, Any] | None = None,
    ) -> Answer:
        """The examples and words behind a prediction, by every method, as plain values.

        With `queries`, a file or a list of ids, what causes these predictions together: see
        `pipeline.explain.failing.explain_set`. Of one, see `pipeline.explain.explanation.explain`.

        Args:
            query: A query of the run, by query_id or source_id; give this, `text` or `prompt`.
            text: A text that the run does not have, whose rows the run's own model and stages
                compute; nothing is stored, and the predicted class takes the place of a label.
            text_b: Its second text, in a corpus of pairs.
            methods: Pairwise methods, by default all; or one such as freeshap, whose stored rounds
                are drawn again for this query alone.
            top: How many examples above 0, and how many below.
            progress: Hears how far the work is, and what long work will cost.
            queries: Several queries, in place of one or of a text.
            remove: With `queries`: how many examples the forecast leaves out.
            prompt: A prompt; the run's language model writes its answer, which is explained.
            new_tokens: Tokens of that answer at most.
            kept: A dict for what is opened, such as models: the next text or prompt that is given
                it finds them there. By default nothing is kept.
        """
        from pipeline.explain.explanation import explain
        from pipeline.explain.failing import explain_set
        from pipeline.explain.on_terminal import print_explanation
        from pipeline.explain.set_on_terminal import print_set
        from pipeline.progress import Progress

        heard = progress or Progress()
        if queries is not None:
            alone = (query, text, text_b, prompt)
            found = explain_set(self, queries, methods, top, remove, heard, alone)
            return Answer(found, functools.partial(print_set, top=top))
        found = explain(self, query, text, text_b, methods, top, heard, prompt, new_tokens, kept)
        return Answer(found, functools.partial(print_explanation, top=top))

    def write_rows(self, rows: Any, path: str | Path) -> int:
        """Writes `rows` as they are to `path`; returns how many."""
        return self._catalog.export(self.connection, rows.sql_query(), Path(path), self.shut)

    def to_arrow(self, statement: str) -> Any:
        """The rows of a statement as an Arrow table."""
        return self._catalog.to_arrow(self._catalog.query(self.connection, statement))

    def corpus_manifests(self) -> dict[str, "Manifest"]:
        """Manifests of the tables of the corpus, by table name."""
        keys = self.sql(
            "SELECT \"table\", manifest FROM provenance.manifest WHERE stage = 'ingest'"
        ).fetchall()
        return {table: self.store.read_manifest(table, key) for table, key in keys}

    def facts(self, table: str) -> Any:
        """The facts that ingestion recorded about a table of the corpus, such as `text`."""
        of = f"stage = 'ingest' AND \"table\" = {quoted(table)}"
        return json.loads(self.sql(f"SELECT details FROM runs WHERE {of}").fetchall()[0][0])

    def methods(self, view: str) -> list[str]:
        """The stage instances that have rows in `view`."""
        if view not in self.views():
            return []
        rows = self.sql(f"SELECT DISTINCT method FROM {view} ORDER BY 1").fetchall()
        return [str(name) for (name,) in rows]

    def shown_values(self) -> tuple[str, str] | None:
        """Method and utility of the Shapley values to show; None where the run has none.

        Cross-entropy where the run has it: after 100 permutations of 2,000 SST-2 rows nine values
        in ten have a sign beyond doubt, against one in thirteen for accuracy, which moves in steps.
        """
        if "shapley" not in self.views():
            return None
        rows = self.sql(
            f"FROM (SELECT DISTINCT method, utility FROM {SHAPLEY}) "
            f"ORDER BY utility <> {quoted(PREFERRED_UTILITY)}, method, utility LIMIT 1"
        ).fetchall()
        return rows[0] if rows else None

    def choice(
        self, view: str, column: str, requested: str | None, preferred: str | None = None
    ) -> str:
        """The value of `column` to use: `requested`, or else `preferred`, or the only one.

        Raises:
            RunError: the view lacks the requested value, or has several and none is requested.
        """
        rows = self.sql(f"SELECT DISTINCT {column} FROM {view} AS v ORDER BY 1").fetchall()
        present = [str(row[0]) for row in rows]
        if requested is not None and requested in present:
            return requested
        if requested is None and present and (len(present) == 1 or preferred in present):
            return preferred if preferred in present else present[0]
        raise RunError(
            f"found {f'--{column} {requested}' if requested else f'no --{column}'}, expected one "
            f"of {', '.join(present)}. Name one with --{column}."
        )
