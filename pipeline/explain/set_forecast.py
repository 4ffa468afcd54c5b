"""What a cure of a set of failing queries would give: the kernel regression fitted anew, exactly.

A cure leaves out the examples that a method names as the worst for the set, or gives those of them
that are flagged the label that is suggested. It is judged on the set and on all other labelled
queries, so that a cure that harms elsewhere is seen, beside leaving out as many random examples.

The set chose the examples, so its own queries would praise any choice. From `FEWEST` queries on the
set is cut in two: examples chosen by either half are judged by the other. It is the regression that
is fitted, not the model; ridge and kernel stay. [ours]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.explain.query_set import QuerySet
from pipeline.finished import Finished
from pipeline.task import StoredInputs
from stages.stage import Part, Role
from stages.tables import KERNEL_DUAL
from storage.sql import quoted

DEFAULT = "kernel_regression"
"""The regression that is taken of several."""
FEWEST = 10
"""Queries of a set that is cut in halves."""
DRAWS = 10
"""Random choices of examples beside each cure."""


def halves(chosen: QuerySet) -> dict[int, int]:
    """By query_id the half of the set, 0 or 1, drawn within each label; none of a small set."""
    if len(chosen.rows) < FEWEST:
        return {}
    order = np.random.default_rng(0).permutation(len(chosen.rows))
    # Neighbours in this order are of one label, as far as possible, and go to different halves.
    by_label = sorted(order.tolist(), key=lambda at: str(chosen.rows[at]["label"]))
    return {chosen.ids[at]: place % 2 for place, at in enumerate(by_label)}


def forecast(
    run: Any,
    finished: Finished,
    chosen: QuerySet,
    worst: Mapping[tuple[str, str], Mapping[str, Sequence[int]]],
    suggested: Mapping[int, int],
    n_removed: int,
) -> dict[str, Any]:
    """What each method's choice of examples would give.

    Keys: regression (the instance of `kernel_regression`), is_cross_fitted, n_queries (of the set),
    n_others, draws, and `rows`: action ("none", "remove" or "relabel"), by (the method, or
    "random"), of (the worst for the "set", or for each of its "labels" alone), n_rows (the mean of
    the halves), and `set`, `others` and `all` with the mean of each measure of
    `stages.surrogate.refit.judged`; of random rows also `set_sd`, `others_sd` and `all_sd` over the
    draws. Of a run without such a regression `rows` is empty and `reason` says why.

    Args:
        run: The `pipeline.open_run.OpenedRun`.
        finished: The same run.
        chosen: The set.
        worst: By method and "set" or "labels": the lists `worst` and `worst_of_labels` of
            `pipeline.explain.set_scores.SetScores`.
        suggested: By example_id the label that is suggested, of flagged examples.
        n_removed: How many examples a cure changes at most.
    """
    fitted = [name for name in run.record["tables"] if finished.has(name, KERNEL_DUAL.name)]
    if not fitted:
        return {
            "rows": [],
            "reason": "no forecast: the run has no kernel_regression. Add `kernel_regression: {}` "
            "under `stages:` and run again.",
        }
    regression = DEFAULT if DEFAULT in fitted else fitted[0]
    drawn = _drawn(run, regression, n_removed)
    named = {i for lists in worst.values() for ids in lists.values() for i in ids}
    refit = refit_of(run, finished, regression, sorted(named.union(*map(set, drawn))))
    answer_of = dict(
        run.sql(
            "SELECT id, coalesce(label::DOUBLE, target) FROM tables.label WHERE role = 'query' "
            "AND coalesce(label::DOUBLE, target) IS NOT NULL"
        ).fetchall()
    )
    from stages.surrogate.refit import judged  # torch: only where there is a forecast

    is_labelled = np.isin(refit.query_ids, list(answer_of))
    query_ids = refit.query_ids[is_labelled]
    answers = np.array([answer_of[i] for i in query_ids.tolist()], np.float64)
    in_set = np.isin(query_ids, chosen.ids)
    if not in_set.any():
        return {"rows": [], "reason": f"no forecast: {regression} has no output for the set."}

    def measured(removed: Sequence[int], changed: Mapping[int, float]) -> dict[str, np.ndarray]:
        outputs = refit.after(np.array(removed, np.int64), changed)
        return judged(outputs[is_labelled], answers)

    half_of = halves(chosen)
    part_of = np.array([half_of.get(i, -1) for i in query_ids.tolist()])
    rows = [_row("none", None, 0, [(measured([], {}), in_set)], in_set)]
    for (method, of), lists in worst.items():
        for action in ("remove", "relabel"):
            tried = []
            sizes = []
            for part in ("0", "1") if half_of else ("all",):
                ids = [
                    i for i in dict.fromkeys(lists[part]) if action == "remove" or i in suggested
                ]
                changed = {i: float(suggested[i]) for i in ids} if action == "relabel" else {}
                judges = in_set & (part_of == 1 - int(part)) if half_of else in_set
                tried.append((measured([] if changed else ids, changed), judges))
                sizes.append(len(ids))
            if any(sizes):
                row = _row(action, method, float(np.mean(sizes)), tried, in_set)
                rows.append({**row, "of": of})
    draws = [
        _row("remove", "random", len(ids), [(measured(ids, {}), in_set)], in_set) for ids in drawn
    ]
    rows.append(_over_draws(draws))
    return {
        "regression": regression,
        "is_cross_fitted": bool(half_of),
        "n_queries": int(in_set.sum()),
        "n_others": int((~in_set).sum()),
        "draws": DRAWS,
        "rows": rows,
    }


def _row(
    action: str,
    by: str | None,
    n_rows: float,
    tried: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]],
    in_set: np.ndarray,
) -> dict[str, Any]:
    """A row of the forecast from fits, each with what it gives and the queries that judge it.

    Each query of the set is judged once, the others by every fit alike.
    """
    names, n_set, n_others = tried[0][0], int(in_set.sum()), int((~in_set).sum())
    means: dict[str, dict[str, float | None]] = {"set": {}, "others": {}, "all": {}}
    for name in names:
        of_set = np.concatenate([given[name][judges] for given, judges in tried]).mean()
        others = np.mean([given[name][~in_set].mean() for given, _ in tried]) if n_others else 0.0
        means["set"][name] = float(of_set)
        means["others"][name] = float(others) if n_others else None
        means["all"][name] = float((n_set * of_set + n_others * others) / (n_set + n_others))
    return {"action": action, "by": by, "n_rows": n_rows, **means}


def _over_draws(draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of random examples: means over draws, and standard deviations."""
    row = dict(draws[0])
    for of in ("set", "others", "all"):
        numbers = {name: [draw[of][name] for draw in draws] for name in row[of]}
        has_any = all(None not in values for values in numbers.values())
        row[of] = {n: float(np.mean(v)) if has_any else None for n, v in numbers.items()}
        row[f"{of}_sd"] = {
            n: float(np.std(v, ddof=1)) if has_any else None for n, v in numbers.items()
        }
    return row


def _drawn(run: Any, regression: str, count: int) -> list[list[int]]:
    """Random choices of `count` of the examples that the regression was fitted on."""
    rows = run.sql(f"SELECT id FROM tables.kernel_dual WHERE method = {quoted(regression)}")
    ids = np.sort(rows.to_arrow_table()["id"].to_numpy())
    generator = np.random.default_rng(1)
    return [
        ids[generator.choice(len(ids), min(count, len(ids) - 1), replace=False)].tolist()
        for _ in range(DRAWS)
    ]


def refit_of(run: Any, finished: Finished, regression: str, candidates: Sequence[int]) -> Any:
    """The regression, ready to be fitted without some of the candidates, ids that ascend.

    In primal form the shards that hold candidates are read alone.
    """
    from stages.surrogate.refit import dual_refit, primal_refit

    stage: Any = finished.stages[regression]
    kernel = tuple(name for name in stage.reads if name not in ("label", stage.fit))
    job, ids = finished.job(regression), np.array(candidates, np.int64)
    if stage.form != "primal":
        damping = finished.manifest(regression, "prediction").details["damping"]
        dampings = damping if isinstance(damping, list) else [damping]
        inputs = StoredInputs(job.inputs, "whole", finished.store)
        return dual_refit(inputs, kernel, stage.normalize, dampings, ids)
    by_shard = StoredInputs(job.inputs, "shard", finished.store)

    def at_shard(role: Role, index: int) -> StoredInputs:
        by_shard.begin(Part(role, index))
        return by_shard

    id_list = ", ".join(map(str, candidates))
    shards: dict[Role, list[int]] = {"query": [], "example": []}
    for role, index in run.sql(
        "SELECT DISTINCT t.role, s.shard FROM tables.text AS t JOIN provenance.shard AS s "
        f"USING (assay_file) WHERE t.role = 'query' OR t.id IN ({id_list}) ORDER BY ALL"
    ).fetchall():
        shards[role].append(int(index))
    return primal_refit(at_shard, shards, kernel, stage.normalize, stage.fit, ids)
