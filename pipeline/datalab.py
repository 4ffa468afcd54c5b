"""A run's findings in the columns of cleanlab's Datalab, for people and scripts that know those.

Source: "Datalab Issue Types" and `Datalab.get_issues` of cleanlab's documentation.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import RunError
from storage.names import near


def datalab(run: Any, methods: Sequence[str] = ()) -> Any:
    """Every example with what the run found of it, as `Datalab.get_issues()` calls it.

    In the order of the source, beside example_id and source_id; of each kind of issue
    `is_KIND_issue` and `KIND_score`, in [0, 1], low where the issue is severe. Columns are those of
    stages that the run has:

    - label (`label_issues`): also given_label and predicted_label.
    - outlier (`outliers`).
    - near_duplicate (`near_duplicates`): the score is 1 less the similarity to the nearest example,
      which distance_to_nearest_neighbor is, too, and 1 where none is near; near_duplicate_sets are
      the example_ids of the other rows of its cluster (Datalab's are places of rows).
    - class_imbalance, of corpora with classes: whether its class has less than a tenth of an even
      share; the score is that class's share of all rows, and 1 in other classes.

    Args:
        run: The opened run (`pipeline.open_run.OpenedRun`).
        methods: Stage instances to take, where the run has several of a stage.

    Raises:
        pipeline.errors.RunError: the run has several instances of a stage, and none is named; or
            one is named that has none of these findings.
    """
    known = {view: run.methods(view) for view in _PARTS}
    names = [method for present in known.values() for method in present]
    for method in methods:
        if method not in names:
            raise RunError(
                f"found the method {method}{near(method, names)}, expected one of "
                f"{', '.join(names) or 'none, as the run has no such findings'}. Correct it."
            )
    columns, joins = ["e.example_id", "e.source_id"], []
    for view, (chosen, join) in _PARTS.items():
        if known[view]:
            named = next((method for method in methods if method in known[view]), None)
            instance = run.choice(view, "method", named).replace("'", "''")
            columns.append(chosen)
            joins.append(join.format(instance))
    if run.task() == "classification":
        columns.append(
            "r.example_id IS NOT NULL AS is_class_imbalance_issue, "
            "CASE WHEN r.example_id IS NULL THEN 1.0 "
            "ELSE count(*) OVER (PARTITION BY e.label) / count(*) OVER () END "
            "AS class_imbalance_score"
        )
        joins.append(
            "LEFT JOIN (SELECT DISTINCT example_id FROM issues WHERE issue = 'rare class') AS r "
            "ON r.example_id = e.example_id"
        )
    return run.decided(
        f"SELECT {', '.join(columns)} FROM examples AS e "
        "JOIN tables.extra AS x ON x.id = e.example_id AND x.role = 'example' "
        f"{' '.join(joins)} ORDER BY x.row_number"
    )


_PARTS = {
    "label_issues": (
        "coalesce(l.is_label_issue, false) AS is_label_issue, l.label_score, l.given_label, "
        "l.suggested_label AS predicted_label",
        "LEFT JOIN label_issues AS l ON l.example_id = e.example_id AND l.method = '{}'",
    ),
    "outliers": (
        "coalesce(o.is_outlier, false) AS is_outlier_issue, o.outlier_score",
        "LEFT JOIN outliers AS o ON o.example_id = e.example_id AND o.method = '{}'",
    ),
    "near_duplicates": (
        "n.other_id IS NOT NULL AS is_near_duplicate_issue, "
        "coalesce(1 - n.similarity, 1.0) AS near_duplicate_score, "
        "coalesce(list_filter(n.members, lambda m: m <> e.example_id), []) AS near_duplicate_sets, "
        "1 - n.similarity AS distance_to_nearest_neighbor",
        "LEFT JOIN (SELECT *, list(example_id ORDER BY example_id) OVER (PARTITION BY cluster) "
        "AS members FROM near_duplicates WHERE method = '{}' AND other_id IS NOT NULL) AS n "
        "ON n.example_id = e.example_id",
    ),
}
"""Of a view the columns that it gives, and its join; `{}` is the stage instance."""
