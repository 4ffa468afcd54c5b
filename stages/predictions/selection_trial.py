"""What fine-tuning on the chosen rows gives: short real trainings, measured on held-out queries.

| `trained_on` | the set of rows |
|---|---|
| `nothing` | none: the model as it is |
| `chosen` | what `select` keeps, as `by` says |
| `random` | random rows with as many tokens in all |
| `all` | all rows |

All trainings begin with the same weights and take the same `steps`. **No query judges a choice
that it had a say in**: the queries are divided into parts, and for each part rows are chosen by the
other queries and the model trained on them is measured on the part alone. So each choice is made by
fewer queries than `select` has. Rows whose answers are flagged and near duplicates of others are
not chosen among, as in `select`; random rows and all rows are taken as they are.

Of preferences a training lowers the loss of DPO, with the model as it is for the reference
(`stages.model.pair_tuning`), and queries are judged by that loss and by the margin of their
rewards. Without a training every loss is log 2 and every margin 0.

A training of so few steps says which set to prefer for a training of so few steps; with more, sets
of better answers gain on sets that are merely alike. [ours]
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from stages.model.fine_tuning import FineTuning
from stages.model.precision import Precision
from stages.model.short_training import ShortTraining
from stages.model.size import network_size
from stages.model.spec import Lora, ModelSpec, RunsModel, Trained
from stages.model.training import Learner
from stages.ranking.middle import by_middle
from stages.ranking.turns import relevance
from stages.reading.drawn import is_drawn
from stages.reading.left_out import left_out
from stages.reading.query_groups import query_groups
from stages.reading.trial_rows import SELECTION_TRIAL, trial_rows
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Size, Split, Stage, Work
from stages.tables import TRIAL_MARGIN
from storage.schema import TableSpec

NOTHING, CHOSEN, ALL, RANDOM = "nothing", "chosen", "all", "random"
By = Literal[
    "query_relevance", "answer_issues", "margin", "middle", "influence", "preference_issues"
]
OF_ANSWERS: tuple[By, ...] = ("query_relevance", "answer_issues")
"""What completions are chosen by; preferences by the others."""


class Opened(NamedTuple):
    """The model, and the rows with an answer of which a token is read: examples, then queries."""

    learner: Learner
    lengths: Int64[np.ndarray, " rows"]
    """As in `Readable`."""
    example_ids: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]


@dataclass(frozen=True)
class SelectionTrial(RunsModel, Stage):
    """Losses of the queries after short trainings on different sets of rows.

    A round is one training. Memory of a task: the model with a gradient and two numbers of Adam for
    every trained weight, the activations of `token_budget` tokens, the tokens of `examples` rows.
    """

    model: ModelSpec
    """The language model, head: completion; its `train` concerns gradients alone."""
    train: Trained = field(default_factory=lambda: Trained(lora=Lora()))
    """The weights that are trained: LoRA adapters of all linear layers, or `last_blocks`, or
    `layers`. A trained `adapter` of the model is trained on instead."""
    by: By | None = None
    """What rows are chosen by. Completions: turns of the queries by the cosine of `features`
    (`query_relevance`, the default), or the probability that an answer is right (`answer_issues`).
    Preferences: the nearest to the middle of the `margin` (the default), of the `influence` on the
    queries, or of both (`middle`), or the probability that an order is right
    (`preference_issues`). Queries have a say in relevance and influence alone."""
    keep: float = 0.2
    """Share of the examples that is chosen."""
    examples: int = 20_000
    """Examples that are chosen among at most; of more a part, drawn by a hash of their ids."""
    features: str = "position_weighted"
    """The feature table behind `query_relevance`."""
    per: str | None = None
    """A column of the queries whose values take turns, as in `query_relevance`."""
    issues: str | None = "answer_issues"
    """Instance of `answer_issues` whose flagged answers are left out, of preferences by default
    `preference_issues` with its flagged orders; null leaves out none."""
    margins: str = "answer_margin"
    """Instance of `answer_margin` behind `margin` and `middle`."""
    influence: str | None = None
    """Instance with influences of all pairs on all queries behind `influence` and `middle`, such as
    `tracin` with top_k: null."""
    duplicates: str | None = "near_duplicates"
    """Instance of `near_duplicates`, of whose clusters one row is left; null leaves all."""
    steps: int = 50
    """Gradient steps of a training."""
    batch_size: int = 8
    """Rows of a step."""
    learning_rate: float = 5e-4
    """Largest learning rate, reached after a tenth of the steps; then it falls to 0."""
    beta: float = 0.1
    """Of preferences, the strength with which DPO holds to the reference."""
    parts: int = 2
    """Parts of the queries."""
    draws: int = 2
    """Random sets of rows; more can be added later."""
    random_seed: int = 0
    """Seed of the parts, the random rows and the batches."""
    token_budget: int = 1024
    """Padded tokens per pass; changes the last bits of a loss, hence part of the key."""
    precision: Precision = "float32"
    """`bfloat16` trains in mixed precision, where the device has it; losses are read in float32."""

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "round"

    def __post_init__(self) -> None:
        """Refuses fields that nothing can be chosen or trained with.

        Raises:
            ConfigError: a field is out of range, or does not go with `by`.
        """
        counts = (self.steps, self.batch_size, self.draws, self.token_budget, self.examples)
        if min(counts) < 1 or self.parts < 2 or not 0 < self.keep < 1 or self.random_seed < 0:
            raise ConfigError(
                f"selection_trial: found steps, batch_size, draws, token_budget, examples: "
                f"{list(counts)}, parts: {self.parts}, keep: {self.keep:g}, expected at least 1, "
                "parts of at least 2 and a share between 0 and 1. Correct them."
            )
        if self.by in ("answer_issues", "preference_issues") and self.issues is None:
            raise ConfigError(
                f"selection_trial: found by: {self.by} with issues: null, expected the instance "
                "whose probabilities rows are chosen by. Name it."
            )
        if self.per and self.by not in (None, "query_relevance"):
            raise ConfigError(
                f"selection_trial: found per: {self.per} with by: {self.by}, expected it with by: "
                "query_relevance, whose queries take turns. Leave one of them out."
            )
        if (self.by in ("middle", "influence")) != (self.influence is not None):
            raise ConfigError(
                f"selection_trial: found by: {self.by} with influence: {self.influence}, expected "
                "an instance for by: middle and by: influence, and none otherwise. Name one such "
                "as tracin with top_k: null, or choose by margin."
            )
        self._training()

    def sized(self, size: Size) -> "SelectionTrial":
        """With what the rows of the corpus's task are chosen by."""
        is_of_pairs = size.task == "preference"
        own = "preference_issues" if is_of_pairs else "answer_issues"
        return replace(
            self,
            by=self.by or ("margin" if is_of_pairs else "query_relevance"),
            issues=own if self.issues == "answer_issues" else self.issues,
        )

    @property
    def _is_of_pairs(self) -> bool:
        return self.by not in (None, *OF_ANSWERS)

    def _training(self) -> ShortTraining:
        how = FineTuning(
            batch_size=self.batch_size, learning_rate=self.learning_rate, weight_decay=0.0
        )
        beta = self.beta if self._is_of_pairs else None
        return ShortTraining(self.steps, how, self.token_budget, beta, self.precision)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The one whose rows are chosen so."""
        if self.by is None:
            return ("completion", "preference")
        return ("preference",) if self._is_of_pairs else ("completion",)

    @property
    def outside_key(self) -> frozenset[str]:
        """What changes no row of a round: the number of random sets, and gradients' weights.

        And what is about pairs, of completions.
        """
        of_pairs = set() if self._is_of_pairs else {"margins", "influence", "beta"}
        # Trials of before have neither field.
        usual = {"precision"} if self.precision == "float32" else set()
        usual |= set() if self.per else {"per"}
        always = {"draws", "model.train", "model.reduction", "model.dtype"}
        return frozenset(always | of_pairs | usual)

    @property
    def seed(self) -> int:
        """The seed of parts, random rows and batches."""
        return self.random_seed

    @property
    def _n_parts(self) -> int:
        """Trainings on chosen rows: one where no query has a say."""
        has_say = self.by in (None, "query_relevance") or self.influence is not None
        return self.parts if has_say else 1

    @property
    def n_rounds(self) -> int:
        """No training, those on chosen rows, on all rows, and on random ones."""
        return 2 + self._n_parts + self.draws

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts, and what rows are chosen by."""
        by = self.by or "query_relevance"
        chosen = {"query_relevance": (self.features,), "margin": (self.margins,)}.get(by, ())
        chosen = (self.margins,) if by == "middle" else chosen
        others = (self.influence, self.issues, self.duplicates)
        columns = ("extra",) if self.per else ()
        return ("text", *chosen, *columns, *(name for name in others if name))

    @property
    def least_queries(self) -> int:
        """One for each part."""
        return self.parts

    @property
    def query_column(self) -> str | None:
        """The one that names groups."""
        return self.per

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses influences of some pairs alone.

        Raises:
            ConfigError: the instance keeps the largest ones.
        """
        top_k = None if self.influence is None else getattr(writers[self.influence], "top_k", 0)
        if top_k is not None:
            raise ConfigError(
                f"{self.influence}: found top_k: {top_k}, expected null, so that there are "
                "influences of all pairs on all queries. Set it there."
            )

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per training and query that it is measured on."""
        return (SELECTION_TRIAL, TRIAL_MARGIN) if self._is_of_pairs else (SELECTION_TRIAL,)

    def open(self, inputs: Inputs) -> Opened:
        """The untrained model and the tokens of all rows.

        Raises:
            DataError: there are too few queries.
        """
        ids = np.concatenate([t["id"].to_numpy() for t in inputs.by_shard("text", "example")])
        drawn = pa.array(ids[is_drawn(ids, self.examples)])
        few = [t.filter(pc.is_in(t["id"], drawn)) for t in inputs.by_shard("text", "example")]
        texts = [t.sort_by("id") for t in (pa.concat_tables(few), inputs.table("text", "query"))]
        text = pa.concat_tables(texts)
        is_query = np.arange(text.num_rows) >= texts[0].num_rows
        found = self._training().read(inputs, self.model, self.train, text)
        ids, is_read = text["id"].to_numpy(), found.is_read
        query_ids = ids[is_read & is_query]
        if len(query_ids) < self.parts:
            raise DataError(
                f"selection_trial: found {len(query_ids)} queries with an answer of which a token "
                f"is read, expected at least {self.parts}, one for each part. Name more queries, "
                "or raise max_length."
            )
        return Opened(found.learner, found.lengths, ids[is_read & ~is_query], query_ids)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Counts of rows and of trained weights."""
        opened: Opened = inputs.opened
        return {
            "n_examples": len(opened.example_ids),
            "n_queries": len(opened.query_ids),
            "n_trained": sum(weights.numel() for weights in opened.learner.start),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """The losses after the training of one round."""
        opened: Opened = inputs.opened
        n = len(opened.example_ids)
        judging = np.arange(len(opened.query_ids))
        at, rows = inputs.part.index - 1, np.zeros(0, np.int64)
        if at < 0:
            trained_on, draw = NOTHING, 0
        elif at < self._n_parts:
            trained_on, draw = CHOSEN, at
            rows = self._chosen(inputs, at)
            if self._n_parts > 1:
                judging = judging[self._part_of(len(judging)) == at]
        elif at == self._n_parts:
            trained_on, draw, rows = ALL, 0, np.arange(n)
        else:
            trained_on, draw = RANDOM, at - self._n_parts - 1
            rows = self._random(inputs, draw)
        name = f"selection_trial/{self.random_seed}/{trained_on}/{draw}"
        found = self._training().judge(opened.learner, rows, n + judging, name)
        n_tokens = int(opened.lengths[rows].sum())
        query_ids = opened.query_ids[judging]
        yield from trial_rows(trained_on, draw, query_ids, *found, len(rows), n_tokens)

    def _part_of(self, n_queries: int) -> Int64[np.ndarray, " queries"]:
        """The part of each query."""
        drawn = np.random.default_rng([self.random_seed, 0])
        parts: np.ndarray = drawn.permutation(n_queries) % self.parts
        return parts

    def _chosen(self, inputs: Inputs, part: int) -> Int64[np.ndarray, " rows"]:
        """The rows that `select` would keep if it had the queries outside of the part alone."""
        opened: Opened = inputs.opened
        is_own = self._part_of(len(opened.query_ids)) == part
        judging = opened.query_ids[is_own] if self._n_parts > 1 else opened.query_ids
        if self.by in (None, "query_relevance"):
            ids, vectors = inputs.vectors(self.features, "query")
            others = np.flatnonzero(~np.isin(ids, judging))
            others = others[np.argsort(np.asarray(ids)[others])]
            every, drawn = inputs.by_shard(self.features, "example"), pa.array(opened.example_ids)
            shards = (table.filter(pc.is_in(table["id"], drawn)) for table in every)
            share, n = min(1.0, 2 * self.keep), len(opened.example_ids)
            groups = query_groups(inputs, self.per, ids[others])
            found = relevance(vectors[others], shards, share, n, groups)
            ranked, rank = (found.ids, found.rank) if found else (np.zeros(0, np.int64),) * 2
            order = ranked[np.argsort(rank)]
        elif self.by in ("answer_issues", "preference_issues"):
            issues = inputs.table(str(self.issues))
            ids, p_wrong = issues["example_id"].to_numpy(), issues["p_wrong"].to_numpy()
            order = ids[np.lexsort((ids, p_wrong))]
            order = order[np.isin(order, opened.example_ids)]
        else:
            margins = None if self.by == "influence" else inputs.table(self.margins, "example")
            scores = None if self.influence is None else inputs.table(self.influence)
            order = by_middle(margins, scores, opened.example_ids, judging)
        left = order[~np.isin(order, self._left_out(inputs))]
        kept = left[: max(1, round(self.keep * len(order)))]
        rows: np.ndarray = np.flatnonzero(np.isin(opened.example_ids, kept))
        if not len(rows):
            raise DataError(
                "selection_trial: found no row to choose, expected some that are not flagged. Set "
                "issues: null to choose among all."
            )
        return rows

    def _left_out(self, inputs: Inputs) -> Int64[np.ndarray, " rows"]:
        """Ids of examples that are flagged, and near duplicates of others that are not."""
        issues, near = (
            None if name is None else inputs.table(name) for name in (self.issues, self.duplicates)
        )
        flag = "is_preference_issue" if self._is_of_pairs else "is_answer_issue"
        return left_out(issues, flag, near)

    def _random(self, inputs: Inputs, draw: int) -> Int64[np.ndarray, " rows"]:
        """Random rows, as many as have the tokens of those chosen for a part."""
        opened: Opened = inputs.opened
        lengths = opened.lengths[: len(opened.example_ids)]
        wanted = lengths[self._chosen(inputs, draw % self._n_parts)].sum()
        drawn = np.random.default_rng([self.random_seed, 1, draw])
        order = drawn.permutation(len(lengths))
        count = int(np.searchsorted(np.cumsum(lengths[order]), wanted)) + 1
        return np.sort(order[:count])

    def cost(self, work: Work) -> Cost:
        """The steps of every training forward and backward, and the queries after each."""
        size = network_size(self.model, 1)
        n_tokens = work.n_tokens / max(1, work.n_examples + work.n_queries)
        trainings = self.n_rounds - 1
        seen = trainings * self.steps * self.batch_size
        judged = (self.n_rounds - self._n_parts + 1) * work.n_queries
        is_adapter = self.train.lora is not None or self.model.adapter is not None
        # Adapters need no gradients of the weights beside them.
        passes = (2 if is_adapter else 3) + self._is_of_pairs
        if self._is_of_pairs:
            # Both sides of a pair; the reference's likelihoods of rows and queries.
            seen, judged = 2 * seen, 4 * judged
        widths = sum(sum(shape) for shape in size.linear)
        return Cost(
            forward_rows=seen + judged,
            backward_rows=seen,
            flops=size.forward_flops(round(n_tokens * (passes * seen + judged))),
            written_bytes=24 * judged,
            memory_bytes=size.forward_bytes(self.token_budget)
            + 8 * self.token_budget * widths
            + (0 if is_adapter else 16 * size.n_parameters)
            + round(60 * n_tokens * min(self.examples, work.n_examples))
            + 96 * work.n_examples,
            note=f"{trainings} trainings of {self.steps} steps",
        )


STAGE = SelectionTrial
