"""Outcomes of real trainings on subsets, as arrays, from the tables of `retrain`."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from stages.reading.vectors import matrix_of
from stages.stage import DataError, Inputs

LEAST = 5
"""The least number of subsets that anything is correlated over."""


class Outcomes(NamedTuple):
    """What was really trained: distinct subsets and what the models on them say."""

    members: list[Int64[np.ndarray, " members"]]
    """Ids of the examples of each subset, ascending."""
    query_ids: Int64[np.ndarray, " queries"]
    logits: list[Float[np.ndarray, "repeats queries classes"]]
    """Of each subset, for every training on it."""

    def log_odds(self, classes: Int64[np.ndarray, " queries"]) -> list[np.ndarray]:
        """Of each subset the log-odds of each query's class, (repeats, queries)."""
        return [log_odds(of_subset, classes) for of_subset in self.logits]


def log_odds(
    logits: Float[np.ndarray, "*rows queries classes"], classes: Int64[np.ndarray, " queries"]
) -> Float[np.ndarray, "*rows queries"]:
    """log(p / (1 - p)) of the class of each query: its logit less the log-sum-exp of the others."""
    own = classes[:, None] == np.arange(logits.shape[-1])
    others = np.where(own, -np.inf, logits)
    found: np.ndarray = np.where(own, logits, 0.0).sum(-1) - np.logaddexp.reduce(others, axis=-1)
    return found


def read_outcomes(inputs: Inputs, truth: str) -> Outcomes:
    """Subsets of `retrain` and the logits of each query after training on them.

    Trainings on the same examples are repeats of one subset. Memory: the table of outcomes.

    Raises:
        DataError: fewer than `LEAST` distinct subsets, of several sizes, or outcomes that are
            missing.
    """
    subsets, outcome = inputs.table(f"{truth}.subset"), inputs.table(f"{truth}.outcome")
    sizes = sorted(set(subsets["size"].to_pylist()))
    if len(sizes) != 1:
        raise DataError(
            f"{truth}: found subsets of {len(sizes)} sizes, expected one size, drawn at random. "
            "Set subsets: random for an instance of retrain, run again, and name it as truth."
        )
    by_members: dict[bytes, list[tuple[int, int]]] = {}
    columns = (subsets[name].to_pylist() for name in ("round", "subset", "example_ids"))
    for index, subset, members in zip(*columns, strict=True):
        key = np.sort(np.array(members, np.int64)).tobytes()
        by_members.setdefault(key, []).append((index, subset))
    if len(by_members) < LEAST:
        raise DataError(
            f"{truth}: found {len(by_members)} distinct subsets, expected at least {LEAST} to "
            "correlate over; 50 or more say something. Raise rounds in retrain and run again."
        )
    query_ids = np.unique(outcome["query_id"].to_numpy())
    rounds, names = (outcome[name].to_numpy() for name in ("round", "subset"))
    order = np.lexsort((outcome["query_id"].to_numpy(), names, rounds))
    starts = order[:: len(query_ids)]
    if len(order) != subsets.num_rows * len(query_ids):
        raise DataError(
            f"{truth}: found {len(order)} outcomes of {subsets.num_rows} trainings and "
            f"{len(query_ids)} queries, expected one for each pair. Run `assay verify`."
        )
    flat = matrix_of(outcome["logits"])[order].astype(np.float64)
    logits = flat.reshape(subsets.num_rows, len(query_ids), -1)
    place = {
        (int(rounds[start]), int(names[start])): row for row, start in enumerate(starts.tolist())
    }
    return Outcomes(
        [np.frombuffer(key, np.int64) for key in by_members],
        query_ids,
        [logits[[place[name] for name in names_]] for names_ in by_members.values()],
    )


def of_queries(outcomes: Outcomes, wanted: tuple[int, ...]) -> Outcomes:
    """The outcomes of these queries alone; raises where one has none."""
    is_kept: Bool[np.ndarray, " queries"] = np.isin(outcomes.query_ids, wanted)
    if int(is_kept.sum()) < len(set(wanted)):
        odd = sorted(set(wanted) - set(outcomes.query_ids.tolist()))[0]
        raise DataError(
            f"queries: found {odd}, which has no outcome, expected ids as in the view queries, "
            f"such as {outcomes.query_ids[0]}. Correct queries."
        )
    kept = [of_subset[:, is_kept] for of_subset in outcomes.logits]
    return Outcomes(outcomes.members, outcomes.query_ids[is_kept], kept)
