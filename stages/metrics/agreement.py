"""The share of an explanation's examples that have the query's topic: agreement of topics.

For each method, the share of a query's listed examples that share a topic with it, a mean over the
queries with a list, and beside it the share of the queries whose most local example does: the end
of a spectrum, of other methods the listed example with the largest local score. By chance an
example agrees as often as the query's topic occurs among the examples.

With the label for a topic this is the identical class test of Hanawa et al. 2021, arXiv:2006.04528,
which counts the first example of a list alone. Where classes were merged before the model was
trained, and `topic` names the column of the finer ones, it is their identical subclass test:
whether a method finds examples of the same finer class, which no label told the model. The true
label is taken where the corpus knows one, so that a wrong label does not count as agreement.

Source: the classes of arXiv:2006.04528; its use for supports (arXiv:2408.05976) is ours.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from stages.metrics.explanations import Explanations, mean_length
from stages.metrics.metric import Result
from stages.stage import DataError, Inputs, Role, Steps
from storage.names import near


@dataclass(frozen=True)
class Agreement(Explanations):
    """The share of listed examples that share a topic with the query, for each method.

    Higher is better. Examples and queries without a topic are left out.
    """

    topic: str | None = None
    """Column of the corpus and of the queries; null takes the label, the true one where known."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, and those that hold topics."""
        return (*self.methods, "label") if self.topic is None else (*self.methods, "label", "extra")

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each method; details are the shares of single queries.

        Raises:
            DataError: there is no such column, or no query with a topic.
        """
        of_example, of_query = self._topics(inputs, "example"), self._topics(inputs, "query")
        often = Counter(of_example.values())
        stepped(0, len(self.methods))
        rows, details = [], []
        for nth, (method, every) in enumerate(self.lists(inputs).items()):
            lists = {query: listed for query, listed in every.items() if query in of_query}
            found: list[dict[str, Any]] = []
            for query, listed in lists.items():
                topic = of_query[query]
                of_listed = [of_example[i] for i in listed.ids.tolist() if i in of_example]
                at_end = of_example.get(listed.local_end)
                if of_listed:
                    found.append(
                        {
                            "method": method,
                            "query_id": query,
                            "agreement": of_listed.count(topic) / len(of_listed),
                            "local_end": None if at_end is None else float(at_end == topic),
                            "chance": often[topic] / len(of_example),
                        }
                    )
            ends = [one["local_end"] for one in found if one["local_end"] is not None]
            rows.append(
                {
                    "method": method,
                    "queries": len(found),
                    "length": mean_length(lists),
                    **self.mean([one["agreement"] for one in found]).named("agreement"),
                    **self.mean(ends).named("local_end"),
                    "chance": self.mean([one["chance"] for one in found]).value,
                }
            )
            details += found
            stepped(nth + 1, len(self.methods))
        facts = {"topic": self.topic or "label", "n_topics": len(often), "n_queries": len(of_query)}
        return Result(rows, facts, details)

    def _topics(self, inputs: Inputs, role: Role) -> dict[int, str]:
        """The topic of every row of `role` that has one, by the row's id."""
        if self.topic is None:
            table = inputs.table("label", role)
            column = pc.coalesce(table["true_label"], table["label"])
        else:
            table = inputs.table("extra", role)
            if self.topic not in table.column_names:
                others = table.column_names[4:]
                raise DataError(
                    f"topic: found no column {self.topic} among the {role} rows"
                    f"{near(self.topic, others)}, expected one of {', '.join(others) or 'none'}. "
                    "Name another, or leave it "
                    "out to compare labels."
                )
            column = table[self.topic]
        triples = zip(
            *(values.to_pylist() for values in (table["id"], table["role"], column)), strict=True
        )
        topics = {
            row: _name(topic)
            for row, row_role, topic in triples
            if row_role == role and topic is not None and topic == topic
        }
        if not topics:
            raise DataError(
                f"topic: found no {role} with a topic, expected at least one. Label some rows, or "
                "name a column as topic."
            )
        return topics


def _name(topic: Any) -> str:
    """A topic as text; of numbers that stand beside missing ones 1.0 is 1, as pandas writes it."""
    return str(int(topic) if isinstance(topic, float) and topic.is_integer() else topic)


METRIC = Agreement
