"""What a run's methods say of a text that is none of its queries: computed here, stored nowhere.

The plan is walked backwards from the method that is wanted. A stage that works row by row is asked
for the text as if it were one more shard of queries; what was made of the examples, or of all rows
at once, such as a fitted probe or a curvature, is read from the store; and what is fitted on all
rows says of one more query what follows from its own tables (`of_queries`). A method that looks at
pairs goes over the shards of the examples, and its parts are merged, as in the run itself.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus import CORPUS
from pipeline.errors import RunError
from pipeline.explain.stored_query import Rows
from pipeline.finished import Finished
from pipeline.node import CORPUS_INSTANCE
from pipeline.progress import Progress
from pipeline.task import Job, StoredInputs, gathered
from stages.model.threads import set_threads
from stages.reading.vectors import matrix_of
from stages.stage import AnswersQueries, Merges, Part, Role, Stage, Vectors
from storage.manifest import ShardRecord
from storage.schema import TableSpec
from storage.table import Store

Tables = Mapping[str, pa.Table]


class NewQuery:
    """A text in the place of a run's queries."""

    def __init__(
        self,
        finished: Finished,
        text: str,
        text_b: str | None = None,
        progress: Progress | None = None,
    ):
        """Looks at the text alone; `progress` hears how far it is.

        Raises:
            RunError: the corpus has texts of another form.
        """
        self._finished, self._progress = finished, progress or Progress()
        _check_form(finished, text, text_b)
        shards = finished.corpus("text").shards
        self.id = _free_id(shards)
        self.facts = {"query_id": None, "source_id": None, "text": text, "text_b": text_b}
        self.facts["label"] = None
        row = {"id": self.id, "role": "query", "text": text, "text_b": text_b}
        self._corpus = {
            name: pa.Table.from_pylist([row], schema=CORPUS[name].schema)
            for name in ("text", "label")
        }
        self._index = 1 + max((s.index for s in shards if s.role == "query"), default=-1)
        self._examples = [s.index for s in shards if s.role == "example"]
        self._found: dict[str, Tables] = {}

    def predictions(self) -> Rows:
        """What each of the run's models that predict row by row says of the text."""
        classes = self._finished.corpus("label").details["classes"]
        found = []
        for instance, stage in self._finished.stages.items():
            if stage.writes[0].name != "prediction" or not _is_by_query(stage):
                continue
            try:
                rows = self.rows(instance)["prediction"]
            except RunError as error:
                self._progress.say(f"left out: {error}")
                continue
            rows = rows.filter(pc.equal(rows["role"], "query"))
            (logits,) = matrix_of(rows["logits"]).astype(np.float64)
            row = {"method": instance, "source": rows["source"][0].as_py(), "predicted": None}
            row |= {"confidence": None, "margin": None, "logits": logits.tolist()}
            if len(logits) > 1:
                best, second = np.sort(logits)[::-1][:2]
                row |= {"predicted": classes[int(logits.argmax())], "margin": float(best - second)}
                row["confidence"] = float(1 / np.exp(logits - best).sum())
            found.append(row)
        return found

    def answers(self) -> Rows:
        """What question-answering models take for the answer."""
        kept = ("answer", "char_start", "char_end", "probability")
        found = []
        for instance, stage in self._finished.stages.items():
            if stage.writes[0].name == "answer":
                (row,) = self.rows(instance)["answer"].to_pylist()
                found.append({"method": instance, **{name: row[name] for name in kept}})
        return found

    def scores(self, method: str) -> Rows:
        """What a pairwise method says of the text and every example that it keeps."""
        rows: Rows = self.rows(method)["attribution"].to_pylist()
        return rows

    def values(self) -> dict[str, Rows]:
        """None: values of single queries are drawn anew where they are asked for."""
        return {}

    def support(self, method: str) -> tuple[Rows, Rows]:
        """Rows of the text's spectra, and the sizes of its support sets, which may be empty."""
        tables = self.rows(method)
        return tables["support"].to_pylist(), tables["support_size"].to_pylist()

    def tokens(self, method: str) -> tuple[Rows, dict[int, str | None]]:
        """Its tokens with their scores by a token method, and names of the outputs explained."""
        tables = self.rows(method)
        named = tables["explained"].to_pylist()
        rows: Rows = tables["token"].to_pylist()
        return rows, {row["output"]: row["output_name"] for row in named}

    def rows(self, instance: str) -> Tables:
        """What an instance writes for the text, by table, in key order; computed once.

        Raises:
            RunError: it works on all queries at once, or on what a text does not have.
            stages.stage.StageError: it cannot work on the text.
        """
        if instance not in self._found:
            stage = self._finished.stages[instance]
            if not _is_by_query(stage):
                raise RunError(
                    f"{instance}: found a stage that works on all queries at once, expected one "
                    "that a new text can be given to. Leave it out, or add the text to the queries."
                )
            inputs = self.inputs(instance)
            if not isinstance(stage, AnswersQueries):
                inputs.opened = stage.open(inputs)
            if isinstance(stage, Merges):
                self._found[instance] = self._over_examples(instance, stage, inputs)
            else:
                self._found[instance] = self._of_row(instance, stage, inputs)
        return self._found[instance]

    def inputs(self, instance: str, is_alone: bool = True) -> StoredInputs:
        """What an instance may see: the store's examples, and the text as the only query.

        All it needs to know of the text is computed first. With `is_alone=False` the features of
        the text come after those of the run's own queries, whose labels are the only ones.
        """
        fresh: dict[str, pa.Table] = {}
        for read, (writer, table) in self._finished.sources(instance).items():
            if writer == CORPUS_INSTANCE:
                row = self._of_corpus(instance, table)
                fresh |= {read: row} if is_alone else {}
            elif _is_by_query(self._finished.stages[writer]):
                fresh[read] = self.rows(writer)[table]
        job = self._finished.job(instance)
        if isinstance(job.stage, AnswersQueries):
            job = dataclasses.replace(job, inputs={**self._own(instance), **job.inputs})
        set_threads(job.threads)
        return _Inputs(job, self._finished.store, fresh, is_alone)

    def _own(self, instance: str) -> dict[str, tuple[str, str]]:
        """The tables that an instance wrote, by their names."""
        names = [spec.name for spec in self._finished.stages[instance].writes]
        return {name: (name, self._finished.manifest(instance, name).key) for name in names}

    def _of_corpus(self, instance: str, table: str) -> pa.Table:
        if table not in self._corpus:
            raise RunError(
                f"{instance}: found that it reads {table} of a row, expected what can be made of a "
                "text by the run's model. Add the text to the queries with its "
                f"{table}, and run again."
            )
        return self._corpus[table]

    def _of_row(self, instance: str, stage: Stage, inputs: StoredInputs) -> Tables:
        self._progress.stepped(instance, 0, 1)
        if isinstance(stage, AnswersQueries):
            batches = stage.of_queries(inputs)
        else:
            inputs.begin(Part("query", self._index))
            batches = stage.compute(inputs)
        found = _checked(stage.writes, batches)
        self._progress.stepped(instance, 1, 1)
        if not found[stage.writes[0].name].num_rows:
            seen = found.get("diagnostics")
            reasons = "" if seen is None else ", ".join(seen["status"].to_pylist())
            raise RunError(
                f"{instance}: found no row for the text{f' ({reasons})' if reasons else ''}, "
                "expected one: it has no target, which a regression's loss needs, or what was "
                "computed is not finite. Add it to the queries with its target, or give another "
                "text."
            )
        return found

    def _over_examples(self, instance: str, stage: Merges, inputs: StoredInputs) -> Tables:
        parts = []
        for done, index in enumerate(self._examples):
            self._progress.stepped(instance, done, len(self._examples))
            inputs.begin(Part("example", index))
            parts.append(_checked(stage.writes, stage.compute(inputs)))
        self._progress.stepped(instance, len(self._examples), len(self._examples))
        names = [spec.name for spec in stage.writes]
        return _checked(stage.writes, stage.merge({n: [part[n] for part in parts] for n in names}))


class _Inputs(StoredInputs):
    """`stages.stage.Inputs` with a text for the run's queries, or after them."""

    def __init__(self, job: Job, store: Store, fresh: Tables, is_alone: bool):
        super().__init__(job.inputs, job.stage.split, store)
        self._instance, self._fresh, self._is_alone = job.instance, fresh, is_alone

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """Rows of `name`; see `stages.stage.Inputs`."""
        own = self._fresh.get(name)
        if own is None:
            found = super().table(name, role)
            is_of_queries = {"role", "query_id"} & set(found.column_names)
            is_asked = self.part.role != "example" and role != "example"
            if self._is_alone and is_of_queries and is_asked:
                raise self._unknown(name)
            return found
        if "query_id" in own.column_names:
            return own
        is_by_shard = self._split == "shard"
        if self.part.role == "example" or role == "example":
            return self._stored(name, "example")
        if self.part.role == "query" and (is_by_shard or role == "query"):
            return own
        wanted: tuple[Role, ...] = ("example",) if role is None else ()
        wanted += () if self._is_alone else ("query",)
        parts = [*(self._stored(name, other) for other in wanted), own]
        # A table without rows does not know the length of its vectors.
        return pa.concat_tables([part for part in parts if part.num_rows] or [own])

    def vectors(self, name: str, role: Role) -> Vectors:
        """All vectors of `name` for one role; see `stages.stage.Inputs`."""
        if role == "example":
            return super().vectors(name, role)
        if name not in self._fresh:
            raise self._unknown(name)
        own = self._fresh[name]
        ids, matrix = own["id"].to_numpy(), matrix_of(own["vector"])
        if self._is_alone:
            return Vectors(ids, matrix)
        others = super().vectors(name, role)
        return Vectors(np.append(others.ids, ids), np.concatenate([others.matrix, matrix]))

    def _stored(self, name: str, role: Role) -> pa.Table:
        """Stored rows of one role, from a table that is not cut by roles, too."""
        found = super().table(name, role)
        return found.filter(pc.equal(found["role"], role))

    def _unknown(self, name: str) -> RunError:
        return RunError(
            f"{self._instance}: found that it reads {name}, which is computed for all queries "
            "at once, expected what can be computed for one. Leave the method out, or add the "
            "text to the queries."
        )


def _is_by_query(stage: Stage) -> bool:
    """Whether a stage can be asked for one more query than it was."""
    if isinstance(stage, Merges):
        # Merged tables are of the examples alone, unless they say something of queries.
        return any("query_id" in spec.schema.names for spec in stage.writes)
    return stage.split in ("shard", "query") or isinstance(stage, AnswersQueries)


def _free_id(shards: Sequence[ShardRecord]) -> int:
    """An id, not negative, that no row has."""
    smallest = [s.smallest_id for s in shards if s.smallest_id is not None]
    largest = [s.largest_id for s in shards if s.largest_id is not None]
    return min(smallest) - 1 if min(smallest) > 0 else max(largest) + 1


def _checked(specs: Sequence[TableSpec], batches: Iterable[tuple[str, pa.RecordBatch]]) -> Tables:
    tables = gathered(specs, batches)
    return {spec.name: spec.check(tables[spec.name]) for spec in specs}


def _check_form(finished: Finished, text: str, text_b: str | None) -> None:
    """Refuses a text that has another form than those of the corpus."""
    facts = finished.corpus("text").details
    form = str(facts.get("format", "text"))
    if not facts.get("has_text", True):
        raise RunError(
            "--text: found a corpus of vectors without text, expected one with text, as the run's "
            "model computes the features. Use --query."
        )
    if not text.strip():
        raise RunError("--text: found no text, expected some. Give the text to explain.")
    if form == "prompt_completion" and not text_b:
        raise RunError(
            "--text: found a prompt alone, expected its completion, too, as in the corpus. "
            'Add --text-b "…".'
        )
    if form == "messages":
        try:
            is_list = isinstance(json.loads(text), list)
        except ValueError:
            is_list = False
        if not is_list:
            raise RunError(
                "--text: found text that is no conversation, expected JSON as in the corpus, such "
                'as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]. '
                "Give the whole conversation."
            )
