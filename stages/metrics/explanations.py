"""What metrics of explanations share: of each query, the examples that a method lists as helpful.

How a list is read. Of a method that writes `attribution`, a query lists the examples with the
largest scores above zero, the largest first, equal ones by id; or, where the harmful side is asked
for, those furthest below. Of `support` it lists its spectrum towards one class, or the general one,
from the most global example to the most local; a spectrum longer than is asked for gives examples
spread evenly over it, both ends among them. [ours]

A spectrum is as long as it is, mostly shorter than the other methods' lists, and what a list does
may hang on its length: rows tell mean lengths, and `equal_length` cuts the lists of a query to the
shortest of all methods (methods.md 2.5 removes as many examples as the spectrum has).
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
    """Local scores, of harmful examples with a minus; the scores where they do not come apart."""

    @property
    def local_end(self) -> int:
        """The most local of them, the first among equals."""
        return int(self.ids[self.local.argmax()])

    def at(self, places: Int64[np.ndarray, " some"]) -> "Listed":
        """Some of them."""
        return Listed(self.ids[places], self.local[places])


Lists = dict[int, Listed]
"""Lists by query, ascending; a query that a method lists nothing for is not there."""


@dataclass(frozen=True)
class Methods(Metric):
    """Methods that are compared, with intervals over queries."""

    methods: tuple[str, ...] = ("tracin", "support")
    """Instances that wrote `attribution` or `support`."""
    seed: int = 0
    """Seed of everything that is drawn."""
    resamples: int = 1000
    """Draws of queries behind an interval."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuse what cannot be computed; see `check`."""
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
    """Methods whose lists of helpful examples are compared."""

    top: int = 10
    """Examples of a list, at most."""
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
        """The lists of every method.

        Raises:
            ConfigError: the contrast is no class.
            DataError: an instance wrote neither `attribution` nor `support`, or the latter where
                harmful examples are asked for.
        """
        found, is_spectrum = {}, {}
        for name in self.methods:
            table = inputs.table(name)
            is_spectrum[name] = "contrast" in table.column_names
            if is_spectrum[name] and self.side == "harmful":
                raise DataError(
                    f"{name}: found support spectra with side: harmful, expected scores of both "
                    "signs: a spectrum has no harmful examples. Leave it out of methods."
                )
            if is_spectrum[name]:
                found[name] = spectra(table, self._contrast(inputs))
            elif {"query_id", "example_id", "score", "local_score"} <= set(table.column_names):
                found[name] = outermost(table, self.top, 1 if self.side == "helpful" else -1)
            else:
                raise DataError(
                    f"{name}: found a table with the columns {', '.join(table.column_names)}, "
                    "expected one of attribution or support. Name another instance in methods."
                )
        return {
            name: {
                query: _cut(listed, self._length(query, found), is_spectrum[name])
                for query, listed in lists.items()
                if self._length(query, found)
            }
            for name, lists in found.items()
        }

    def _length(self, query: int, found: dict[str, Lists]) -> int:
        """Examples that a list of this query may have."""
        if not self.equal_length:
            return self.top
        own = [len(lists[query].ids) if query in lists else 0 for lists in found.values()]
        return min(self.top, *own)

    def _contrast(self, inputs: Inputs) -> int:
        """The number of the class that spectra are taken towards."""
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
    """The `top` scores of one sign furthest from zero, of every query of `attribution`."""
    queries, examples, scores = (
        table[name].to_numpy() for name in ("query_id", "example_id", "score")
    )
    # A method's scores come apart in all rows or in none.
    local = sign * pc.coalesce(table["local_score"], table["score"]).to_numpy()
    at = np.flatnonzero(sign * scores > 0)
    at = at[np.lexsort((examples[at], -sign * scores[at], queries[at]))]
    lists = _grouped(queries[at], examples[at], local[at])
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
    """Ids, ascending, and logits of the rows of one role that have a prediction.

    Raises:
        DataError: there is none.
    """
    ids, logits = predicted.read_logits(inputs, predictions, role)
    if len(ids) == 0:
        raise DataError(
            f"{predictions}: found no prediction of a row with role {role}, expected at least one. "
            "Name an instance that predicts them."
        )
    return ids, logits


def mean_length(lists: Lists) -> float | None:
    """Examples of a list on average; None without a list."""
    return float(np.mean([len(one.ids) for one in lists.values()])) if lists else None


def spread(n: int, wanted: int) -> Int64[np.ndarray, " kept"]:
    """`wanted` of `n` places, spread evenly with both ends among them; all if there are fewer."""
    places: np.ndarray = np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64)
    return places


def _cut(listed: Listed, length: int, is_spectrum: bool) -> Listed:
    n = len(listed.ids)
    return listed.at(spread(n, length) if is_spectrum else np.arange(min(n, length)))


def _grouped(
    queries: Int64[np.ndarray, " rows"],
    examples: Int64[np.ndarray, " rows"],
    local: Float[np.ndarray, " rows"],
) -> Lists:
    """Rows that lie query by query, in each one's order."""
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    stops = np.append(starts, len(queries))[1:]
    return {
        int(queries[start]): Listed(examples[start:stop], local[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    }
