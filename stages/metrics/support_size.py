"""The relation of a support set's size to the confidence and correctness of the prediction.

A large set is read as "the query is easy to tell from the other class" [said of arXiv:2408.05976 in
its reviews]. If so, sizes rise with confidence, the largest softmax probability, and are larger
where the prediction is right. For each instance of `support`:

- contrast `general`: the size of the general set; `runner_up`: of the set towards the class with
  the query's second largest logit.
- size `count`: as it is; `share`: of the examples that are labelled with the predicted class, which
  no set can exceed, so that rare classes can be compared with frequent ones.
- spearman: rank correlation of size and confidence over the queries; auc: the probability that the
  size of a right prediction is larger than that of a wrong one, ties counting half, over the
  labelled queries; gain: that less the AUC of the confidence itself, the baseline that costs
  nothing, on the same draws of queries, so that its interval is narrower than theirs apart.

Source: ours; what is tested is said of arXiv:2408.05976.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from stages.metrics.bootstrap import bootstrap
from stages.metrics.explanations import Methods, read_logits
from stages.metrics.metric import Result
from stages.metrics.ranks import auc, spearman
from stages.ranking.spectrum import runner_up
from stages.reading.supervision import count_classes, read_labels
from stages.stage import DataError, Inputs, Steps
from stages.tables import GENERAL


@dataclass(frozen=True)
class SupportSize(Methods):
    """Rank correlation of support sizes with confidence, and their AUC for correctness."""

    methods: tuple[str, ...] = ("support",)
    """Instances of `support`."""
    predictions: str = "prediction"
    """Instance whose predictions the sets belong to."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The tables of sizes, the predictions and the labels."""
        sizes = (f"{name}.support_size" for name in self.methods)
        return (*sizes, self.predictions, "label")

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """Rows for the confidence and for each method, contrast and size; details are the sizes.

        Raises:
            DataError: no query has a prediction.
        """
        ids, logits = read_logits(inputs, self.predictions, "query")
        predicted = logits.argmax(1)
        confidence = torch.softmax(torch.from_numpy(logits), 1).max(1).values.numpy()
        known, labels = read_labels(inputs, "query", count_classes(inputs))
        label_of = dict(zip(known.tolist(), labels.tolist(), strict=True))
        is_known = np.array([query in label_of for query in ids.tolist()])
        is_right = predicted == [label_of.get(query, -1) for query in ids.tolist()]
        own = Counter(read_labels(inputs, "example", count_classes(inputs))[1].tolist())
        of_class = np.array([max(1, own[c]) for c in predicted.tolist()])
        contrasts = {"general": np.full(len(ids), GENERAL), "runner_up": runner_up(logits)}

        def judged(sizes: np.ndarray, at: Int64[np.ndarray, " queries"]) -> dict[str, Any]:
            """Spearman, AUC and gain for the sizes of the queries with these row numbers."""
            certain = confidence[at]
            labelled = is_known[at]
            right, of_labelled = is_right[at][labelled], sizes[labelled]
            correlation = bootstrap(
                lambda rows: spearman(sizes[rows], certain[rows]),
                *(len(at), self.resamples, self.seed),
            )
            area = bootstrap(
                lambda rows: auc(of_labelled[rows], right[rows]),
                *(len(right), self.resamples, self.seed),
            )
            sure = certain[labelled]
            gain = bootstrap(
                lambda rows: auc(of_labelled[rows], right[rows]) - auc(sure[rows], right[rows]),
                *(len(right), self.resamples, self.seed),
            )
            return {
                "queries": len(at),
                "mean": float(sizes.mean()),
                **correlation.named("spearman"),
                **area.named("auc"),
                **gain.named("gain"),
            }

        stepped(0, len(self.methods))
        everything = np.arange(len(ids))
        named = {"method": "confidence", "contrast": None, "size": None}
        rows = [{**named, **judged(confidence, everything)}]
        details = []
        for nth, method in enumerate(self.methods):
            table = inputs.table(f"{method}.support_size")
            columns = (table[name].to_pylist() for name in ("query_id", "contrast", "n_support"))
            size_of = {(query, contrast): n for query, contrast, n in zip(*columns, strict=True)}
            for kind, of_query in contrasts.items():
                keys = list(zip(ids.tolist(), of_query.tolist(), strict=True))
                at = np.array([row for row in everything if keys[row] in size_of], np.int64)
                if not len(at):
                    continue
                counts = np.array([size_of[keys[row]] for row in at], np.float64)
                named = {"method": method, "contrast": kind}
                rows.append({**named, "size": "count", **judged(counts, at)})
                rows.append({**named, "size": "share", **judged(counts / of_class[at], at)})
                details += [
                    {
                        **named,
                        "query_id": int(ids[row]),
                        "n_support": int(n),
                        "n_class": int(of_class[row]),
                        "confidence": float(confidence[row]),
                        "is_right": bool(is_right[row]) if is_known[row] else None,
                    }
                    for row, n in zip(at, counts, strict=True)
                ]
            stepped(nth + 1, len(self.methods))
        if not details:
            raise DataError(
                f"methods: found no size of a set of a query that {self.predictions} predicts, "
                "expected some. Name the predictions that the instances of support read."
            )
        facts = {
            "n_queries": len(ids),
            "n_labelled": int(is_known.sum()),
            "accuracy": float(is_right[is_known].mean()) if is_known.any() else None,
        }
        return Result(rows, facts, details)


METRIC = SupportSize
