"""Facts that tasks report beside their rows, kept with each shard, added up for the manifest.

Some facts that a stage gives by `details` and by `Inputs.tell` are added up over the shards of a
table; any other fact is the same in all of them, and that of the first shard is taken:

    a stage gives                 the manifest's details hold
    notices: ["...", ...]         notices: {"...": in how many tasks}
    n_not_finite: 3               n_not_finite: the sum; rows whose numbers cannot be stored
    n_left_out: 2                 n_left_out: the sum; rows that a shard's other inputs lack
    n_without_tokens: 1           n_without_tokens: the sum; queries without a token of their own
    n_without_label: 1            n_without_label: the sum; queries of a block that have no label
    is_exact_bytes: false         inexact_shards: [keys of those shards]
    efficiency: {utility: sums}   efficiency: {utility: the sums, added up, and the gap}

A shard that is not exact in its bytes (its task ran out of memory and worked in smaller batches)
holds the right numbers with other last bits. It is exempt from the promise that any execution
writes the same bytes, and so is what is computed from it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.game.efficiency import sentence, with_gap

SUMMED = ("n_not_finite", "n_left_out", "n_without_tokens", "n_without_label")


@dataclass
class ShardFacts:
    """Facts about one part: notices, rows that are not stored, whether its bytes are exact."""

    notices: list[str] = field(default_factory=list)
    n_not_finite: int = 0
    n_left_out: int = 0
    n_without_tokens: int = 0
    is_exact_bytes: bool = True
    efficiency: dict[str, dict[str, Any]] = field(default_factory=dict)
    _has_facts: bool = False

    def tell(
        self,
        notice: str | None = None,
        *,
        n_not_finite: int = 0,
        n_left_out: int = 0,
        n_without_tokens: int = 0,
        is_exact_bytes: bool = True,
        efficiency: Mapping[str, Mapping[str, int | float]] | None = None,
    ) -> None:
        """Adds facts; see `stages.stage.Tell`."""
        self._has_facts = True
        self.notices += [notice] if notice is not None else []
        self.n_not_finite += n_not_finite
        self.n_left_out += n_left_out
        self.n_without_tokens += n_without_tokens
        self.is_exact_bytes &= is_exact_bytes
        if efficiency is not None:
            self.efficiency = _gaps([self.efficiency, efficiency])

    def details(self) -> dict[str, Any]:
        """The facts as a shard keeps them; empty where `tell` was never called."""
        if not self._has_facts:
            return {}
        facts: dict[str, Any] = {"notices": self.notices, "n_not_finite": self.n_not_finite}
        for name in ("n_left_out", "n_without_tokens"):
            if getattr(self, name):
                facts[name] = getattr(self, name)
        if self.efficiency:
            facts["efficiency"] = self.efficiency
        return facts if self.is_exact_bytes else {**facts, "is_exact_bytes": False}


def of_task(details: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The facts of the task that wrote the shard `key`, in the form that `together` adds up."""
    facts = dict(details)
    if "notices" in facts:
        facts["notices"] = dict(Counter(facts["notices"]))
    if not facts.pop("is_exact_bytes", True):
        facts["inexact_shards"] = [key]
    return facts


def together(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of a table or a merged shard: those of its shards, in order, added up."""
    with_facts = [facts for facts in shards if facts]
    if not with_facts:
        return {}
    total = dict(with_facts[0])
    counts: Counter[str] = Counter()
    for facts in with_facts:
        counts.update(facts.get("notices", {}))
    if counts:
        total["notices"] = dict(sorted(counts.items()))
    for name in SUMMED:
        if any(name in facts for facts in with_facts):
            total[name] = sum(facts.get(name, 0) for facts in with_facts)
    inexact = sorted({key for facts in with_facts for key in facts.get("inexact_shards", ())})
    if inexact:
        total["inexact_shards"] = inexact
    if any("efficiency" in facts for facts in with_facts):
        total["efficiency"] = _gaps([facts.get("efficiency", {}) for facts in with_facts])
    return total


def _gaps(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The sums of gaps of several parts, by utility, added up."""
    names = ("n", "total", "total_sq", "total_allowed")
    utilities = {utility: None for part in parts for utility in part}
    of_utility = {name: [part[name] for part in parts if name in part] for name in utilities}
    return {
        utility: with_gap(
            {name: sum(one[name] for one in sums) for name in names if name in sums[0]}
        )
        for utility, sums in of_utility.items()
    }


def sentences(details: Mapping[str, Any]) -> list[str]:
    """Notices for the user about a table, from the facts in its manifest."""
    notices = [
        notice + (f" (in {count} tasks)" if count > 1 else "")
        for notice, count in details.get("notices", {}).items()
    ]
    bad = details.get("n_not_finite", 0)
    if bad:
        notices.append(
            "rows without features, as a number was not finite or too large for the stored type: "
            f"{bad}; see the view `diagnostics`"
        )
    left_out = details.get("n_left_out", 0)
    if left_out:
        notices.append(f"rows left out, as one of the tables that are read lacks them: {left_out}")
    without_tokens = details.get("n_without_tokens", 0)
    if without_tokens:
        notices.append(f"left out, as they have no token that could have a score: {without_tokens}")
    inexact = details.get("inexact_shards", ())
    if inexact:
        notices.append(f"shards that may differ from another run's in last bits: {len(inexact)}")
    gaps = details.get("efficiency", {}).items()
    return notices + [told for name, facts in gaps if (told := sentence(name, facts)) is not None]
