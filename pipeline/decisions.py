"""The statements behind `flag` and `select`: which rows, in which order.

Rows are chosen by scores and values alone, and the texts of these few read then.
"""

from storage.sql import quoted


def flagged(instance: str, top: int | None, precision: float | None, has_pairs: bool) -> str:
    """The rows whose labels an instance of `label_issues` flags, the lowest scores first.

    Or the lowest `top` scores, or as many as have a mean `p_wrong` of `precision`.
    """
    lowest = "AND is_label_issue"
    if top is not None:
        lowest = f"ORDER BY label_score, example_id LIMIT {int(top)}"
    elif precision is not None:
        lowest = (
            "QUALIFY avg(p_wrong) OVER (ORDER BY label_score, example_id ROWS UNBOUNDED "
            f"PRECEDING) >= {float(precision)!r}"
        )
    pair = "e.text_b, " if has_pairs else ""
    return f"""
        SELECT e.example_id, e.source_id, e.text, {pair}i.given_label, i.suggested_label,
               i.label_score, i.is_label_issue, i.method, e.true_label
        FROM (FROM label_issues WHERE method = {quoted(instance)} {lowest}) AS i
        JOIN examples AS e USING (example_id) ORDER BY i.label_score, e.example_id"""


def selected(view: str, value: str, instance: str, count: int, per_class: bool) -> str:
    """The `count` rows of the largest `value`, a column of `view AS v`, for an instance.

    With `per_class` by their places in their classes, between 0 and 1, so that the first of any
    number have the same share of each class.
    """
    of_class = "PARTITION BY l.label" if per_class else ""
    place = (
        f"(row_number() OVER ({of_class} ORDER BY {value} DESC, v.example_id) - 0.5) "
        f"/ count(*) OVER ({of_class})"
    )
    return f"""
        SELECT e.example_id, e.source_id, e.text, e.label, e.label_name, c.value, c.rank
        FROM (SELECT example_id, value,
                     row_number() OVER (ORDER BY place, value DESC, example_id) AS rank
              FROM (SELECT v.example_id, {value} AS value, {place} AS place
                    FROM {view} AS v JOIN tables.label AS l ON l.id = v.example_id
                    WHERE v.method = {quoted(instance)} AND l.role = 'example')
              ORDER BY rank LIMIT {count}) AS c
        JOIN examples AS e USING (example_id) ORDER BY c.rank"""
