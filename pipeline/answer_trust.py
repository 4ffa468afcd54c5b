"""Whether flags of answers can be trusted: what tells answers that were made bad on purpose.

`answer_issues` measures it before it judges: the area under the ROC curve between the rows as they
are and those of each kind that `planted_answers` made of them, by fits that have not seen the row.
"""

import json
from collections.abc import Mapping
from typing import Any

from storage.sql import quoted

TOLD = 0.7
"""Least area of a kind of which rows are flagged (`stages.surrogate.answer_mixture.TOLD_APART`)."""


def areas_of(run: Any, method: str) -> dict[str, float]:
    """The area of each kind, of an instance of `answer_issues`; empty of an earlier version's."""
    found = run.sql(
        f"SELECT details FROM runs WHERE instance = {quoted(method)} AND \"table\" = 'answer_issue'"
    ).fetchall()
    details = json.loads(found[0][0]) if found and found[0][0] else {}
    areas: dict[str, float] = details.get("areas", {})
    return areas


def distrust(areas: Mapping[str, float]) -> str | None:
    """A sentence about the kinds of bad answers that cannot be told; None where all can be."""
    untold = {kind: area for kind, area in areas.items() if area < TOLD}
    if not untold:
        return None
    listed = ", ".join(f"{kind} ({area:.2f})" for kind, area in untold.items())
    if len(untold) < len(areas):
        return (
            f"Of answers that were made bad on purpose, these are hardly told from the rows as "
            f"they are: {listed}; 0.5 would be chance. Few, if any, are flagged for such a reason."
        )
    return (
        "The model does not tell answers that were made bad on purpose from the rows as they are: "
        f"{listed}; 0.5 would be chance. So p_wrong says little, and so do flags, but for empty "
        "answers: judge with a model that knows such texts, or raise rows of planted_answers."
    )
