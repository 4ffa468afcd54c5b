"""`assay evaluate` over a run of one's own vectors: what is printed, and that nothing is stored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

N_EXAMPLES, N_QUERIES = 70, 30
SMALL = ("examples=20", "points=6", "draws=3", "rounds=2", "kernel=[features]")


def source(folder: Path, name: str, n: int, seed: int, **changes: Any) -> dict[str, Any]:
    g = np.random.default_rng(seed)
    labels = g.integers(0, 2, n)
    rows = g.normal(size=(n, 6)) + 2 * labels[:, None]
    np.save(folder / f"{name}.npy", rows.astype(np.float32))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"label": int(label)}) + "\n" for label in labels))
    features = str(folder / f"{name}.npy")
    return {"path": str(path), "text": None, "features": features, **changes}


def made(folder: Path, assay: Any, **changes: Any) -> Path:
    """The folder of a finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {
        "run": str(folder / "run"),
        "corpus": source(folder, "train", N_EXAMPLES, 1),
        "queries": source(folder, "test", N_QUERIES, 2),
        "stages": {"kernel_regression": {"kernel": ["features"]}},
        "ray": {"engine": "in_process"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**raw, **changes}))
    assay("run", path)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    return made(tmp_path_factory.mktemp("evaluate"), assay)


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def test_json_says_what_was_computed_from_what(run: Path, assay: Any) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = assay("evaluate", run, "robustness", *settings(*SMALL), "--json")
    found = json.loads(result.stdout)
    assert list(found) == ["run_id", "metric", "fields", "facts", "rows", "details"]
    assert found["run_id"] == json.loads((run / "run.json").read_text())["run_id"]
    assert found["metric"] == "robustness"
    assert found["fields"]["examples"] == 20
    assert found["fields"]["ridge"] == "auto"
    assert found["facts"]["n_pool"] == N_EXAMPLES
    named = [(row["method"], row["semivalue"], row["utility"]) for row in found["rows"]]
    assert named == [
        ("leave_one_out", "loo", "accuracy"),
        ("leave_one_out", "loo", "cross_entropy"),
        ("freeshap", "shapley", "accuracy"),
        ("freeshap", "shapley", "cross_entropy"),
    ]
    assert len(found["details"]) == 4 * 6
    assert all(len(cell["value"]) == len(cell["stderr"]) == 3 for cell in found["details"])
    assert "robustness: 6 steps in" in result.stderr
    again = assay("evaluate", run, "robustness", *settings(*SMALL), "--json")
    assert json.loads(again.stdout) == found
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_person_sees_a_table_and_what_it_rests_on(run: Path, assay: Any) -> None:
    wanted = settings(*SMALL, "methods=[leave_one_out]", "utilities=[margin]")
    result = assay("evaluate", run, "robustness", *wanted)
    head, row = result.stdout.splitlines()[:2]
    assert head.split()[:4] == ["method", "semivalue", "utility", "non_robust"]
    assert row.split()[:3] == ["leave_one_out", "loo", "margin"]
    assert "fields: kernel [features]" in result.stdout
    assert f"facts: n_pool {N_EXAMPLES}" in result.stdout


def test_help_shows_an_example(assay: Any) -> None:
    result = assay("evaluate", "--help")
    assert "Example: assay evaluate runs/quickstart robustness" in " ".join(result.stdout.split())
    assay("evaluate", "runs/quickstart", code=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["robustnes"],
            "found no metric 'robustnes' (did you mean robustness?), expected one of agreement, "
            "contamination, curves, faithfulness, flags, lds, quantiles, removal, robustness, "
            "selection, specificity, support_size.",
        ),
        (["robustness", "--set", "exampls=3"], "exampls: found an unknown key"),
        (["robustness", "--set", "examples=x"], "robustness: examples: found 'x', expected"),
        (["robustness", "--set", "draws=2"], "robustness: draws: found 2, expected an odd number"),
        (["robustness", "--set", "methods=[ntk]"], "methods: found ntk, expected stages that"),
        (["selection", "--set", "resamples=0"], "resamples: found 0, expected at least 1"),
        (["robustness", "--set", "kernel=[features]"], "found 500, expected fewer than the 70"),
        (
            ["robustness", "--set", "kernel=[kernel_regression]"],
            "kernel: found kernel_regression, a table of id, role, source, logits, expected one of "
            "vectors, such as ntk",
        ),
        (
            ["contamination", "--set", "methods=[label]", "--set", "predictions=text"],
            "predictions: found text, a table of id, role, text, text_b, expected one of",
        ),
        (["robustness"], "found no table 'ntk', expected the name of one of kernel_regression"),
    ],
)
def test_what_is_wrong_is_said(run: Path, given: list[str], said: str, complaint: Any) -> None:
    assert said in complaint("evaluate", run, *given)


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    """A run with support spectra of a probe on vectors, a tenth of its labels made wrong."""
    folder = tmp_path_factory.mktemp("explained")
    corpus = source(folder, "train", N_EXAMPLES, 1, flip_labels={"fraction": 0.1})
    stages = {
        "probe": {"embedding": "features"},
        "prediction": {"embedding": "features"},
        "support": {"features": "features"},
        "tracin": {"layer": "last", "embedding": "features", "top_k": None},
        "similarity": {"features": "features", "top_k": None},
        "kernel_regression": {"kernel": ["features"]},
        "label_issues": {},
        "leave_one_out": {"kernel": ["features"]},
        "retrain": {
            **{"embedding": "features", "subsets": "random", "rounds": 6, "repeats": 2},
            "training": {"epochs": 2},
        },
        "cosine": {"stage": "support", "features": "features", "similarity": "cosine"},
    }
    return made(folder, assay, corpus=corpus, stages=stages)


@pytest.mark.parametrize(
    ("metric", "fields", "columns"),
    [
        ("specificity", (), ["overlap", "same_class"]),
        ("contamination", (), ["wrong", "outliers"]),
        ("removal", ("kernel=[features]",), ["change"]),
        ("removal", ("by=retrain", "embedding=features", "queries=3"), ["change"]),
        ("agreement", ("contrast='1'",), ["agreement", "local_end"]),
        ("support_size", (), ["spearman", "auc"]),
    ],
)
def test_metrics_of_explanations(
    explained: Path, assay: Any, metric: str, fields: tuple[str, ...], columns: list[str]
) -> None:
    wanted = settings("methods=[support, cosine]", "resamples=20", *fields)
    result = assay("evaluate", explained, metric, *wanted, "--json")
    found = json.loads(result.stdout)
    named = {row["method"] for row in found["rows"]}
    assert named == {"support", "cosine"} | ({"confidence"} if metric == "support_size" else set())
    for row in found["rows"]:
        for column in columns:
            low, value, high = (row[f"{column}{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high
    shown = assay("evaluate", explained, metric, *wanted)
    assert shown.stdout.splitlines()[0].split()[0] == "method"


@pytest.mark.parametrize(
    ("metric", "fields", "said"),
    [
        ("lds", ("predictions=prediction", "kernel=[features]"), "lds"),
        ("flags", (), "auc"),
        ("curves", ("methods=[tracin, leave_one_out]", "kernel=[features]"), "accuracy"),
        ("quantiles", ("methods=[tracin]", "kernel=[features]", "quantiles=3"), "loss"),
    ],
)
def test_metrics_of_scores(
    explained: Path, assay: Any, metric: str, fields: tuple[str, ...], said: str
) -> None:
    found = json.loads(
        assay("evaluate", explained, metric, *settings("resamples=5", *fields), "--json").stdout
    )
    assert all(isinstance(row[said], float) for row in found["rows"])
    named = {row["method"] for row in found["rows"]}
    if metric == "lds":
        # Methods are those of the run, and each speaks for what its stage declares.
        kernel = {"kernel_leave_one_out", "kernel_refit"}
        assert named == {"tracin", "similarity", "leave_one_out", *kernel}
        speaks = {"tracin": "prediction", "similarity": "likeness", "leave_one_out": "label"}
        assert found["fields"]["explained"] == speaks
        assert (found["facts"]["n_subsets"], found["facts"]["repeats"]) == (6, 2)
    if metric == "flags":
        assert named == {"label_issues", "leave_one_out"}
        assert found["facts"]["n_wrong"] == 7


def test_a_table_beside_an_instances_first(explained: Path, complaint: Any) -> None:
    said = complaint("evaluate", explained, "support_size", *settings("methods=[prediction]"))
    assert "found no table 'support_size' of 'prediction', expected an instance that" in said
    assert "writes it: cosine, support. Name one" in said
    said = complaint("evaluate", explained, "specificity", *settings("methods=[prediction]"))
    assert "prediction: found a table with the columns id, role, source, logits, expected" in said


def test_a_folder_without_a_run(tmp_path: Path, complaint: Any) -> None:
    assert "found no run.json" in complaint("evaluate", tmp_path, "robustness")


def test_a_run_that_is_not_whole(tmp_path: Path, assay: Any, complaint: Any) -> None:
    run = made(tmp_path, assay)
    record = json.loads((run / "run.json").read_text())
    record["tables"]["corpus"]["features"]["manifest"] = None
    del record["seal"]
    (run / "run.json").write_text(json.dumps(record))
    said = complaint("evaluate", run, "robustness", *settings("kernel=[features]"))
    assert "found that the table 'features' is not whole yet" in said
    assert "Go on with `assay run" in said


def test_a_corpus_that_the_metric_cannot_work_with(
    tmp_path: Path, assay: Any, complaint: Any
) -> None:
    run = made(
        tmp_path,
        assay,
        corpus=source(tmp_path, "train", N_EXAMPLES, 1, task="regression"),
    )
    said = complaint("evaluate", run, "robustness", *settings("kernel=[features]"))
    assert "found a corpus with task: regression, expected classification for robustness" in said
