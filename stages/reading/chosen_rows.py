"""The rows of a shard that features are computed of, where a run chooses some."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.stage import Inputs


def text_of(inputs: Inputs, rows: str | None) -> pa.Table:
    """The part's rows of `text`: all queries, and the examples that `rows` names.

    `rows` is an instance of `row_selection`; None takes all examples.
    """
    text = inputs.table("text")
    if rows is None:
        return text
    chosen = inputs.table(rows)["id"].to_numpy()
    is_chosen = pa.array(np.isin(text["id"].to_numpy(), chosen))
    return text.filter(pc.or_(pc.equal(text["role"], "query"), is_chosen))
