"""Which pairs have a margin to be chosen by."""

import duckdb

from pipeline.pair_selection import MARGIN


def test_answers_that_read_alike_have_no_margin() -> None:
    """As `max_length` cut them before they differ; the same numbers but for rounding."""
    alike = (-41.25, -41.250001)
    rows = [
        *((1, *alike, 30, 30, 0.69), (2, *alike, 30, 29, 0.69), (3, -41.25, -44.0, 30, 30, 0.69)),
        (4, None, None, 0, 0, None),
    ]
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE margins (id INT, chosen_logp DOUBLE, rejected_logp DOUBLE, "
            "chosen_tokens INT, rejected_tokens INT, loss DOUBLE)"
        )
        connection.executemany("INSERT INTO margins VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.execute(
            "CREATE VIEW answer_margins AS SELECT *, chosen_logp - rejected_logp AS margin, "
            "margin / 30 AS mean_margin, 0 AS reward_margin, 'example' AS role, 'm' AS method "
            "FROM margins"
        )
        found = connection.execute(MARGIN.format("'m'")).fetchall()
    assert [row for row, _ in sorted(found)] == [2, 3]
