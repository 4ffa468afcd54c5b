"""YAML to a checked run, and back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import (
    dump_config,
    parse_config,
    parse_stage,
    read_config,
    stage_name,
    stage_names,
)
from pipeline.errors import ConfigFileError
from pipeline.settings import Resources
from stages.corpus.source import FlipLabels
from stages.model.spec import ModelSpec

RAW: dict[str, Any] = {
    "run": "runs/a",
    "model": {"path": "owner/name", "max_length": 64},
    "corpus": {"path": "rows.csv", "classes": ["a", "b"], "flip_labels": {"fraction": 0.1}},
    "queries": {"path": "owner/queries", "label": None},
    "stages": {
        "small": {"stage": "ntk", "projection": {"dim": 64}},
        "ntk": {"model": {"path": "owner/other"}},
        "freeshap": {"kernel": ["small"], "ridge": 1, "utilities": ["margin"]},
        "label_issues": None,
    },
    "ray": {"stages": {"ntk": {"cpus": 2, "gpus": 0.5}}, "default": {"memory_gb": 3}},
    "artefacts": {"probe": {"key": "0" * 16, "labels": "1" * 16}},
}


def test_what_is_dumped_reads_the_same() -> None:
    run = parse_config(RAW, "test")
    again = parse_config(yaml.safe_load(dump_config(run)), "test")
    assert again == run
    assert dump_config(again) == dump_config(run)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=str)
def test_files_to_copy_read_the_same_after_a_dump(path: Path) -> None:
    run = read_config(path)
    assert parse_config(yaml.safe_load(dump_config(run)), "test") == run


def test_instances_models_and_resources() -> None:
    run = parse_config(RAW, "test")
    assert [stage_name(stage) for stage in run.stages.values()] == [
        "ntk",
        "ntk",
        "freeshap",
        "label_issues",
    ]
    assert run.stages["small"].model == ModelSpec("owner/name", max_length=64)
    assert run.stages["ntk"].model == ModelSpec("owner/other")
    assert run.stages["freeshap"].ridge == 1.0
    assert run.corpus.flip_labels == FlipLabels(0.1)
    assert run.resources("ntk") == Resources(cpus=2, gpus=0.5)
    assert run.resources("freeshap") == Resources(memory_gb=3.0)
    assert parse_stage("mine", {"stage": "probe"}, None, "test").regularization > 0


def test_places_are_absolute_and_what_is_no_place_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    raw = {**RAW, "model": {"path": "weights"}, "store": "shared"}
    run = parse_config(raw, "test")
    assert run.run == str(tmp_path / "runs/a")
    assert run.store == run.store_url == str(tmp_path / "shared")
    assert run.corpus.path == str(tmp_path / "rows.csv")
    assert run.queries is not None
    assert run.queries.path == "owner/queries"
    assert run.model is not None
    assert run.model.path == str(tmp_path / "weights")
    assert parse_config(RAW, "test").store_url == str(tmp_path / "runs/a/store")
    assert parse_config({**RAW, "store": "s3://b/c"}, "test").store_url == "s3://b/c"


def test_overrides_are_yaml_and_make_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(RAW))
    settings = [
        "stages.freeshap.utilities=[accuracy, margin]",
        "stages.gradient.projection.seed=3",
        "corpus.flip_labels=null",
        "run=with = signs",
        "queries.split='train[:5]'",
    ]
    run = read_config(path, settings)
    assert run.stages["freeshap"].utilities == ("accuracy", "margin")
    assert run.stages["gradient"].projection.seed == 3
    assert run.corpus.flip_labels is None
    assert run.run.endswith("/with = signs")
    assert run.queries is not None
    assert run.queries.split == "train[:5]"
    assert read_config(path) == parse_config(RAW, "test")


def test_artefacts_and_resources_may_name_stages_that_are_added() -> None:
    run = parse_config({**RAW, "stages": {"gradient": {}}, "artefacts": {"probe": "refit"}}, "t")
    assert run.artefacts == {"probe": "refit"}
    with pytest.raises(ConfigFileError, match=r"artefacts.probes: found no stage instance"):
        parse_config({**RAW, "artefacts": {"probes": "refit"}}, "test")


def test_every_problem_is_told_at_once() -> None:
    raw = {**RAW, "shard_size": "x", "corpus": {"path": "a.csv", "txt": 1}}
    with pytest.raises(ConfigFileError) as caught:
        parse_config(raw, "test")
    assert "shard_size" in str(caught.value)
    assert "corpus.txt" in str(caught.value)


def test_stage_names_are_the_modules_that_end_with_a_stage() -> None:
    names = stage_names()
    assert {"embedding", "freeshap", "ntk"} <= set(names)
    assert not {"stage", "kernel", "measurement"} & set(names)


def test_a_run_is_frozen() -> None:
    run = parse_config(RAW, "test")
    assert replace(run, shard_size=5) != run
    with pytest.raises(AttributeError):
        run.shard_size = 5  # type: ignore[misc]


def test_queries_take_the_task_of_the_corpus_unless_they_say_another() -> None:
    raw: dict[str, Any] = {**RAW, "corpus": {"path": "a.csv", "task": "completion"}}
    run = parse_config({**raw, "queries": {"path": "b.csv", "messages": "talk"}}, "test")
    assert run.queries is not None
    assert (run.corpus.task, run.queries.task) == ("completion", "completion")
    assert parse_config(yaml.safe_load(dump_config(run)), "test") == run
    other = parse_config({**raw, "queries": {"path": "b.csv", "task": "regression"}}, "test")
    assert other.queries is not None
    assert other.queries.task == "regression"
    with pytest.raises(ConfigFileError, match="corpus.task: found 'guess', expected 'classificat"):
        parse_config({**raw, "corpus": {"path": "a.csv", "task": "guess"}}, "test")


def test_files_of_features_are_absolute_and_columns_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"path": "a.csv", "text": None}
    raw = {**RAW, "corpus": {**source, "features": "x.npy"}}
    run = parse_config({**raw, "queries": {**source, "features": "embedding"}}, "test")
    assert run.queries is not None
    assert run.corpus.features == run.corpus.features_file == str(tmp_path / "x.npy")
    assert (run.queries.features, run.queries.features_file) == ("embedding", None)


def test_a_stage_that_can_do_without_a_model_is_given_none() -> None:
    raw = {**RAW, "model": None, "stages": {"prediction": {"embedding": "features"}}}
    assert parse_config(raw, "test").stages["prediction"].model is None
    with_one = parse_config({**RAW, "stages": {"prediction": {}}}, "test")
    assert with_one.stages["prediction"].model == with_one.model
    with pytest.raises(ConfigFileError, match="stages.ntk: found no model, expected one for this"):
        parse_config({**raw, "stages": {"ntk": {}}}, "test")
