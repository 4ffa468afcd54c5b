"""A fine-tuned head and a corpus that list the classes in different orders, through whole runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from runs import Rows, write_lines, write_run
from safetensors.torch import load_file, save_file

from pipeline import open_run
from pipeline.agreement import Agreement

# The order in which the head of the fixture lists them; a corpus sorts names.
NAMES = ("so-so", "good", "bad")
TEXTS = [
    f"{a} {b} {c}".strip()
    for a in ("the", "a very", "not")
    for b in ("good", "bad", "dull", "bright", "slow")
    for c in ("film", "but good")
]
STAGES: dict[str, Any] = {
    "prediction": {},
    "gradient": {"projection": {"dim": 64}},
    "ntk": {"projection": {"dim": 64}, "logit": "all"},
    "tracin": {},
    "label_issues": {},
    "ig": {"steps": 4},
    "retrain": {"last_blocks": 0, "rounds": 1, "training": {"epochs": 1}},
}


@pytest.fixture(scope="module")
def fine_tuned(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with these names, in this order, and `rows.json` with what it predicts."""
    folder = tmp_path_factory.mktemp("fine") / "model"
    shutil.copytree(saved("bert", "SequenceClassification"), folder)
    rename(folder, NAMES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    head = network.classifier
    with torch.no_grad():
        logits = [network(**tokenizer(t, return_tensors="pt")).logits[0] for t in TEXTS]
        # So that each class is predicted of some texts.
        head.bias -= torch.stack(logits).mean(0)
    network.save_pretrained(folder)
    predicted = [int((one - torch.stack(logits).mean(0)).argmax()) for one in logits]
    assert len(set(predicted)) == 3
    rows = [
        {"text": text, "label": NAMES[at], "id": row}
        for row, (text, at) in enumerate(zip(TEXTS, predicted, strict=True))
    ]
    (folder.parent / "rows.json").write_text(json.dumps(rows))
    return folder


def rename(folder: Path, names: tuple[str, ...]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(at): name for at, name in enumerate(names)}
    config["label2id"] = {name: at for at, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def run_of(fine_tuned: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a run over the rows, their labels renamed, with the classifier at `model`."""

    def write(
        names: Callable[[str], Any] = str,
        model: Path = fine_tuned,
        stages: Any = None,
        **corpus: Any,
    ) -> Path:
        rows: Rows = json.loads((fine_tuned.parent / "rows.json").read_text())
        rows = [{**row, "label": names(row["label"])} for row in rows]
        path = write_lines(tmp_path / "rows.jsonl", rows)
        source = {"path": path, "id": "id"}
        return write_run(
            tmp_path,
            corpus={**source, **corpus},
            queries={**source, "split": "train[:12]"},
            model={
                "path": str(model),
                "head": "checkpoint",
                "max_length": 24,
                # The projection of the head's own layer depends on the order of its rows.
                "train": {"layers": ["*encoder*"]},
            },
            stages=stages or {"prediction": {}},
        )

    return write


def accuracy(folder: Path) -> float:
    """The share of examples of which the model predicts the label."""
    ((share,),) = (
        open_run(folder)
        .sql(
            "SELECT avg((predicted = label)::INT) FROM predictions JOIN examples "
            "ON id = example_id WHERE role = 'example' AND source = 'model'"
        )
        .fetchall()
    )
    return float(share)


NUMBERS = {"bad": 0, "good": 1, "so-so": 2}


@pytest.mark.parametrize(
    ("names", "corpus", "told"),
    [
        (str, {}, "another order"),
        (str, {"classes": ["good", "so-so", "bad"]}, "another order"),
        (lambda name: f" {name.upper()}", {}, "but for case or space"),
        (NUMBERS.get, {"classes": ["bad", "good", "so-so"]}, "another order"),
        (NAMES.index, {}, "0 = so-so, 1 = good, 2 = bad"),
    ],
)
def test_predictions_follow_the_names(
    run_of: Any, assay: Any, tmp_path: Path, names: Any, corpus: Any, told: str
) -> None:
    config = run_of(names, **corpus)
    said = assay("run", config)
    assert told in " ".join(said.stderr.split())
    assert "chance" not in said.stdout
    assert accuracy(tmp_path / "run") == 1.0


def test_other_names_are_refused_at_plan_with_both_sets(run_of: Any, complaint: Any) -> None:
    config = run_of({"bad": "neg", "good": "pos", "so-so": "neutral"}.get)
    for command in ("plan", "run"):
        said = complaint(command, config)
        assert all(f"'{name}'" in said for name in (*NAMES, "neg", "pos", "neutral"))


def test_a_head_that_is_right_less_often_than_chance_is_told(
    run_of: Any, assay: Any, tmp_path: Path
) -> None:
    # Numbers say nothing of names: here they mean other classes than the head's.
    shifted = {name: (at + 1) % 3 for at, name in enumerate(NAMES)}
    said = assay("run", run_of(shifted.get))
    assert accuracy(tmp_path / "run") == 0.0
    assert "right on 0 of 30 labelled examples" in said.stdout
    assert "outputs are probably not the classes" in said.stdout


def test_chance_is_that_of_independent_labels_and_predictions() -> None:
    generator = np.random.default_rng(0)
    told = 0
    for _ in range(400):
        labels, predicted = generator.choice(3, 80, p=[0.7, 0.2, 0.1]), generator.choice(3, 80)
        cells = [(int(p), int(y), 1) for p, y in zip(predicted, labels, strict=True)]
        told += Agreement.of(cells).is_below_chance
    # Of independent draws 3 standard errors tell one in 740.
    assert told <= 3
    constant = Agreement.of([(0, 0, 5), (0, 1, 60)])
    assert constant.chance == constant.right
    assert not constant.is_below_chance
    assert Agreement.of([(0, 1, 30), (1, 0, 30)]).is_below_chance


@pytest.mark.slow
def test_every_stage_reads_the_outputs_in_the_order_of_the_corpus(
    run_of: Any, assay: Any, fine_tuned: Path, tmp_path: Path
) -> None:
    """A head whose rows and names are moved together is the same head.

    The order of sums changes in the last layer alone, so float32 results agree to 1e-4.
    """
    moved = Path(shutil.copytree(fine_tuned, tmp_path / "moved"))
    order = [2, 1, 0]
    rename(moved, tuple(NAMES[at] for at in order))
    weights = load_file(moved / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][order].clone()
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert tuple(NAMES[at] for at in order) == tuple(sorted(NAMES))
    found = {}
    for place, model in (("one", fine_tuned), ("other", moved)):
        config = run_of(model=model, stages=STAGES)
        assay("run", config, "--set", f"run={tmp_path / place}")
        found[place] = numbers(tmp_path / place)
    for table, (keys, values) in found["one"].items():
        other_keys, other = found["other"][table]
        assert keys == other_keys, table
        np.testing.assert_allclose(values, other, rtol=1e-3, atol=1e-4, err_msg=table)


def numbers(folder: Path) -> dict[str, tuple[list[Any], np.ndarray]]:
    """Keys and numbers of the views that the stages fill."""
    statements = {
        "predictions": "SELECT method, role, id, predicted_name, logits, loss FROM predictions",
        "attributions": "SELECT method, query_id, example_id, score FROM attributions",
        "tokens": "SELECT method, query_id, token_index, token, score FROM tokens",
        "subsets": "SELECT * EXCLUDE (run_id) FROM subsets",
        "label_issues": "SELECT example_id, suggested_label, label_score FROM label_issues",
    }
    found = {}
    for view, statement in statements.items():
        rows = open_run(folder).sql(f"{statement} ORDER BY ALL").fetchall()
        floats = [
            [x for cell in row for x in (cell if isinstance(cell, list) else [cell])]
            for row in rows
        ]
        keys = [[x for x in row if not isinstance(x, float)] for row in floats]
        found[view] = (keys, np.array([[x for x in r if isinstance(x, float)] for r in floats]))
        assert len(rows), view
    return found


def test_outputs_without_names_are_a_guess_that_is_told(
    run_of: Any, assay: Any, fine_tuned: Path, tmp_path: Path
) -> None:
    unnamed = Path(shutil.copytree(fine_tuned, tmp_path / "unnamed"))
    rename(unnamed, ("LABEL_0", "LABEL_1", "LABEL_2"))
    planned = assay("plan", run_of(model=unnamed))
    assert "This is a guess" in planned.stdout
    declared = run_of(model=unnamed, classes=list(NAMES))
    assert "guess" not in assay("plan", declared).stdout
    assay("run", declared)
    assert accuracy(tmp_path / "run") == 1.0
    assay("run", run_of(NAMES.index, model=unnamed), "--set", f"run={tmp_path / 'numbers'}")
    assert accuracy(tmp_path / "numbers") == 1.0


def test_a_run_repeats_from_its_resolved_config(run_of: Any, assay: Any, tmp_path: Path) -> None:
    assay("run", run_of(stages={"prediction": {}, "gradient": {}}))
    resolved = tmp_path / "run/config.yaml"
    assert "class_order" in resolved.read_text()
    again = assay("run", resolved)
    assert "0 tasks to do" in " ".join(again.stderr.split())
    assert accuracy(tmp_path / "run") == 1.0


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_a_regression_needs_one_output(
    saved: Any, assay: Any, complaint: Any, tmp_path: Path, n_outputs: int
) -> None:
    folder = saved("bert", "SequenceClassification", num_labels=n_outputs)
    rows = [{"text": text, "label": len(text) / 7} for text in TEXTS]
    config = write_run(
        tmp_path,
        corpus={"path": write_lines(tmp_path / "rows.jsonl", rows), "task": "regression"},
        model={"path": str(folder), "head": "checkpoint", "max_length": 24},
        stages={"prediction": {}},
    )
    if n_outputs == 1:
        assay("plan", config)
    else:
        assert "3 outputs" in complaint("plan", config)
