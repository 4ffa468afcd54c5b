"""A new text as a query: the run's stages compute its rows here, and nothing is stored.

The stages are walked backwards from the method that is wanted. A stage that works row by row
computes the text as if it were one more shard of queries; tables of the examples, or of all rows
at once, such as a fitted probe or a curvature, are read from the store; and a stage that was fitted
on all rows computes the row of one more query from its own tables (`of_queries`). A pairwise method
goes over the shards of the examples, and its partial results are merged, as in the run itself.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus import CORPUS
from pipeline.errors import RunError
from pipeline.explain.query import SAID, Rows
from pipeline.finished import Finished
from pipeline.node import CORPUS_INSTANCE
from pipeline.progress import Progress
from pipeline.task import Job, StoredInputs, gathered
from stages.capabilities import AnswersQueries, Merges
from stages.corpus.cells import is_broken, show
from stages.corpus.conversations import is_learned, read_conversation, said
from stages.model.answers import answer_of
from stages.model.threads import set_threads
from stages.reading.vectors import matrix_of
from stages.stage import Part, Role, Stage, Vectors
from storage.manifest import ShardRecord
from storage.schema import TableSpec
from storage.table import Store

Tables = Mapping[str, pa.Table]
"""Rows by the name of their table."""


class NewQuery:
    """A text in the place of a run's queries; see `Query` for what it answers."""

    def __init__(
        self,
        finished: Finished,
        text: str,
        text_b: str | None = None,
        progress: Progress | None = None,
        kept: dict[str, Any] | None = None,
    ):
        """Checks the text; nothing is computed before a method is asked for.

        Args:
            finished: The run whose stages compute the text's rows.
            text: The text to explain.
            text_b: Its second text, in a corpus of pairs.
            progress: Hears which stage is computed, and how far it is.
            kept: What stages opened, such as models, by instance, for the next text; filled here.

        Raises:
            RunError: the texts of the corpus have another form, such as conversations.
        """
        self._finished, self._progress = finished, progress or Progress()
        self._kept = {} if kept is None else kept
        text, text_b = _checked_form(finished, text, text_b)
        shards = finished.corpus("text").shards
        self.id = _free_id(shards)
        self.facts = {"query_id": None, "source_id": None, "text": text, "text_b": text_b}
        self.facts |= {"label": None, **SAID, **_said(finished, text, text_b)}
        row = {"id": self.id, "role": "query", "text": text, "text_b": text_b}
        self._corpus = {
            name: pa.Table.from_pylist([row], schema=CORPUS[name].schema)
            for name in ("text", "label")
        }
        self._index = 1 + max((s.index for s in shards if s.role == "query"), default=-1)
        self._examples = [s.index for s in shards if s.role == "example"]
        self._computed: dict[str, Tables] = {}

    def predictions(self) -> Rows:
        """The prediction of each model that can be given one more row; see `Query.predictions`."""
        classes = self._finished.corpus("label").details["classes"]
        predictions = []
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
            predictions.append(row)
        return predictions

    def answers(self) -> Rows:
        """The answer of each question-answering model; see `Query.answers`."""
        kept = ("answer", "char_start", "char_end", "probability")
        answers = []
        for instance, stage in self._finished.stages.items():
            if stage.writes[0].name == "answer":
                (row,) = self.rows(instance)["answer"].to_pylist()
                answers.append({"method": instance, **{name: row[name] for name in kept}})
        return answers

    def scores(self, method: str) -> Rows:
        """The scores that a pairwise method gives to the examples that it keeps for the text."""
        scored = self.rows(method)["attribution"]
        if (ids := self._kept_ids) is not None:
            scored = scored.filter(pc.is_in(scored["example_id"], ids))
        rows: Rows = scored.to_pylist()
        return rows

    @functools.cached_property
    def _kept_ids(self) -> pa.Array | None:
        """Ids of the examples that a review left; None where it dropped none."""
        text, label = map(self._finished.corpus, ("text", "label"))
        n_texts, n_labels = (
            sum(shard.rows for shard in table.shards if shard.role == "example")
            for table in (text, label)
        )
        if n_texts == n_labels:
            return None
        return self._finished.store.read_table(label, "example", ["id"])["id"].combine_chunks()

    def values(self) -> dict[str, Rows]:
        """An empty mapping: no value is stored for a new text (see `pipeline.explain.replay`)."""
        return {}

    def support(self, method: str) -> tuple[Rows, Rows]:
        """The support sets of the text's prediction and their sizes; see `Query.support`."""
        tables = self.rows(method)
        return tables["support"].to_pylist(), tables["support_size"].to_pylist()

    def tokens(self, method: str) -> tuple[Rows, dict[int, str | None]]:
        """The text's tokens with scores, and names of outputs; see `Query.tokens`."""
        tables = self.rows(method)
        outputs = tables["explained"].to_pylist()
        rows: Rows = tables["token"].to_pylist()
        return rows, {row["output"]: row["output_name"] for row in outputs}

    def rows(self, instance: str) -> Tables:
        """The rows that a stage instance computes for the text, in key order; computed once.

        Raises:
            RunError: the stage works on all queries at once, or reads what a text does not have.
            stages.stage.StageError: the stage cannot work on the text.
        """
        if instance not in self._computed:
            stage = self._finished.stages[instance]
            if not _is_by_query(stage):
                raise RunError(
                    f"{instance}: found a stage that works on all queries at once, expected one "
                    "that a new text can be given to. Leave it out, or add the text to the queries."
                )
            inputs = self.inputs(instance)
            if not isinstance(stage, AnswersQueries):
                inputs.opened = self._opened(instance, stage, inputs)
            if isinstance(stage, Merges):
                self._computed[instance] = self._over_examples(instance, stage, inputs)
            else:
                self._computed[instance] = self._of_row(instance, stage, inputs)
        return self._computed[instance]

    def _opened(self, instance: str, stage: Stage, inputs: StoredInputs) -> Any:
        """What a stage opens, which is kept where it is the same for every text."""
        if instance in self._kept:
            return self._kept[instance]
        opened = stage.open(inputs)
        if stage.split == "query" or "query" not in stage.opens:
            self._kept[instance] = opened
        return opened

    def inputs(self, instance: str, is_alone: bool = True) -> StoredInputs:
        """The inputs of a stage instance: the stored examples, and the text as the only query.

        The rows of the text in the tables that it reads are computed first. With `is_alone=False`
        the features of the text come after those of the run's own queries, and the only labels of
        queries are those of the run's.
        """
        of_text: dict[str, pa.Table] = {}
        for read, (writer, table) in self._finished.sources(instance).items():
            if writer == CORPUS_INSTANCE:
                row = self._of_corpus(instance, table)
                of_text |= {read: row} if is_alone else {}
            elif _is_by_query(self._finished.stages[writer]):
                of_text[read] = self.rows(writer)[table]
        job = self._finished.job(instance)
        if isinstance(job.stage, AnswersQueries):
            job = dataclasses.replace(job, inputs={**self._written(instance), **job.inputs})
        set_threads(job.threads)
        return _InputsWithText(job, self._finished.store, of_text, is_alone)

    def _written(self, instance: str) -> dict[str, tuple[str, str]]:
        """The tables that an instance wrote: table and manifest key, by the table's name."""
        names = [spec.name for spec in self._finished.stages[instance].writes]
        return {name: (name, self._finished.manifest(instance, name).key) for name in names}

    def _of_corpus(self, instance: str, table: str) -> pa.Table:
        """The text's row in a table of the corpus; raises where a text has none, as in `extra`."""
        if table not in self._corpus:
            raise RunError(
                f"{instance}: found that it reads {table} of a row, expected a table that "
                "the run's model can compute for a text. Add the text to the queries with its "
                f"{table}, and run again."
            )
        return self._corpus[table]

    def _of_row(self, instance: str, stage: Stage, inputs: StoredInputs) -> Tables:
        """The text's rows by a stage that works row by row; raises where there are none."""
        self._progress.stepped(instance, 0, 1)
        if isinstance(stage, AnswersQueries):
            batches = stage.of_queries(inputs)
        else:
            inputs.begin(Part("query", self._index))
            batches = stage.compute(inputs)
        tables = _checked(stage.writes, batches)
        self._progress.stepped(instance, 1, 1)
        # A method of pairs has no row where no example has a score, such as a word in common.
        table = stage.writes[0].name
        if table != "attribution" and not tables[table].num_rows:
            diagnostics = tables.get("diagnostics")
            reasons = "" if diagnostics is None else ", ".join(diagnostics["status"].to_pylist())
            raise RunError(
                f"{instance}: found no row for the text{f' ({reasons})' if reasons else ''}, "
                "expected one: it has no token that could have a score, no target, which a "
                "regression's loss needs, or what was computed is not finite. Add it to the "
                "queries with its target, or give another text."
            )
        return tables

    def _over_examples(self, instance: str, stage: Merges, inputs: StoredInputs) -> Tables:
        """The rows of a stage over all shards of examples, its partial results merged."""
        parts = []
        for done, index in enumerate(self._examples):
            self._progress.stepped(instance, done, len(self._examples))
            inputs.begin(Part("example", index))
            parts.append(_checked(stage.writes, stage.compute(inputs)))
        self._progress.stepped(instance, len(self._examples), len(self._examples))
        names = [spec.name for spec in stage.writes]
        return _checked(stage.writes, stage.merge({n: [part[n] for part in parts] for n in names}))


class _InputsWithText(StoredInputs):
    """`stages.stage.Inputs` with the text instead of the run's queries, or after them.

    `of_text` holds the text's rows, by the name under which the stage reads them.
    """

    def __init__(self, job: Job, store: Store, of_text: Tables, is_alone: bool):
        super().__init__(job.inputs, job.stage.split, store)
        self._instance, self._of_text, self._is_alone = job.instance, of_text, is_alone

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """Rows of `name`; see `stages.stage.Inputs`."""
        of_text = self._of_text.get(name)
        if of_text is None:
            stored = super().table(name, role)
            has_queries = {"role", "query_id"} & set(stored.column_names)
            wants_queries = self.part.role != "example" and role != "example"
            if self._is_alone and has_queries and wants_queries:
                raise self._unknown(name)
            return stored
        if "query_id" in of_text.column_names:
            return of_text
        is_by_shard = self._split == "shard"
        if self.part.role == "example" or role == "example":
            return self._stored(name, "example")
        if self.part.role == "query" and (is_by_shard or role == "query"):
            return of_text
        stored_roles: tuple[Role, ...] = ("example",) if role is None else ()
        stored_roles += () if self._is_alone else ("query",)
        tables = [*(self._stored(name, stored_role) for stored_role in stored_roles), of_text]
        # A table without rows does not know the length of its vectors.
        return pa.concat_tables([table for table in tables if table.num_rows] or [of_text])

    def vectors(self, name: str, role: Role) -> Vectors:
        """All vectors of `name` for one role; see `stages.stage.Inputs`."""
        if role == "example":
            return super().vectors(name, role)
        if name not in self._of_text:
            raise self._unknown(name)
        of_text = self._of_text[name]
        ids, matrix = of_text["id"].to_numpy(), matrix_of(of_text["vector"])
        if self._is_alone:
            return Vectors(ids, matrix)
        stored = super().vectors(name, role)
        return Vectors(np.append(stored.ids, ids), np.concatenate([stored.matrix, matrix]))

    def _stored(self, name: str, role: Role) -> pa.Table:
        """Stored rows of one role, also of a table whose shards hold both roles."""
        rows = super().table(name, role)
        return rows.filter(pc.equal(rows["role"], role))

    def _unknown(self, name: str) -> RunError:
        """The error that `name` has no row for the text."""
        return RunError(
            f"{self._instance}: found that it reads {name}, which is computed for all queries "
            "at once, expected a table that can be computed for one. Leave the method out, or add "
            "the text to the queries."
        )


def _is_by_query(stage: Stage) -> bool:
    """Whether a stage can compute the rows of one more query than the run has."""
    if isinstance(stage, Merges):
        # Merged tables have rows of the examples alone, unless they have a column of queries.
        return any("query_id" in spec.schema.names for spec in stage.writes)
    return stage.split in ("shard", "query") or isinstance(stage, AnswersQueries)


def _free_id(shards: Sequence[ShardRecord]) -> int:
    """An id from 0 that no row in the shards has."""
    smallest = [s.smallest_id for s in shards if s.smallest_id is not None]
    largest = [s.largest_id for s in shards if s.largest_id is not None]
    return min(smallest) - 1 if min(smallest) > 0 else max(largest) + 1


def _checked(specs: Sequence[TableSpec], batches: Iterable[tuple[str, pa.RecordBatch]]) -> Tables:
    tables = gathered(specs, batches)
    return {spec.name: spec.check(tables[spec.name]) for spec in specs}


def _said(finished: Finished, text: str, text_b: str | None) -> dict[str, str | None]:
    """Prompt and answer of a completion as people read them; nothing of another text."""
    form = str(finished.corpus("text").details.get("format", "text"))
    if form == "prompt_completion":
        return {"prompt": text, "answer": text_b}
    if form != "messages":
        return {}
    messages = json.loads(text)
    before = messages[: max(at for at, turn in enumerate(messages) if is_learned(turn))]
    lines = [f"{turn['role']}: {said(turn)}" for turn in before]
    alone = said(before[0]) if len(before) == 1 else "\n".join(lines)
    return {"prompt": alone, "answer": answer_of(text, text_b, form)}


def _checked_form(finished: Finished, text: str, text_b: str | None) -> tuple[str, str | None]:
    """The texts as a row has them; raises unless they have the form of the corpus's texts."""
    facts = finished.corpus("text").details
    form = str(facts.get("format", "text"))
    if not facts.get("has_text", True):
        raise RunError(
            "--text: found a corpus of vectors without text, expected one with text, as the run's "
            "model computes the features. Use --query."
        )
    if not text.strip():
        raise RunError("--text: found no text, expected some. Give the text to explain.")
    if is_broken(text + (text_b or "")):
        raise RunError(
            f"--text: found text that is not UTF-8 ({show(text + (text_b or ''))[:80]}), expected "
            "whole characters. Convert the text."
        )
    if form == "prompt_completion" and not text_b:
        raise RunError(
            "--text: found a prompt alone, expected its completion, too, as in the corpus. "
            'Add --text-b "…".'
        )
    if form == "messages":
        source = finished.run.queries or finished.run.corpus
        conversation = read_conversation(text, text_b, source.turns)
        if conversation.text is None:
            raise RunError(
                f"--text: found {conversation.reason}, expected a conversation in JSON as in the "
                'corpus, such as [{"role": "user", "content": "…"}, {"role": "assistant", '
                '"content": "…"}]. Give the whole conversation, with --text-b its tools, if any.'
            )
        return conversation.text, conversation.tools
    return text, text_b
