"""The section on near duplicates, outliers and what else may be wrong beside labels."""

from dataclasses import dataclass

from pipeline.page.asked import Asked, Rows
from pipeline.page.document import significant
from pipeline.page.subject import NOUNS, Subject, flag

CLUSTERS, OF_CLUSTER = 10, 4
"""Clusters of near duplicates, and texts of each."""
PAIRS = 10
"""Twins with different labels, and outliers, that are shown."""


LABEL = "coalesce({0}.label_name, 'target ' || format('{{:.6g}}', {0}.target))"
"""SQL of the label or target of an example, of a view that `{0}` names."""


@dataclass(frozen=True)
class Twins:
    """What the section shows."""

    issues: Asked
    contradictory: Asked
    pairs: Rows
    clusters: Asked | None
    groups: list[Rows]
    outliers: Asked | None
    far: Rows
    nouns: str
    """What the task calls the labels of rows."""


def twins(subject: Subject) -> Twins | None:
    """What the view `issues` holds, clusters of near duplicates, and outliers.

    None of rows without texts that have no outliers.
    """
    if not subject.has_texts and subject.instance("outliers") is None:
        return None
    issues = subject.ask(
        """
        SELECT issue, count(DISTINCT example_id) AS n,
               count(DISTINCT example_id) / (SELECT count(*) FROM tables.label
                                             WHERE role = 'example') AS share
        FROM issues GROUP BY ALL ORDER BY n DESC, issue"""
    )
    contradictory = subject.ask(
        f"""
        SELECT i.example_id, i.other_id, e.text, e.text_b, e.source_id,
               {LABEL.format("e")} AS label,
               o.text AS other_text, o.source_id AS other_source_id,
               {LABEL.format("o")} AS other_label
        FROM (SELECT example_id, other_id FROM issues
              WHERE issue LIKE '%duplicate with another label' AND other_role = 'example'
                AND example_id < other_id
              ORDER BY example_id LIMIT {PAIRS}) AS i
        JOIN examples AS e ON e.example_id = i.example_id
        JOIN examples AS o ON o.example_id = i.other_id ORDER BY i.example_id"""
    )
    clusters, of_clusters = None, []
    if (near := subject.instance("near_duplicates")) is not None:
        clusters = subject.ask(
            f"""
            WITH large AS (
                SELECT cluster, count(*) AS n FROM {near.rows} AND cluster IS NOT NULL
                GROUP BY cluster HAVING count(*) > 1 ORDER BY n DESC, cluster LIMIT {CLUSTERS}
            )
            SELECT d.cluster, l.n, d.example_id, d.similarity, e.source_id, e.text, e.text_b,
                   {LABEL.format("e")} AS label
            FROM (FROM {near.rows}) AS d JOIN large AS l USING (cluster)
            JOIN examples AS e USING (example_id)
            QUALIFY row_number() OVER (PARTITION BY d.cluster ORDER BY d.example_id) <= {OF_CLUSTER}
            ORDER BY l.n DESC, d.cluster, d.example_id"""
        )
        rows = flag(subject, clusters.rows)
        of_clusters = [
            [row for row in rows if row["cluster"] == cluster]
            for cluster in dict.fromkeys(row["cluster"] for row in rows)
        ]
    outliers, far = None, []
    if (found := subject.instance("outliers")) is not None:
        outliers = subject.ask(
            f"""
            SELECT o.example_id, o.outlier_score, o.is_outlier, e.source_id, e.text, e.text_b,
                   {LABEL.format("e")} AS label
            FROM (FROM {found.rows} ORDER BY outlier_score, example_id LIMIT {PAIRS}) AS o
            JOIN examples AS e USING (example_id) ORDER BY o.outlier_score, o.example_id"""
        )
        far = [
            {
                **row,
                "bar": None,
                "facts": " · ".join(
                    part
                    for part in (
                        row["label"],
                        f"score {significant(row['outlier_score'])}",
                        "outlier" if row["is_outlier"] else "",
                        f"id {row['source_id']}" if row["text"] or row["text_b"] else "",
                    )
                    if part
                ),
            }
            for row in flag(subject, outliers.rows)
        ]
    pairs = contradictory.rows
    ids = [row[name] for row in pairs for name in ("example_id", "other_id")]
    doubts = subject.doubts(ids)
    for row in pairs:
        row["flagged"], row["other_flagged"] = (
            doubts.get(row[name]) for name in ("example_id", "other_id")
        )
    nouns = NOUNS[subject.task][1]
    return Twins(issues, contradictory, pairs, clusters, of_clusters, outliers, far, nouns)
