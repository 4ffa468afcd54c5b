"""Choosing rows to train on, and what is said about them before they are used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import DATA, assay, complaint, write_lines, write_run

from pipeline.api import expected, select
from pipeline.open_run import OpenedRun, open_run


def points(role: str) -> dict[str, Any]:
    return {
        "path": str(DATA / f"points_{role}.csv"),
        "features": str(DATA / f"points_{role}.npy"),
        "text": None,
        "label": "cloud",
        "id": "point",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Points of three clouds, every tenth label of them wrong."""
    config = write_run(
        tmp_path_factory.mktemp("selection"),
        corpus=points("train"),
        queries=points("queries"),
        stages={
            "kernel_regression": {"kernel": ["features"]},
            "label_issues": {},
            "coreset": {"kernel": ["features"]},
            "freeshap": {"kernel": ["features"], "rounds": 1},
        },
    )
    assay("run", config)
    return config.parent / "run"


@pytest.fixture
def opened(run: Path) -> OpenedRun:
    return open_run(run)


def test_a_coreset_is_what_rows_are_chosen_by(opened: OpenedRun) -> None:
    ranks = opened.sql("SELECT example_id FROM coreset ORDER BY rank").fetchall()
    assert len(ranks) == 300
    rows = select(opened, keep="10%").fetchall()
    assert len(rows) == 30
    first = [row[0] for row in ranks[:60]]
    assert {row[0] for row in rows} <= set(first)
    by_value = select(opened, keep="10%", by="shapley").fetchall()
    assert select(opened, keep="10%", method="freeshap").fetchall() == by_value != rows
    doubted = opened.sql(
        "SELECT min(c.rank) FROM coreset AS c JOIN label_issues AS i USING (example_id) "
        "WHERE p_wrong > 0.5"
    ).fetchall()[0][0]
    n_doubted = opened.sql("FROM label_issues WHERE p_wrong > 0.5").fetchall()
    assert doubted == 300 - len(n_doubted) + 1


def test_a_quota_keeps_the_best_of_each_class(opened: OpenedRun) -> None:
    names = [row[0] for row in opened.sql("SELECT DISTINCT label_name FROM examples").fetchall()]
    kept = select(opened, quota={names[0]: 4, names[1]: "5%"}, by="label_score")
    n_second = opened.sql(f"FROM examples WHERE label_name = '{names[1]}'").fetchall()
    found = kept.df()
    assert found["label_name"].value_counts().to_dict() == {
        names[0]: 4,
        names[1]: round(0.05 * len(n_second)),
    }
    scores = opened.sql(
        "SELECT example_id FROM label_issues JOIN examples USING (example_id) WHERE label_name = "
        f"'{names[0]}' ORDER BY label_score DESC, example_id LIMIT 4"
    ).fetchall()
    assert set(found[found["label_name"] == names[0]]["example_id"]) == {row[0] for row in scores}


def test_an_unknown_class_has_no_quota(run: Path) -> None:
    assert "found quota of 'nobody'" in complaint("select", run, "--quota", "nobody=3")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    """Vectors of two classes; columns of the source have names that statements use, too."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": n,
            "label": ("neg", "pos")[n % 2],
            "class": None if n % 3 else "other",
            "rank": -n,
            "place": "b" if n < 20 else "a",
        }
        for n in range(80)
    ]
    np.save(folder / "rows.npy", (rng.normal(size=(80, 3)) + np.arange(80)[:, None] % 2))
    source = {
        "path": write_lines(folder / "rows.jsonl", rows),
        "features": str(folder / "rows.npy"),
        "text": None,
        "id": "id",
        "label": "label",
    }
    stages = {"coreset": {"kernel": ["features"]}, "kernel_regression": {"kernel": ["features"]}}
    assay("run", write_run(folder, corpus=source, stages=stages))
    return open_run(folder / "run")


def test_a_quota_counts_classes_whatever_columns_are_called(odd: OpenedRun) -> None:
    def kept(**asked: Any) -> list[str]:
        chosen = select(odd, **asked).df()
        every = odd.sql("SELECT example_id, label_name AS name, place FROM examples").df()
        found = chosen[["example_id"]].merge(every, on="example_id")
        return sorted(found["place" if "per" in asked else "name"])

    assert kept(quota={"neg": 5, "pos": "50%"}) == ["neg"] * 5 + ["pos"] * 20
    assert kept(quota={"a": 7, "b": "10%"}, per="place") == ["a"] * 7 + ["b"] * 2
    assert kept(keep=8, per="place") == ["a"] * 6 + ["b"] * 2


def test_rows_by_another_column_are_not_forecast_by_class(odd: OpenedRun) -> None:
    why = "they are chosen by the values of place, not by class"
    assert expected(odd, keep="10%", per="place")["why_not"] == why


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--quota", "neg"], "found --quota neg, expected CLASS=ROWS"),
        (["--quota", "a=b=5", "--quota", "a=b=7"], "found --quota a=b=5 and a=b=7, expected each"),
        (["--keep", "5", "--per", "place", "--overall"], "found --overall beside --per"),
    ],
)
def test_options_that_say_nothing_clear_are_refused(
    odd: OpenedRun, options: list[str], told: str
) -> None:
    assert told in complaint("select", odd.folder.path, *options, code=2)


@pytest.mark.parametrize("soft", [1e-5, 1e-3, 0.05, 1.0])
def test_weights_are_numbers_however_strict(opened: OpenedRun, soft: float) -> None:
    rows = select(opened, soft=soft).df()
    assert np.isfinite(rows["weight"]).all()
    assert (rows["weight"] >= 0).all()
    for _, of_class in rows.groupby("label"):
        assert of_class["weight"].mean() == pytest.approx(1)


def test_weights_fall_with_the_place_in_a_class(opened: OpenedRun) -> None:
    rows = select(opened, soft=0.5, by="shapley").df()
    assert len(rows) == 300
    for _, of_class in rows.groupby("label"):
        weights = of_class.sort_values(["value", "example_id"], ascending=[False, True])["weight"]
        n = len(weights)
        places = (np.arange(n) + 0.5) / n
        np.testing.assert_allclose(
            weights, np.exp((1 - 2 * places) / 0.5) / np.exp((1 - 2 * places) / 0.5).mean()
        )
    assert rows["weight"].mean() == pytest.approx(1)


def test_what_rows_train_is_said_before_they_are_written(run: Path, tmp_path: Path) -> None:
    told = assay("select", run, "--keep", "10%", "--out", tmp_path / "best.csv")
    assert told.stdout == ""
    said = " ".join(told.stderr.split())
    assert "30 of 300 rows are kept, by coreset." in said
    found = expected(run, keep="10%")
    assert [row["by"] for row in found["rows"]] == ["all", "coreset", "random"]
    assert (found["n_rows"], found["n_examples"], found["n_queries"]) == (30, 300, 100)
    for share in ("before", "kept"):
        assert sum(of_class[share] for of_class in found["classes"]) == pytest.approx(1)
    kept = next(row for row in found["rows"] if row["by"] == "coreset")
    assert f"{kept['accuracy']:.3f} ({kept['accuracy_low']:.3f} to" in said
    json.dumps(found)


def test_random_rows_are_the_same_share_of_each_class(opened: OpenedRun) -> None:
    kept = select(opened, keep="20%", by="random").df()
    assert kept.equals(select(opened, keep="20%", by="random").df())
    sizes = opened.sql("SELECT label_name, count(*) FROM examples GROUP BY 1").fetchall()
    found = kept["label_name"].value_counts()
    assert all(abs(found[name] - n / 5) <= 1 for name, n in sizes)
    assert kept["value"].isna().all()
    more = select(opened, keep="50%", by="random").df()
    assert set(kept["example_id"]) < set(more["example_id"])
    # Neither the first rows nor those that anything else would choose.
    assert 60 < more["example_id"].rank().corr(more["rank"]) * 100 + 100 < 140
    best = set(select(opened, keep="20%").df()["example_id"])
    assert len(best & set(kept["example_id"])) < 30
    found = expected(opened, keep="20%", by="random")
    assert found["why_not"] == "they are random rows"
    assert "60 of 300 rows are kept, at random." in repr(found)


@pytest.mark.parametrize(
    ("more", "is_random"),
    [([], True), (["--by", "coreset"], False), (["--method", "coreset"], False)],
)
def test_random_rows_stand_in_where_those_of_the_default_do_worse(
    run: Path, more: list[str], is_random: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = OpenedRun.expected

    def worse(opened: OpenedRun, *args: Any, **asked: Any) -> Any:
        told = forecast(opened, *args, **asked)
        kept = next(row for row in told["rows"] if row["by"] == "coreset")
        for name in [name for name in kept if "_over_random" in name]:
            kept[name] = -0.2
        return told

    monkeypatch.setattr(OpenedRun, "expected", worse)
    told = assay("select", run, "--keep", "10%", "--json", *more)
    assert "worse than random rows (-0.2" in " ".join(told.stderr.split())
    assert ("These are random rows instead" in told.stderr) == is_random
    wanted = select(run, keep="10%", by="random" if is_random else "coreset").df()
    assert [row["example_id"] for row in json.loads(told.stdout)] == list(wanted["example_id"])


def test_queries_and_flags_among_chosen_rows_are_said_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = np.arange(80) % 2
    vectors = rng.normal(size=(80, 3)) + 5 * np.stack([kinds, 1 - kinds, 0 * kinds], 1)
    words = [" ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 30)) for _ in kinds]
    sources = {}
    for role, places in (("corpus", range(60)), ("queries", range(60, 80))):
        rows = [{"id": n, "text": words[n], "label": "ab"[kinds[n]]} for n in places]
        if role == "corpus":
            rows[4]["label"] = "b"
            rows[6]["text"] = words[61].upper()
        path = write_lines(tmp_path / f"{role}.jsonl", rows)
        np.save(tmp_path / f"{role}.npy", vectors[places].astype(np.float32))
        features = str(tmp_path / f"{role}.npy")
        sources[role] = {"path": path, "id": "id", "label": "label", "features": features}
    on_features = {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}}
    assay("run", write_run(tmp_path, **sources, stages=on_features))
    run = tmp_path / "run"
    flagged = {row[1] for row in open_run(run).flag().fetchall()}
    assert "4" in flagged
    for how in ("--forecast", "--no-forecast"):
        told = assay("select", run, "--keep", "60", "--by", "label_score", how)
        said = " ".join(told.stderr.split())
        assert "Of the 60 chosen rows 1 stands among the queries, too" in said
        n = len(flagged)
        assert f"Of the 60 chosen rows {n} {'is' if n == 1 else 'are'} flagged: labels" in said
    told = assay("select", run, "--quota", "a=3", "--by", "label_score")
    assert "flagged" not in told.stderr
    assert "among the queries" not in told.stderr


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"keep": "100%"}, "all rows are kept"),
        ({"quota": {"left": 3}}, "the numbers of each class are your own"),
    ],
)
def test_no_forecast_says_why(opened: OpenedRun, asked: dict[str, Any], why: str) -> None:
    if "quota" in asked:
        name = opened.sql("SELECT min(label_name) FROM examples").fetchall()[0][0]
        asked = {"quota": {name: 3}}
    found = expected(opened, **asked)
    assert found["rows"] == []
    assert found["why_not"] == why
    assert f"No forecast of what they train: {why}." in repr(found)


def test_rows_are_chosen_without_queries_but_not_forecast(tmp_path: Path) -> None:
    config = write_run(
        tmp_path,
        corpus=points("train"),
        stages={
            "kernel_regression": {"kernel": ["features"]},
            "coreset": {"kernel": ["features"]},
        },
    )
    assay("run", config)
    told = assay("select", tmp_path / "run", "--keep", "10%", "--json")
    assert len(json.loads(told.stdout)) == 30
    assert "No forecast of what they train" in told.stderr
    assert "found 0 labelled queries" in " ".join(told.stderr.split())


def test_rows_of_vectors_have_no_tokens(run: Path) -> None:
    assert "found no counts of tokens" in complaint("select", run, "--keep", "50 tokens")
