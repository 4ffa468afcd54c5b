"""What a set of queries has in common, by one method: mean scores of examples, and cosines.

All of it is added up by DuckDB over the stored scores of the set's queries; what is held here are
the rows that are shown. A score is above 0 where the example speaks for the query's label. Where a
method explains the predicted class and that is not the label, the sign is turned: of two classes
the margin of the label is meant exactly, of more the wrong prediction alone. So it is where a
regression's output, which the method explains, lies above the target.

A query's list of scores may be cut (`top_k` of the method). What is not stored counts 0, and
`unseen` bounds what that may hide: at most the smallest stored size of the same sign, for each
query whose list of that sign is full and lacks the example. Examples that a review dropped count
nowhere but in how full a list is.

A query belongs to the others of its label as much as the cosine between its scores and the mean of
the others' scores, each scaled to unit length, with which it has no part. An outlier has nothing in
common with them (a cosine of 0 or below), or lies below the median by more than three standard
deviations, taken from the median absolute deviation, with less than half the square of the median.
[Leys et al. 2013, doi:10.1016/j.jesp.2013.03.013; the mean without the query and the half are ours]
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.decisions import KEPT
from pipeline.explain.query import Rows
from pipeline.explain.stored_query import dicts

WORST_OF_A_QUERY = 20
"""Among so many of a query's examples of one sign a row is when `in_top` counts the query."""
FEWEST = 4
"""Queries of one label among which one may be an outlier."""
ALIKE = 0.1
"""The least median cosine of queries that share something, without which none stands out."""
DEVIATIONS = 3.0


class Scores(NamedTuple):
    """The stored scores of a method."""

    pairs: str
    """SQL of the rows query_id, example_id, score."""
    top_k: int | None
    """Scores of each sign that are stored of a query; None where all are."""
    has_sign: bool
    """Whether scores speak for and against the label, as likeness does not."""


class SetScores(NamedTuple):
    """The examples that a set's mean scores name, and how alike its queries are."""

    n_queries: int
    """Those with scores."""
    harmful: Rows
    helpful: Rows
    """example_id, score (the mean), in_top, unseen; the farthest from 0 first."""
    of_labels: Rows
    """label, n_queries and the list `harmful` over the queries of that label alone, for each of the
    set's labels, the most frequent first; none where the set has one label."""
    worst: dict[str, list[int]]
    """By part ("all", "0", "1"): ids of the examples with the lowest mean below 0, lowest first."""
    worst_of_labels: dict[str, list[int]]
    """The same of the lowest means over the queries of each label alone, an equal number for each;
    empty where the set has one label."""
    cosines: Rows
    """query_id, cosine (to the mean of the set's others), cosine_in_label, is_outlier."""


def set_scores(
    run: Any,
    scores: Scores,
    sign_of: Mapping[int, float],
    label_of: Mapping[int, Any],
    half_of: Mapping[int, int],
    top: int,
    n_worst: int,
) -> SetScores | None:
    """Mean scores over the queries in `sign_of`; None where the method has no score of theirs.

    Cost: two passes over their scores for the examples, and two for the cosines, four where the set
    has several labels; memory of DuckDB's sums, a row for each example.

    Args:
        run: The `pipeline.open_run.OpenedRun`.
        scores: The scores of the method.
        sign_of: By query_id: -1 where scores speak for a class that is not the label, or for an
            output that is too large already, else 1.
        label_of: By query_id its label; None where there are no classes.
        half_of: By query_id the half of the set that it is in; empty where there are no halves.
        top: Examples of each sign; as many again are the farthest from 0 in their own class.
        n_worst: How many examples of the lowest means to name.
    """
    stored = f"({scores.pairs}) WHERE query_id IN ({', '.join(map(str, sorted(sign_of)))})"
    pairs = f"{stored} AND {KEPT}"
    chosen = _chosen({"query_id": list(sign_of), "weight": list(sign_of.values())})
    per_query = dicts(
        run.sql(
            f"WITH chosen AS ({chosen}), signed AS (SELECT query_id, weight * score AS score, "
            f"{KEPT} AS is_kept FROM (FROM {stored}) JOIN chosen USING (query_id)) "
            "SELECT query_id, sqrt(fsum(score * score) FILTER (is_kept)) AS norm, "
            "count(*) FILTER (score > 0) AS n_above, count(*) FILTER (score < 0) AS n_below, "
            "min(score) FILTER (score > 0) AS above, -max(score) FILTER (score < 0) AS below, "
            f"list_last(max(score, {WORST_OF_A_QUERY}) FILTER (score > 0 AND is_kept)) AS best, "
            f"list_last(min(score, {WORST_OF_A_QUERY}) FILTER (score < 0 AND is_kept)) AS worst "
            "FROM signed GROUP BY query_id ORDER BY query_id"
        )
    )
    if not per_query:
        return None
    ids = [row["query_id"] for row in per_query]
    halves = [half_of.get(query_id, -1) for query_id in ids]
    columns: dict[str, list[Any]] = {
        "query_id": ids,
        "weight": [sign_of[query_id] for query_id in ids],
        "half": halves,
        "best": [row["best"] or 0.0 for row in per_query],
        "worst": [row["worst"] or 0.0 for row in per_query],
    }
    for side in ("above", "below"):
        # A list that is not full holds every score of its sign.
        columns[side] = [
            row[side] if scores.top_k is not None and row[f"n_{side}"] >= scores.top_k else 0.0
            for row in per_query
        ]
    harmful, helpful, worst = _examples(run, pairs, columns, top, n_worst, scores.has_sign)
    cosines = _cosines(run, pairs, columns, [row["norm"] for row in per_query], label_of)
    labels = [label_of.get(query_id) for query_id in ids]
    of_labels: Rows = []
    worst_of_labels: dict[str, list[int]] = {}
    counts = {label: labels.count(label) for label in labels}
    if len(counts) > 1 and scores.has_sign:
        for label in sorted(counts, key=lambda label: (-counts[label], str(label))):
            own = [at for at, name in enumerate(labels) if name == label]
            part = {name: [values[at] for at in own] for name, values in columns.items()}
            share = -(-n_worst // len(counts))
            against, _, lowest = _examples(run, pairs, part, top, share, True, more=0)
            for name, lowest_ids in lowest.items():
                worst_of_labels.setdefault(name, []).extend(lowest_ids)
            of_labels.append({"label": label, "n_queries": len(own), "harmful": against})
    return SetScores(len(ids), harmful, helpful, of_labels, worst, worst_of_labels, cosines)


def _examples(
    run: Any,
    pairs: str,
    columns: Mapping[str, Sequence[Any]],
    top: int,
    n_worst: int,
    has_sign: bool,
    more: int | None = None,
) -> tuple[Rows, Rows, dict[str, list[int]]]:
    """The rows `harmful` and `helpful`, and the lists `worst`, of `SetScores`.

    `more` of each side, by default `top`, are farthest from 0 in their class alone.
    """
    n, more = len(columns["query_id"]), top if more is None else more
    sizes = {part: columns["half"].count(int(part)) for part in ("0", "1")}
    mean_of_half = ", ".join(
        f"fsum(score) FILTER (half = {part}) / {max(1, size)} AS mean_{part}"
        for part, size in sizes.items()
    )
    places = ", ".join(
        f"row_number() OVER (ORDER BY mean_{part} NULLS LAST, example_id) AS place_{part}"
        for part in sizes
    )
    rows = dicts(
        run.sql(
            f"WITH chosen AS ({_chosen(columns)}), signed AS (SELECT * REPLACE (weight * score AS "
            f"score) FROM (FROM {pairs}) JOIN chosen USING (query_id)), "
            f"sums AS (SELECT example_id, fsum(score) / {n} AS score, {mean_of_half}, "
            "count(*) FILTER (score < 0 AND score <= worst) AS n_worst, "
            "count(*) FILTER (score > 0 AND score >= best) AS n_best, "
            f"({sum(columns['below'])!r} - fsum(below)) / {n} AS unseen_below, "
            f"({sum(columns['above'])!r} - fsum(above)) / {n} AS unseen_above "
            "FROM signed GROUP BY example_id), "
            f"placed AS (SELECT sums.*, {places}, "
            "row_number() OVER (ORDER BY score, example_id) AS low, "
            "row_number() OVER (ORDER BY score DESC, example_id) AS high, "
            "row_number() OVER (PARTITION BY label ORDER BY score, example_id) AS low_of_class, "
            "row_number() OVER (PARTITION BY label ORDER BY score DESC, example_id) "
            "AS high_of_class FROM sums LEFT JOIN tables.label AS l ON l.id = example_id "
            "AND l.role = 'example') "
            f"SELECT * FROM placed WHERE least(low, place_0, place_1) <= {max(top, n_worst)} "
            f"OR high <= {top} OR least(low_of_class, high_of_class) <= {top} ORDER BY low"
        )
    )
    sides = []
    for sign, place, of_class, count in (
        (-1, "low", "low_of_class", "n_worst"),
        (1, "high", "high_of_class", "n_best"),
    ):
        signed = [row for row in rows if sign * row["score"] > 0 and (has_sign or sign > 0)]
        first = sorted((r for r in signed if r[place] <= top), key=lambda r: int(r[place]))
        of_classes = sorted(
            (row for row in signed if row[place] > top and row[of_class] <= top),
            key=lambda row: (int(row[of_class]), int(row[place])),
        )
        shown = sorted([*first, *of_classes[:more]], key=lambda row: int(row[place]))
        hidden = "unseen_below", "unseen_above"
        sides.append(
            [
                {
                    "example_id": row["example_id"],
                    "score": row["score"],
                    "in_top": row[count],
                    "unseen": max(0.0, *(row[name] for name in hidden)),
                }
                for row in shown
            ]
        )
    parts = {"all": ("score", "low"), **{part: (f"mean_{part}", f"place_{part}") for part in sizes}}
    worst = {
        part: [
            int(row["example_id"])
            for row in sorted(rows, key=lambda row: int(row[place]))
            if row[place] <= n_worst and (row[mean] or 0.0) < 0 and has_sign
        ]
        for part, (mean, place) in parts.items()
    }
    return sides[0], sides[1], worst


def _cosines(
    run: Any,
    pairs: str,
    columns: Mapping[str, Sequence[Any]],
    norms: Sequence[float],
    label_of: Mapping[int, Any],
) -> Rows:
    """The rows `cosines` of `SetScores`."""
    # Of a query whose scores are all 0 there is no direction.
    at = [place for place, norm in enumerate(norms) if norm]
    ids = [columns["query_id"][place] for place in at]
    labels = list(dict.fromkeys(label_of.get(query_id) for query_id in ids))
    group_of = {query_id: labels.index(label_of.get(query_id)) for query_id in ids}
    scale = [columns["weight"][place] / norms[place] for place in at]
    in_set = _to_others(run, pairs, ids, scale, [0] * len(ids)) if ids else {}
    groups = [group_of[query_id] for query_id in ids]
    in_label = _to_others(run, pairs, ids, scale, groups) if len(labels) > 1 else in_set
    outliers: set[int] = set()
    for group in range(len(labels)):
        members = [i for i in ids if group_of[i] == group and in_label.get(i) is not None]
        if len(members) >= FEWEST:
            values = np.array([in_label[i] for i in members])
            middle = np.median(values)
            spread = 1.4826 * np.median(np.abs(values - middle))
            is_far = (values < middle - DEVIATIONS * spread) & (values**2 < middle**2 / 2)
            is_out = ((values <= 0) | is_far) & (middle >= ALIKE)
            outliers |= {i for i, out in zip(members, is_out.tolist(), strict=True) if out}
    return [
        {
            "query_id": query_id,
            "cosine": in_set.get(query_id),
            "cosine_in_label": in_label.get(query_id),
            "is_outlier": query_id in outliers,
        }
        for query_id in columns["query_id"]
    ]


def _to_others(
    run: Any, pairs: str, ids: Sequence[int], scale: Sequence[float], groups: Sequence[int]
) -> dict[int, float | None]:
    """The cosine of each query's scores to the mean of the others of its group; None without any.

    With u_q of unit length and U = sum u_q over the group, that of q is (u_q.U - 1) / |U - u_q|.
    """
    chosen = _chosen({"query_id": ids, "scale": scale, "part": groups})
    rows = run.sql(
        f"WITH chosen AS ({chosen}), units AS (SELECT query_id, part, example_id, scale * score AS "
        f"unit FROM (FROM {pairs}) JOIN chosen USING (query_id)), "
        "together AS MATERIALIZED (SELECT part, example_id, fsum(unit) AS total FROM units "
        "GROUP BY ALL), "
        "lengths AS (SELECT part, fsum(total * total) AS square FROM together GROUP BY part), "
        "products AS (SELECT query_id, part, fsum(unit * total) AS product FROM units "
        "JOIN together USING (part, example_id) GROUP BY ALL) "
        "SELECT query_id, product, square FROM products JOIN lengths USING (part) ORDER BY query_id"
    ).fetchall()
    sizes = {group: list(groups).count(group) for group in set(groups)}
    size_of = {query_id: sizes[group] for query_id, group in zip(ids, groups, strict=True)}
    cosines: dict[int, float | None] = {}
    for query_id, product, square in rows:
        rest = max(0.0, square - 2 * product + 1.0)
        is_alone = size_of[query_id] < 2 or rest < 1e-12
        cosines[query_id] = None if is_alone else (product - 1.0) / rest**0.5
    return cosines


def _chosen(columns: Mapping[str, Sequence[Any]]) -> str:
    """SQL of a table of these columns of numbers, which have one length."""
    lists = []
    for name, values in columns.items():
        kind = "BIGINT" if all(isinstance(value, int) for value in values) else "DOUBLE"
        lists.append(f"unnest([{', '.join(map(repr, values))}]::{kind}[]) AS {name}")
    return f"SELECT {', '.join(lists)}"
