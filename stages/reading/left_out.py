"""Rows that a choice leaves out before it begins, as `select` does."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64


def left_out(
    issues: pa.Table | None, flag: str, near: pa.Table | None
) -> Int64[np.ndarray, " rows"]:
    """Ids of examples whose column `flag` is true in `issues`, and of near duplicates of others.

    Of a cluster in `near` the first that is not flagged stands for it. Without a table nothing is
    left out for its sake.
    """
    flagged = np.zeros(0, np.int64)
    if issues is not None:
        flagged = issues.filter(issues[flag])["example_id"].to_numpy()
    if near is None:
        return flagged
    near = near.filter(pc.invert(pc.is_in(near["example_id"], pa.array(flagged))))
    first = near.group_by("cluster").aggregate([("example_id", "min")])["example_id_min"]
    repeated = near["example_id"].to_numpy()
    return np.concatenate([flagged, repeated[~np.isin(repeated, first.to_numpy())]])
