"""What tasks report beside their rows, kept with each shard and added up for the manifest.

Some of what a stage says by `details` and by `Inputs.tell` is added up over the shards of a table;
any other fact is the same in all of them, and the first shard speaks for the table:

    a stage says                  the manifest's details hold
    notices: ["...", ...]         notices: {"...": in how many tasks}
    n_not_finite: 3               n_not_finite: the sum; rows whose numbers cannot be stored
    n_left_out: 2                 n_left_out: the sum; rows that a shard's other inputs lack
    n_without_label: 1            n_without_label: the sum; queries of a block that have no label
    is_exact_bytes: false         inexact_shards: [keys of those shards]

A shard that is not exact in its bytes (its task ran out of memory and worked in smaller batches)
holds the right numbers with other last bits. It is exempt from the promise that any execution
writes the same bytes, and so is what is computed from it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SUMMED = ("n_not_finite", "n_left_out", "n_without_label")


@dataclass
class ShardFacts:
    """What a part's computation told: notices, rows not stored, whether bytes are exact."""

    notices: list[str] = field(default_factory=list)
    n_not_finite: int = 0
    n_left_out: int = 0
    is_exact_bytes: bool = True
    _is_told: bool = False

    def tell(
        self,
        notice: str | None = None,
        *,
        n_not_finite: int = 0,
        n_left_out: int = 0,
        is_exact_bytes: bool = True,
    ) -> None:
        """Adds what was told; see `stages.stage.Tell`."""
        self._is_told = True
        self.notices += [notice] if notice is not None else []
        self.n_not_finite += n_not_finite
        self.n_left_out += n_left_out
        self.is_exact_bytes &= is_exact_bytes

    def details(self) -> dict[str, Any]:
        """As facts for a manifest; none where nothing was told."""
        if not self._is_told:
            return {}
        facts: dict[str, Any] = {"notices": self.notices, "n_not_finite": self.n_not_finite}
        if self.n_left_out:
            facts["n_left_out"] = self.n_left_out
        return facts if self.is_exact_bytes else {**facts, "is_exact_bytes": False}


def of_task(details: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The facts of one task, which wrote the shard `key`, in the form that can be added up."""
    facts = dict(details)
    if "notices" in facts:
        facts["notices"] = dict(Counter(facts["notices"]))
    if not facts.pop("is_exact_bytes", True):
        facts["inexact_shards"] = [key]
    return facts


def together(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of several shards, in the order of the table, as those of one."""
    given = [facts for facts in shards if facts]
    if not given:
        return {}
    found = dict(given[0])
    counts: Counter[str] = Counter()
    for facts in given:
        counts.update(facts.get("notices", {}))
    if counts:
        found["notices"] = dict(sorted(counts.items()))
    for name in SUMMED:
        if any(name in facts for facts in given):
            found[name] = sum(facts.get(name, 0) for facts in given)
    inexact = sorted({key for facts in given for key in facts.get("inexact_shards", ())})
    if inexact:
        found["inexact_shards"] = inexact
    return found


def sentences(details: Mapping[str, Any]) -> list[str]:
    """What a person should hear of a table's facts once it is there."""
    told = [
        notice + (f" (in {count} tasks)" if count > 1 else "")
        for notice, count in details.get("notices", {}).items()
    ]
    bad = details.get("n_not_finite", 0)
    if bad:
        told.append(
            "rows without features, as a number was not finite or too large for the stored type: "
            f"{bad}; see the view `diagnostics`"
        )
    left_out = details.get("n_left_out", 0)
    if left_out:
        told.append(f"rows left out, as one of the tables that are read lacks them: {left_out}")
    inexact = details.get("inexact_shards", ())
    if inexact:
        told.append(f"shards that may differ from another run's in last bits: {len(inexact)}")
    return told
