"""The examples that a method lists as helpful to each query: the base of the list metrics.

How a list is read. Of a method that writes `attribution`, a query lists the examples with the
largest scores above zero, the largest first, equal ones by id; or, where the harmful side is asked
for, those furthest below. Of `support` it lists its spectrum towards one class, or the general one,
from the most global example to the most local; a spectrum longer than is asked for gives examples
spread evenly over it, both ends among them. [ours]

A spectrum has a length of its own, mostly less than that of the other methods' lists, and a measure
of a list may depend on its length: result rows hold mean lengths, and `equal_length` cuts the lists
of a query to the shortest of all methods (so that removals take out as many examples as the
spectrum has).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64

from stages.metrics.bootstrap import Estimate, mean_of
from stages.metrics.metric import Metric
from stages.reading import logits as predicted
from stages.stage import ConfigError, DataError, Inputs, Role
from stages.tables import GENERAL


class Listed(NamedTuple):
    """The examples that a method lists for one query, in the method's order."""

    ids: Int64[np.ndarray, " listed"]
    local: Float[np.ndarray, " listed"]
    """Local scores, negated for harmful examples; the whole scores of a method without local
    ones."""

    @property
    def local_end(self) -> int:
        """Id of the listed example with the largest local score; of equal ones the first."""
        return int(self.ids[self.local.argmax()])

    def take(self, positions: Int64[np.ndarray, " kept"]) -> "Listed":
        """The listed examples at these positions of the list."""
        return Listed(self.ids[positions], self.local[positions])


Lists = dict[int, Listed]
"""A method's lists by query id, ascending; without the queries whose list would be empty."""


@dataclass(frozen=True)
class Methods(Metric):
    """The base of metrics that compare methods by means over queries, with their intervals."""

    methods: tuple[str, ...] = ("tracin", "support")
    """Instances that wrote `attribution` or `support`."""
    seed: int = 0
    """Seed of the bootstrap, and of the queries that a metric samples."""
    resamples: int = 1000
    """Bootstrap draws of queries for each interval."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields out of range; see `check`."""
        self.check()

    def check(self) -> None:
        """Refuses fields that cannot be used.

        Raises:
            ConfigError: no method is named, one is named twice, or a number is too small.
        """
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"methods: found {list(self.methods)}, expected at least one, each once. Name "
                "instances of the run that score pairs, such as tracin or support."
            )
        if self.seed < 0 or self.resamples < 1:
            raise ConfigError(
                f"resamples: found {self.resamples} with seed: {self.seed}, expected at least 1 "
                "and a seed of at least 0. Correct them."
            )

    def mean(self, values: list[float]) -> Estimate:
        """The mean of one number per query, with its interval."""
        return mean_of(values, self.resamples, self.seed)


@dataclass(frozen=True)
class Explanations(Methods):
    """The base of metrics of the examples that each method lists for a query."""

    top: int = 10
    """The largest number of examples of a list."""
    side: Literal["helpful", "harmful"] = "helpful"
    """Whether lists hold the largest scores above zero, or those furthest below."""
    contrast: str | int | None = None
    """The class that spectra are taken towards, by name or number; null takes the general ones."""
    equal_length: bool = False
    """Whether the lists of a query are cut to the shortest of all methods; queries that some method
    lists nothing for are then left out."""

    def check(self) -> None:
        """Refuses fields that cannot be used.

        Raises:
            ConfigError: lists would be empty, or see `Methods.check`.
        """
        super().check()
        if self.top < 1:
            raise ConfigError(f"top: found {self.top}, expected at least 1. Raise it.")

    def lists(self, inputs: Inputs) -> dict[str, Lists]:
        """The lists of every method, by the name of its instance.

        Raises:
            ConfigError: the contrast is no class.
            DataError: an instance wrote neither `attribution` nor `support`, or the latter where
                harmful examples are asked for.
        """
        uncut, is_spectrum = {}, {}
        for name in self.methods:
            table = inputs.table(name)
            is_spectrum[name] = "contrast" in table.column_names
            if is_spectrum[name] and self.side == "harmful":
                raise DataError(
                    f"{name}: found support spectra with side: harmful, expected scores of both "
                    "signs: a spectrum has no harmful examples. Leave it out of methods."
                )
            if is_spectrum[name]:
                uncut[name] = spectra(table, self._contrast(inputs))
            elif {"query_id", "example_id", "score", "local_score"} <= set(table.column_names):
                uncut[name] = outermost(table, self.top, 1 if self.side == "helpful" else -1)
            else:
                raise DataError(
                    f"{name}: found a table with the columns {', '.join(table.column_names)}, "
                    "expected one of attribution or support. Name another instance in methods."
                )
        return {
            name: {
                query: _cut(listed, self._length(query, uncut), is_spectrum[name])
                for query, listed in lists.items()
                if self._length(query, uncut)
            }
            for name, lists in uncut.items()
        }

    def _length(self, query: int, uncut: dict[str, Lists]) -> int:
        """The largest number of examples that the lists of this query may have."""
        if not self.equal_length:
            return self.top
        lengths = [len(lists[query].ids) if query in lists else 0 for lists in uncut.values()]
        return min(self.top, *lengths)

    def _contrast(self, inputs: Inputs) -> int:
        """Index of the class that spectra are taken towards; GENERAL for the general spectra."""
        if self.contrast is None:
            return GENERAL
        names = [str(name) for name in inputs.details("label")["classes"]]
        if str(self.contrast) in names:
            return names.index(str(self.contrast))
        if isinstance(self.contrast, int) and 0 <= self.contrast < len(names):
            return self.contrast
        raise ConfigError(
            f"contrast: found {self.contrast!r}, expected a class of {', '.join(names[:8])}. Name "
            "one, or leave it out for the general spectra."
        )


def outermost(table: pa.Table, top: int, sign: int) -> Lists:
    """The examples with the `top` scores of one sign furthest from zero, for every query.

    `table` has the columns of `attribution`; `sign` is 1 for helpful, -1 for harmful examples.
    """
    queries, examples, scores = (
        table[name].to_numpy() for name in ("query_id", "example_id", "score")
    )
    # A method has local scores in all rows or in none.
    local = sign * pc.coalesce(table["local_score"], table["score"]).to_numpy()
    rows = np.flatnonzero(sign * scores > 0)
    rows = rows[np.lexsort((examples[rows], -sign * scores[rows], queries[rows]))]
    lists = _grouped(queries[rows], examples[rows], local[rows])
    return {query: Listed(*(part[:top] for part in listed)) for query, listed in lists.items()}


def spectra(table: pa.Table, contrast: int) -> Lists:
    """The spectrum of every query towards a class, from rows of `support`, global first."""
    table = table.filter(pc.equal(table["contrast"], contrast))
    table = table.sort_by([("query_id", "ascending"), ("rank", "ascending")])
    columns = ("query_id", "example_id", "local_score")
    return _grouped(*(table[name].to_numpy() for name in columns))


def read_logits(
    inputs: Inputs, predictions: str, role: Role
) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows classes"]]:
    """Ids, ascending, and logits of the rows of `role` that have a prediction.

    Raises:
        DataError: no row has one.
    """
    ids, logits = predicted.read_logits(inputs, predictions, role)
    if len(ids) == 0:
        raise DataError(
            f"{predictions}: found no prediction of a row with role {role}, expected at least one. "
            "Name an instance that predicts them."
        )
    return ids, logits


def mean_length(lists: Lists) -> float | None:
    """The mean number of examples of a list; None without any list."""
    return float(np.mean([len(listed.ids) for listed in lists.values()])) if lists else None


def spread(n: int, wanted: int) -> Int64[np.ndarray, " kept"]:
    """`wanted` of the positions 0 to n - 1, evenly spread with both ends; all if n is less."""
    positions: np.ndarray = np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64)
    return positions


def _cut(listed: Listed, length: int, is_spectrum: bool) -> Listed:
    n = len(listed.ids)
    return listed.take(spread(n, length) if is_spectrum else np.arange(min(n, length)))


def _grouped(
    queries: Int64[np.ndarray, " rows"],
    examples: Int64[np.ndarray, " rows"],
    local: Float[np.ndarray, " rows"],
) -> Lists:
    """The lists of rows that are sorted by query; each list keeps the order of its rows."""
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    stops = np.append(starts, len(queries))[1:]
    return {
        int(queries[start]): Listed(examples[start:stop], local[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    }
