"""A short training on some rows, and the losses of others behind it: completions or pairs alike."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from stages.corpus.preferences import side_columns
from stages.model.completion_tuning import completion_learner, load_untuned, losses, tune
from stages.model.fine_tuning import FineTuning
from stages.model.pair_tuning import log_likelihoods, reward_margins, tune_pairs
from stages.model.precision import Precision, check_precision
from stages.model.spec import ModelSpec, Trained
from stages.model.training import Learner, reset
from stages.stage import ConfigError, Inputs


class Readable(NamedTuple):
    """A model, and the rows with an answer, of pairs both, of which a token is read."""

    learner: Learner
    """Of pairs with a row for each side, the chosen one first."""
    lengths: Int64[np.ndarray, " rows"]
    """Tokens of each row, of pairs of both sides."""
    is_read: Bool[np.ndarray, " given"]
    """Whether a row of the text is one of them."""


class Judged(NamedTuple):
    """The losses of rows, in nats a token or, of pairs, those of DPO."""

    losses: Float64[np.ndarray, " rows"]
    margins: Float64[np.ndarray, " rows"] | None
    """Of pairs the margins of rewards (`stages.model.pair_tuning`)."""


@dataclass(frozen=True)
class ShortTraining:
    """How a model is trained for some steps."""

    steps: int
    how: FineTuning
    token_budget: int
    beta: float | None
    """Of pairs, the strength with which DPO holds to the reference; None of completions."""
    precision: Precision = "float32"
    """Of the training. Losses are read in float32."""

    def __post_init__(self) -> None:
        """Refuses a beta that weighs nothing.

        Raises:
            ConfigError: it is not a positive number.
        """
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise ConfigError(
                f"beta: found {self.beta}, expected a positive number. DPO is mostly trained with "
                "0.1."
            )

    def read(self, inputs: Inputs, model: ModelSpec, train: Trained, text: pa.Table) -> Readable:
        """The untrained model, and the tokens of the rows of `text`.

        Raises:
            ConfigError: the device does not compute in `precision`.
        """
        is_of_pairs = self.beta is not None
        measurement = load_untuned(inputs, model, train, by_sides=is_of_pairs)
        check_precision(measurement.device, self.precision)
        per_row = 1
        if is_of_pairs:
            form, per_row = str(inputs.details("text").get("format", "preference")), 2
            columns = side_columns(text["text"].to_pylist(), text["text_b"].to_pylist(), form)
            text = pa.table({"text": columns[0], "text_b": pa.array(columns[1], pa.string())})
        tokens = measurement.tokenise(text)
        has_target = np.array(measurement.has_target(tokens), bool).reshape(-1, per_row)
        is_read: np.ndarray = np.all(has_target, axis=1)
        kept = np.flatnonzero(np.repeat(is_read, per_row))
        learner = completion_learner(measurement, tokens.take(kept))
        return Readable(learner, learner.lengths.reshape(-1, per_row).sum(1), is_read)

    def judge(
        self,
        learner: Learner,
        rows: Int64[np.ndarray, " trained"],
        judging: Int64[np.ndarray, " judged"],
        name: str,
    ) -> Judged:
        """The losses of the rows `judging` after a training on `rows`, or none where they are none.

        `name` draws the batches. Every training begins with the same weights.
        """
        reset(learner)
        if self.beta is None:
            if len(rows):
                tune(learner, rows, self.steps, self.how, self.token_budget, name, self.precision)
            return Judged(losses(learner, judging, self.token_budget), None)
        reference = log_likelihoods(learner, judging, self.token_budget)
        if len(rows):
            tune_pairs(
                learner,
                rows,
                self.steps,
                self.how,
                self.beta,
                self.token_budget,
                name,
                self.precision,
            )
        now = log_likelihoods(learner, judging, self.token_budget)
        margins = reward_margins(now, reference, self.beta)
        return Judged(np.logaddexp(0, -margins), margins)
