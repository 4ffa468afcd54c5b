"""What short trainings on chosen rows gave: the main numbers of the view `selection_trial`."""

import json
import math
from collections.abc import Mapping
from typing import Any

from storage.sql import quoted

NORMAL = 1.96
"""Standard deviations to each side of the mean of a normal distribution that hold 95 %."""
SAID = {
    "chosen": "rows chosen by {by}",
    "random": "random rows, as many tokens",
    "all": "all rows, as many steps",
    "nothing": "no training",
}
"""What a model was trained on, in the order of the table; `by` as in `Chosen.source`."""


def interval(mean: float, stderr: float, n: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a mean over `n` values, at least 2, by Student's t.

    Its quantile is exact for n of 2 and 3, and within 1 % above.

    Source: Abramowitz and Stegun 1964, 26.7.5.
    """
    z, degrees = NORMAL, n - 1
    if degrees == 1:
        reach = math.tan(math.pi * 0.475)
    elif degrees == 2:
        reach = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    else:
        reach = z + (z**3 + z) / (4 * degrees)
        reach += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        reach += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return mean - reach * stderr, mean + reach * stderr


def trials(run: Any) -> list[dict[str, Any]]:
    """For each instance of `selection_trial` in a run, what it gave.

    Keys:
        method, by, features, keep, steps, batch_size, per: The instance and its fields.
        unit: What losses are in: nats a token, or the loss of DPO.
        rows: For each of `SAID` its name `trained_on`, n_rows and n_tokens (means over sets), the
            mean loss of the queries, the standard error over queries, and `spread`, the standard
            deviation of that mean over random sets, None of the others. Of pairs also `accuracy`,
            the share of queries whose chosen answer gained more than the rejected one, by the
            margin of rewards; a margin of 0 is half a hit. None of completions.
        gain, gain_low, gain_high: By how much the loss after chosen rows is below that after random
            ones, a mean over queries with its 95 % interval.
    """
    found = []
    for method in run.methods("selection_trial"):
        of_method = f"FROM selection_trial WHERE method = {quoted(method)}"
        rows = run.sql(
            f"""
            WITH of_query AS (
                SELECT trained_on, query_id, avg(loss) AS loss, avg(n_rows) AS n_rows,
                       avg(n_tokens) AS n_tokens {of_method} GROUP BY ALL),
            of_draw AS (SELECT trained_on, draw, avg(loss) AS loss {of_method} GROUP BY ALL)
            SELECT trained_on, avg(n_rows) AS n_rows, avg(n_tokens) AS n_tokens,
                   avg(q.loss) AS loss, stddev_samp(q.loss) / sqrt(count(*)) AS stderr,
                   CASE trained_on WHEN 'random' THEN
                       (SELECT stddev_samp(loss) FROM of_draw WHERE trained_on = 'random')
                   END AS spread
            FROM of_query AS q GROUP BY trained_on"""
        )
        by_name = {row[0]: dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()}
        ((gain, stderr, n_queries),) = run.sql(of_gain(method)).fetchall()
        low, high = interval(gain, stderr, n_queries)
        accuracies = _accuracies(run, method)
        for name, row in by_name.items():
            row["accuracy"] = accuracies.get(name)
        ((fields,),) = run.sql(
            f"SELECT fields FROM runs WHERE instance = {quoted(method)} LIMIT 1"
        ).fetchall()
        named = json.loads(fields)
        found.append(
            {
                "method": method,
                **{name: named[name] for name in ("by", "features", "keep", "steps", "batch_size")},
                "per": named.get("per"),
                "unit": "of the loss of DPO" if accuracies else "nats a token",
                "rows": [by_name[name] for name in SAID if name in by_name],
                "gain": gain,
                "gain_low": low,
                "gain_high": high,
            }
        )
    return found


def trials_of(run: Any, by: str, instance: str) -> list[dict[str, Any]]:
    """The trials that chose as `select` does: `by` the same, of relevance also what it reads."""
    if "selection_trial" not in run.views():
        return []
    found = [trial for trial in trials(run) if trial["by"] == by]
    if by != "query_relevance":
        return found
    rows = run.sql(f"SELECT fields FROM runs WHERE instance = {quoted(instance)} LIMIT 1")
    fields = json.loads(rows.fetchall()[0][0])
    as_here = fields["features"], fields.get("per")
    return [trial for trial in found if (trial["features"], trial["per"]) == as_here]


def _accuracies(run: Any, method: str) -> dict[str, float]:
    """The share of queries whose order was learned, by `trained_on`; empty of completions."""
    if "trial_margins" not in run.views():
        return {}
    hit = "avg((sign(margin) + 1) / 2)"
    found = run.sql(
        f"SELECT trained_on, {hit} FROM trial_margins WHERE method = {quoted(method)} GROUP BY ALL"
    )
    return dict(found.fetchall())


def of_gain(method: str) -> str:
    """The statement for `gain`, as `trials` has it, its standard error and the n of queries."""
    of_method = f"FROM selection_trial WHERE method = {quoted(method)}"
    return f"""
        SELECT avg(r.loss - c.loss) AS gain,
               stddev_samp(r.loss - c.loss) / sqrt(count(*)) AS stderr, count(*) AS n
        FROM (SELECT query_id, avg(loss) AS loss {of_method} AND trained_on = 'random'
              GROUP BY ALL) AS r
        JOIN (SELECT query_id, loss {of_method} AND trained_on = 'chosen') AS c
        USING (query_id)"""


def verdict(trial: Mapping[str, Any]) -> str:
    """What a trial says about the choice, in a sentence."""
    told = "better than random rows"
    if trial["gain_high"] < 0:
        told = "worse than random rows"
    elif trial["gain_low"] <= 0:
        told = "no better than random rows, as far as these queries tell"
    loss = {row["trained_on"]: row["loss"] for row in trial["rows"]}
    least = min(loss, key=lambda name: loss[name])
    beside = f" The lowest loss is that of {SAID[least]}." if least != "chosen" else ""
    return (
        f"The chosen rows are {told}: {trial['gain']:+.3f} {trial['unit']} (95 % interval "
        f"{trial['gain_low']:+.3f} to {trial['gain_high']:+.3f}).{beside}"
    )
