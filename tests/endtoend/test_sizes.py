"""What a run chooses by the size of its corpus: said by the plan, kept when rows are appended."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import write_lines, write_run

from pipeline.open_run import open_run
from stages.features.short_features import ShortFeatures
from stages.stage import ConfigError, Size
from stages.values.freeshap import FreeShap

FEATURES = {"kernel": ["features"]}
STAGES: dict[str, Any] = {
    "kernel_regression": FEATURES,
    "label_issues": {},
    "freeshap": {**FEATURES, "rounds": 2, "utilities": ["margin"]},
}
LONG = 12
JUDGED = "SELECT example_id, label_score, p_wrong, margin FROM label_issues ORDER BY example_id"


@pytest.fixture(autouse=True)
def many_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty rows count as many, and six numbers as short."""
    monkeypatch.setattr("stages.predictions.kernel_regression.DUAL_EXAMPLES", 40)
    monkeypatch.setattr("stages.game.fields.KERNEL_EXAMPLES", 40)
    monkeypatch.setattr("stages.game.fields.DIRECTIONS", 3)
    monkeypatch.setattr("stages.surrogate.default_kernel.FEW_EXAMPLES", 40)
    monkeypatch.setattr("pipeline.sizes.SMALL", 40)


def corpus(folder: Path, n: int, n_queries: int = 9) -> dict[str, Any]:
    """The first `n` of 90 rows in three classes, an eighth of them wrong, and some queries."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for role, seed, some in (("corpus", 0, 90), ("queries", 1, n_queries)):
        g = np.random.default_rng(seed)
        classes = g.integers(3, size=some)
        vectors = np.eye(3, LONG)[classes] * 2 + g.normal(size=(some, LONG)) / 2
        given = np.where(np.arange(some) % 8 == 3, (classes + 1) % 3, classes)
        rows = [{"id": i, "label": f"c{label}"} for i, label in enumerate(given)]
        some = n if role == "corpus" else some
        np.save(folder / f"{role}.npy", vectors[:some].astype(np.float32))
        path = write_lines(folder / f"{role}.jsonl", rows[:some])
        made[role] = {
            "path": path,
            "id": "id",
            "text": None,
            "features": str(folder / f"{role}.npy"),
        }
    return made


def given(folder: Path, n: int, stages: dict[str, Any] = STAGES, **raw: Any) -> Path:
    return write_run(folder, **corpus(folder, n), shard_size=10, stages=stages, **raw)


def resolved(folder: Path) -> dict[str, Any]:
    stages: dict[str, Any] = yaml.safe_load((folder / "run/config.yaml").read_text())["stages"]
    return stages


def plan_of(assay: Any, config: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(assay("plan", config, "--json").stdout)
    return found


@pytest.mark.slow
def test_forms_and_directions_follow_the_number_of_rows(tmp_path: Path, assay: Any) -> None:
    few, many = given(tmp_path / "few", 40), given(tmp_path / "many", 41)
    assay("run", few)
    stages = resolved(few.parent)
    assert stages["kernel_regression"]["form"] == "dual"
    assert stages["freeshap"]["directions"] is None
    assert not {"kernel_fit", "short_features"} & set(stages)
    assay("run", many)
    stages = resolved(many.parent)
    assert stages["kernel_regression"]["form"] == "primal"
    assert stages["freeshap"]["directions"] == stages["short_features"]["dim"] == 6
    assert {"feature_sums", "target_sums", "kernel_fit", "leading_directions"} <= set(stages)
    rows = {row["stage"]: row for row in plan_of(assay, many)["stages"]}
    assert all(row["tasks"] == 0 for row in rows.values())
    assert "41 examples are more than 40" in rows["kernel_regression"]["how"]
    assay("run", many.parent / "run/config.yaml")
    assert resolved(many.parent) == stages


@pytest.mark.slow
def test_rows_appended_across_a_threshold_change_no_features(tmp_path: Path, assay: Any) -> None:
    config = given(tmp_path / "run", 30)
    assay("run", config)
    given(tmp_path / "run", 60)
    planned = plan_of(assay, config)
    kept = [note for note in planned["notes"] if "keeps directions" in note]
    assert len(kept) == 1
    assert "freeshap keeps directions: null" in kept[0]
    assert "6 would now be chosen" in kept[0]
    said = assay("run", config).stderr
    assert kept[0] in " ".join(said.split())
    stages = resolved(tmp_path / "run")
    assert stages["kernel_regression"]["form"] == "primal"
    assert stages["freeshap"]["directions"] is None
    # As chosen by a run that has no other memory than the store.
    elsewhere = yaml.safe_load(config.read_text())
    elsewhere["store"], elsewhere["run"] = str(tmp_path / "run/run/store"), str(tmp_path / "other")
    config.write_text(yaml.safe_dump(elsewhere))
    assert all(row["tasks"] == 0 for row in plan_of(assay, config)["stages"])


def test_rows_appended_to_many_add_sums_and_keep_the_old_ones(tmp_path: Path, assay: Any) -> None:
    stages = {"kernel_regression": FEATURES, "label_issues": {}}
    config = given(tmp_path / "run", 80, stages)
    assay("run", config)
    given(tmp_path / "run", 90, stages)
    tasks = {row["stage"]: row for row in plan_of(assay, config)["stages"]}
    # Eight shards make a part; the ninth is one of its own, and the root is computed again.
    assert (tasks["feature_sums"]["tasks"], tasks["feature_sums"]["reused"]) == (2, 1)
    assert (tasks["target_sums"]["tasks"], tasks["target_sums"]["reused"]) == (2, 1)


def test_a_probe_of_many_rows_is_fitted_on_some_and_stays_when_rows_are_appended(
    tmp_path: Path, assay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.predictions.probe.MOST_ROWS", 40)
    stages = {name: {"embedding": "features"} for name in ("probe", "prediction")}
    grown, many = given(tmp_path / "run", 30, stages), given(tmp_path / "many", 60, stages)
    assay("run", many)
    assert resolved(many.parent)["probe"]["rows"] == 40
    runs = open_run(many.parent / "run").sql("SELECT details FROM runs WHERE instance = 'probe'")
    ((details,),) = runs.fetchall()
    assert json.loads(details)["n_rows"] == 40
    assay("run", grown)
    assert resolved(grown.parent)["probe"]["rows"] is None
    given(tmp_path / "run", 60, stages)
    tasks = {row["stage"]: row["tasks"] for row in plan_of(assay, grown)["stages"]}
    assert tasks == {"probe": 0, "prediction": 3}
    assay("run", grown)
    assert resolved(grown.parent)["probe"]["rows"] is None


@pytest.mark.slow
def test_old_rows_are_judged_again_only_when_asked(tmp_path: Path, assay: Any) -> None:
    stages = {"kernel_regression": FEATURES, "label_issues": {}}
    config = given(tmp_path / "run", 60, stages)
    assay("run", config)
    before = open_run(tmp_path / "run/run").sql(JUDGED).fetchall()
    given(tmp_path / "run", 80, stages, old_rows="kept")
    planned = plan_of(assay, config)
    tasks = {row["stage"]: (row["tasks"], row["reused"]) for row in planned["stages"]}
    # Two new shards of examples, and for the regression one of queries.
    assert tasks["kernel_regression"] == (3, 6)
    assert tasks["label_issues"] == (2, 6)
    assert any("kernel_regression keeps the rows of 6 of 8 shards" in n for n in planned["notes"])
    assay("run", config)
    after = open_run(tmp_path / "run/run").sql(JUDGED).fetchall()
    assert after[:60] == before
    assert len(after) == 80
    assert all(row["tasks"] == 0 for row in plan_of(assay, config)["stages"])
    assay("verify", tmp_path / "run/run")
    anew = given(tmp_path / "anew", 80, stages)
    assay("run", anew)
    expected = open_run(tmp_path / "anew/run").sql(JUDGED.replace("p_wrong", "0")).fetchall()
    np.testing.assert_allclose(
        [row[3] for row in after[60:]], [row[3] for row in expected[60:]], atol=0.05
    )
    given(tmp_path / "run", 80, stages, old_rows="again")
    assay("run", config)
    again = open_run(tmp_path / "run/run").sql(JUDGED.replace("p_wrong", "0")).fetchall()
    assert again == expected


def test_a_corrected_label_is_judged_anew_beside_old_rows(tmp_path: Path, assay: Any) -> None:
    stages = {"kernel_regression": FEATURES, "label_issues": {}}
    config = given(tmp_path / "run", 60, stages)
    assay("run", config)
    path = tmp_path / "run/corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["label"] = "c0" if rows[3]["label"] != "c0" else "c1"
    write_lines(path, rows)
    raw = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(raw | {"old_rows": "kept"}))
    tasks = {row["stage"]: row["tasks"] for row in plan_of(assay, config)["stages"]}
    assert (tasks["kernel_regression"], tasks["label_issues"]) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "rows", "expected"),
    [
        ({}, 40, None),
        ({}, 41, 6),
        ({"engine": "least_squares"}, 40, None),
        ({"engine": "prefix_cholesky"}, 41, None),
        ({"kernel": ("a", "b"), "normalize": False}, 41, None),
        ({"kernel": ("a", "b")}, 41, 6),
        ({"directions": 5}, 40, 5),
        ({"kernel": ("short",)}, 41, None),
    ],
)
def test_directions_are_chosen_for_many_rows_alone(
    fields: dict[str, Any], rows: int, expected: int | None
) -> None:
    stage = FreeShap(**{"kernel": ("long",), **fields})
    assert stage.sized(Size(rows, rows, 9, 3, {"long": 12, "short": 6})).directions == expected


def test_unscaled_vectors_of_several_tables_are_not_shortened() -> None:
    with pytest.raises(ConfigError, match=r"found normalize: false .* expected one table"):
        ShortFeatures(kernel=("a", "b"), normalize=False)


@pytest.mark.slow
def test_old_rows_stay_when_the_run_that_appends_is_killed(
    tmp_path: Path, assay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"kernel_regression": FEATURES, "label_issues": {}}
    config = given(tmp_path / "run", 60, stages)
    assay("run", config)
    before = open_run(tmp_path / "run/run").sql(JUDGED).fetchall()
    given(tmp_path / "run", 80, stages, old_rows="kept")
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.run._StageTasks.run", killed)
            assay("run", config, code=130)
        assay("clean", tmp_path / "run/run", "--remove")
    assay("run", config)
    after = open_run(tmp_path / "run/run").sql(JUDGED).fetchall()
    assert after[:60] == before
    assert len(after) == 80
    tables = json.loads((tmp_path / "run/run/run.json").read_text())["tables"]
    assert set(tables["label_issues"]["label_issues"]) == {"manifest", "shards"}


def killed(_: Any) -> Any:
    raise KeyboardInterrupt


def test_no_row_stays_that_a_fit_with_other_settings_has_judged(tmp_path: Path, assay: Any) -> None:
    stages = {"kernel_regression": {**FEATURES, "form": "dual"}, "label_issues": {}}
    config = given(tmp_path / "run", 60, stages, old_rows="kept")
    assay("run", config)
    stages["kernel_regression"]["ridge"] = 5.0
    given(tmp_path / "run", 60, stages, old_rows="kept")
    tasks = {row["stage"]: row["tasks"] for row in plan_of(assay, config)["stages"]}
    assert tasks["label_issues"] == 6


def test_a_changed_vector_is_judged_anew_by_one_fit_on_all(tmp_path: Path, assay: Any) -> None:
    stages = {"kernel_regression": {**FEATURES, "form": "dual"}, "label_issues": {}}
    config = given(tmp_path / "run", 60, stages, old_rows="kept")
    assay("run", config)
    vectors = np.load(tmp_path / "run/corpus.npy")
    vectors[3] = -vectors[3]
    np.save(tmp_path / "run/corpus.npy", vectors)
    tasks = {row["stage"]: row["tasks"] for row in plan_of(assay, config)["stages"]}
    # The shard of the row.
    assert (tasks["kernel_regression"], tasks["label_issues"]) == (1, 1)


@pytest.mark.parametrize("rows", [pytest.param(41, marks=pytest.mark.slow), 87])
def test_both_forms_flag_the_same_labels(rows: int, tmp_path: Path, assay: Any) -> None:
    stages = {"kernel_regression": FEATURES, "label_issues": {}}
    scores = {}
    for form in ("dual", "primal"):
        own = {**stages, "kernel_regression": {**FEATURES, "form": form}}
        config = given(tmp_path / form, rows, own)
        assay("run", config)
        run = open_run(config.parent / "run")
        scores[form] = run.sql(
            "SELECT example_id, label_score, is_label_issue, suggested_label FROM label_issues "
            "ORDER BY example_id"
        ).fetchnumpy()
        predicted = run.sql("SELECT id, logits FROM predictions WHERE role = 'query' ORDER BY id")
        scores[form] |= {"queries": np.array([row[1] for row in predicted.fetchall()])}
    for name in ("example_id", "is_label_issue", "suggested_label"):
        assert (scores["dual"][name] == scores["primal"][name]).all()
    np.testing.assert_allclose(*(found["label_score"] for found in scores.values()), atol=1e-6)
    np.testing.assert_allclose(*(found["queries"] for found in scores.values()), atol=1e-6)
    assert scores["dual"]["is_label_issue"].any()


def test_many_texts_are_judged_by_the_hidden_states_of_all_layers(
    tmp_path: Path, write_config: Any, assay: Any
) -> None:
    stages = {"label_issues": {}, "freeshap": {"rounds": 1, "utilities": ["margin"]}}
    config = write_config(tmp_path / "run", n_examples=48, n_queries=4, stages=stages)
    assay("run", config)
    folder = Path(yaml.safe_load(config.read_text())["run"])
    chosen = yaml.safe_load((folder / "config.yaml").read_text())["stages"]
    assert "embedding" not in chosen
    assert "ntk" not in chosen
    for reader in ("kernel_regression", "feature_sums", "short_features", "freeshap"):
        assert chosen[reader]["kernel"] == ["hidden_states"]
    assert all(row["tasks"] == 0 for row in plan_of(assay, config)["stages"])
    assert all(row["tasks"] == 0 for row in plan_of(assay, folder / "config.yaml")["stages"])


def test_a_text_of_your_own_is_explained_in_primal_form(
    tmp_path: Path, write_config: Any, assay: Any
) -> None:
    stages = {
        "ntk": {"projection": {"dim": 64}},
        "kernel_regression": {"form": "primal"},
        "kernel_representer": {"top_k": 60},
        "freeshap": {"rounds": 1, "utilities": ["margin"], "directions": 8},
    }
    config = write_config(tmp_path / "run", n_examples=60, n_queries=3, stages=stages)
    assay("run", config)
    run = open_run(yaml.safe_load(config.read_text())["run"])
    query_id, text = run.sql("SELECT query_id, text FROM queries ORDER BY 1 LIMIT 1").fetchall()[0]
    stored, new = run.explain(query_id, top=60), run.explain(text=text, top=60)
    of_kernel = [
        next(p["margin"] for p in found["predictions"] if p["source"] == "kernel")
        for found in (stored, new)
    ]
    assert of_kernel[0] == pytest.approx(of_kernel[1], abs=1e-6)
    pairs = []
    for found in (stored, new):
        (method,) = found["methods"]
        pairs.append({r["example_id"]: r["score"] for r in method["helpful"] + method["harmful"]})
    assert pairs[0].keys() == pairs[1].keys()
    np.testing.assert_allclose(list(pairs[0].values()), list(pairs[1].values()), atol=1e-6)
    (values,) = run.explain(text=text, methods=["freeshap"])["values"]
    assert values["helpful"]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            {"feature_sums": {**FEATURES, "normalize": False}},
            "feature_sums: found normalize: False, expected True",
        ),
        (
            {"kernel_fit": {**FEATURES, "ridge": 0.5}},
            "kernel_fit: found ridge: 0.5, expected auto",
        ),
        (
            {
                "label_noise": {"predictions": "other"},
                "other": {"stage": "kernel_regression"} | FEATURES,
            },
            "label_noise: found predictions: other, expected kernel_regression",
        ),
        (
            {
                "freeshap": {**FEATURES, "directions": 5},
                "leading_directions": {**FEATURES, "dim": 4},
            },
            "leading_directions: found dim: 4, expected 5",
        ),
    ],
)
def test_stages_of_other_features_are_refused(
    stages: dict[str, Any], expected: str, tmp_path: Path, complaint: Any
) -> None:
    primal = {"kernel_regression": {**FEATURES, "form": "primal"}, "label_issues": {}}
    assert expected in complaint("plan", given(tmp_path / "run", 20, {**primal, **stages}))
