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
from pipeline.settings import Resources, Run
from stages.corpus.source import FlipLabels
from stages.model.spec import ModelSpec
from storage.schema import StorageError

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
    again = parse_config(yaml.safe_load(dump_config(run)), "test")
    # A length that is left open stands in a dump as it is before the corpus is known.
    assert again == replace(run, open_lengths=())


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


def written(folder: Path, **changes: Any) -> Path:
    """A YAML in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({**RAW, **changes}))
    return path


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with files, and a folder `own` with the same ones and a YAML."""
    for folder in (tmp_path, tmp_path / "own"):
        (folder / "org/weights").mkdir(parents=True)
        (folder / "data").mkdir()
        for name in ("a.csv", "a b.csv", "x.npy", "fix.csv"):
            (folder / "data" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


INPUTS: dict[str, Any] = {
    "corpus": {"path": "data/*.csv", "corrections": ["data/fix.csv", "./data/a.csv"]},
    "queries": {"path": "data/a b.csv", "text": None, "features": "data/x.npy"},
    "model": {"path": "org/weights", "adapter": "org"},
    "stages": {"ntk": {"model": {"path": "./org/weights", "adapter": "org"}}},
}


def inputs_of(run: Run) -> list[str | None]:
    assert run.queries is not None
    assert run.model is not None
    own = run.stages["ntk"].model
    found = [run.corpus.path, *run.corpus.corrections, run.queries.path, run.queries.features]
    return [*found, run.model.path, run.model.adapter, own.path, own.adapter]


def test_inputs_lie_beside_the_file_and_outputs_where_one_starts(at: Path) -> None:
    run = read_config(written(at / "own", store="shared", **INPUTS))
    names = ["data/*.csv", "data/fix.csv", "data/a.csv", "data/a b.csv", "data/x.npy"]
    names += ["org/weights", "org"] * 2
    assert inputs_of(run) == [str(at / "own" / name) for name in names]
    assert (run.run, run.store) == (str(at / "runs/a"), str(at / "shared"))
    assert read_config("own/a.yaml") == run
    (at / "run").mkdir()
    (at / "run/config.yaml").write_text(dump_config(run))
    assert read_config(at / "run/config.yaml") == run


def test_what_the_command_line_names_lies_where_one_starts(at: Path) -> None:
    path = written(at / "own", **INPUTS)
    settings = ["corpus.path=data/*.csv", "queries={path: data/a.csv, features: data/x.npy}"]
    run = read_config(path, [*settings, "stages.ntk.model.path=org/weights", "model.adapter=org"])
    assert run.queries is not None
    assert run.corpus.path == str(at / "data/*.csv")
    assert run.corpus.corrections[0] == str(at / "own/data/fix.csv")
    assert run.queries.path == str(at / "data/a.csv")
    assert run.queries.features == str(at / "data/x.npy")
    assert run.stages["ntk"].model.path == str(at / "org/weights")
    assert run.model is not None
    assert (run.model.path, run.model.adapter) == (str(at / "own/org/weights"), str(at / "org"))


def test_without_a_file_inputs_lie_where_one_starts(at: Path) -> None:
    run = parse_config({**RAW, **INPUTS}, "test")
    assert run == parse_config({**RAW, **INPUTS}, "test", at)
    assert inputs_of(run)[-1] == str(at / "org")


@pytest.mark.parametrize(
    ("gone", "changes", "message"),
    [
        ("data", {"corpus": {"path": "data/a.csv"}}, r"corpus.path: .*`path: ../data/a.csv`\."),
        ("data", {"corpus": {"path": "data/*.csv"}}, r"corpus.path: .*`path: ../data/\*.csv`"),
        ("data", {"corpus": {"path": "data"}}, r"`path: ../data`, or start elsewhere if the hub"),
        ("org", {"model": {"path": "org/weights"}}, r"model.path: .*`path: ../org/weights`, or"),
        ("org", {"model": {"path": "./org"}}, r"model.path: .*`path: ../org`\."),
        ("org", {"model": {"path": "a/b", "adapter": "org"}}, r"adapter: .*`adapter: ../org`"),
        (
            "org",
            {"stages": {"ntk": {"model": {"path": "org/weights"}}}},
            r"stages.ntk.model.path: found org/weights .*`path: ../org/weights`",
        ),
        (
            "data",
            {"queries": {"path": "a/b", "text": None, "features": "data/x.npy"}},
            r"queries.features: .*`features: ../data/x.npy`",
        ),
        (
            "data/fix.csv",
            {"corpus": {"path": "a/b", "corrections": ["data/a.csv", "data/fix.csv"]}},
            r"corpus.corrections: .*`corrections: \[data/a.csv, ../data/fix.csv\]`",
        ),
    ],
)
def test_an_input_that_lies_where_one_starts_is_told_with_the_line_to_write(
    at: Path, gone: str, changes: dict[str, Any], message: str
) -> None:
    (at / "own" / gone).rename(at / "gone")
    path = written(at / "own", **changes)
    with pytest.raises(ConfigFileError, match=message) as caught:
        read_config(path)
    assert str(at / "own") in str(caught.value)
    # The line does what it says.
    *place, _ = str(caught.value).removeprefix(f"{path}: ").split(": ")[0].split(".")
    raw = entry = yaml.safe_load(path.read_text())
    for key in place:
        entry = entry[key]
    entry |= yaml.safe_load(str(caught.value).split("`")[1])
    assert read_config(written(at / "own", **raw))


def test_ids_of_the_hub_urls_and_packages_are_no_paths(at: Path) -> None:
    run = read_config(
        written(
            at / "own",
            model={"path": "package:numpy/core"},
            corpus={"path": "s3://bucket/a.csv"},
            queries={"path": "owner/data", "label": None},
            stages={"ntk": {"model": {"path": "owner/name"}}},
        )
    )
    assert run.model is not None
    assert run.queries is not None
    paths = [run.model.path, run.corpus.path, run.queries.path, run.stages["ntk"].model.path]
    assert paths == ["package:numpy/core", "s3://bucket/a.csv", "owner/data", "owner/name"]


@pytest.mark.parametrize("name", ["owner/Chats-2.5", "owner/pairs-2.5-preference", "owner/x.v1-2"])
def test_ids_of_the_hub_may_have_dots(at: Path, name: str) -> None:
    assert read_config(written(at / "own", corpus={"path": name})).corpus.path == name
    of_file = read_config(written(at / "own", corpus={"path": "data/rows.text"})).corpus.path
    assert of_file == str(at / "own" / "data" / "rows.text")


def test_the_home_is_the_home(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(at / "elsewhere"))
    changes = {"model": {"path": "~/m"}, "corpus": {"path": "~/a.csv", "corrections": ["~/b.csv"]}}
    run = read_config(written(at / "own", **changes, run="~/run"))
    assert run.model is not None
    found = [run.run, run.model.path, run.corpus.path, *run.corpus.corrections]
    assert found == [str(at / "elsewhere" / name) for name in ("run", "m", "a.csv", "b.csv")]


def test_reviews_and_vectors_at_urls_are_no_paths(at: Path) -> None:
    urls = {"features": "https://h/x.npy?v=1", "corrections": ["s3://b/r.csv", "gs://b/[x].csv"]}
    run = read_config(written(at / "own", corpus={"path": "https://h/a.csv", **urls}))
    found = [run.corpus.features_file, *run.corpus.corrections]
    assert found == [urls["features"], *urls["corrections"]]


@pytest.mark.parametrize("field", ["path", "features", "corrections"])
def test_credentials_in_urls_of_a_source_are_refused(at: Path, field: str) -> None:
    secret = "s3://KEY:hidden@b/x.npy"
    corpus = {"path": "a.csv", field: [secret] if field == "corrections" else secret}
    with pytest.raises(StorageError, match=rf"corpus\.{field}: found credentials") as error:
        read_config(written(at / "own", corpus=corpus))
    assert "hidden" not in str(error.value)


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
    assert read_config(path) == parse_config(RAW, "test", tmp_path)


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


@pytest.mark.parametrize("given", ["corpus", "queries"])
def test_pairs_are_compared_with_pairs(given: str) -> None:
    source = {"path": "rows.csv"}
    raw = {**RAW, "corpus": source, "queries": source}
    other = {"corpus": "queries", "queries": "corpus"}[given]
    with pytest.raises(ConfigFileError, match=rf"{other}\.text_b: found no second text, expected"):
        parse_config({**raw, given: {**source, "text_b": "b"}}, "test")
    both = {**source, "text_b": "b"}
    assert parse_config({**raw, "corpus": both, "queries": both}, "test").corpus.text_b == "b"
