"""Configurations that are refused before anything is computed: found, expected, what to do."""

from pathlib import Path
from typing import Any

import pytest
from configurations import (
    Change,
    broken_yaml,
    corpus,
    cut,
    holds,
    model_folder,
    put,
    small_config,
    stages,
    write_config,
)
from runs import ROOT, check_grammar

from pipeline.config import read_config
from pipeline.corpus import read_corpus
from pipeline.errors import ConfigFileError, RunError
from pipeline.plan import Plan, make_plan
from stages.stage import StageError
from storage.schema import StorageError
from storage.table import Store

CASES: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (
        put("corpus", "tetx", value="text"),
        ["corpus.tetx: found an unknown key", "expected one of path", "did you mean text?"],
    ),
    "unknown top key": (
        put("querys", value={}),
        ["querys: found an unknown key", "did you mean queries?"],
    ),
    "unknown field of a stage": (
        put("stages", "freeshap", "round", value=3),
        ["stages.freeshap.round: found an unknown key", "did you mean rounds?"],
    ),
    "wrong type": (
        put("shard_size", value="many"),
        ["shard_size: found 'many'", "expected", "integer", "Correct the value."],
    ),
    "wrong nested type": (
        put("stages", "freeshap", "rounds", value=1.5),
        ["stages.freeshap.rounds: found 1.5", "integer"],
    ),
    "key that is no word": (put(3, value=1), ["found", "3", "expected"]),  # type: ignore[arg-type]
    "missing key": (cut("corpus"), ["corpus: found nothing", "Add `corpus: ...`"]),
    "no run": (cut("run"), ["run: found nothing", "Add `run: ...`"]),
    "a run at a URL": (
        put("run", value="s3://bucket/run"),
        ["run: found 's3://bucket/run', expected a folder on this machine", "`store: s3://"],
    ),
    "a run without a name": (put("run", value=""), ["run: found '', expected a folder"]),
    "a store without a name": (put("store", value=" "), ["store: found ' ', expected a folder"]),
    "no cores": (
        put("ray", value={"stages": {"freeshap": {"cpus": 0}}}),
        ["ray: found cpus: 0, expected at least 1. Correct it"],
    ),
    "no workers": (
        put("ray", value={"default": {"workers": -2}}),
        ["ray: found workers: -2, expected at least 1"],
    ),
    "no memory": (
        put("ray", value={"default": {"memory_gb": 0.0}}),
        ["ray: found memory_gb: 0.0, expected a number above 0"],
    ),
    "less than nothing of a resource": (
        put("ray", value={"default": {"resources": {"big": -1.0}}}),
        ["ray: found big: -1.0, expected a number above 0"],
    ),
    "less than no retries": (
        put("ray", value={"retries": -1}),
        ["ray: found retries: -1, expected at least 0"],
    ),
    "a seed below 0": (
        put("stages", value={"answer_issues": {"random_seed": -1}}),
        ["stages.answer_issues.random_seed: found -1, expected at least 0"],
    ),
    "no room for a token": (
        put("stages", value={"prediction": {"token_budget": 0}}),
        ["stages.prediction.token_budget: found 0, expected at least 1"],
    ),
    "no stages": (cut("stages"), ["stages: found nothing", "expected a mapping", "Add"]),
    "stages as a list": (
        put("stages", value=["freeshap"]),
        ["stages: found a list of 1", "expected a mapping from stage to its fields"],
    ),
    "stage that is no mapping": (
        put("stages", "freeshap", value=3),
        ["stages.freeshap: found int '3'", "Write `freeshap: {}`"],
    ),
    "unknown stage": (
        stages(freeshapp={}),
        ["stages.freeshapp: found no stage 'freeshapp'", "did you mean freeshap?"],
    ),
    "module that is no stage": (
        stages(kernel={}),
        ["stages.kernel: found no stage 'kernel'", "expected one of"],
    ),
    "circle": (
        stages(
            a={"stage": "label_noise", "predictions": "b"},
            b={"stage": "label_noise", "predictions": "a"},
        ),
        ["a, b wait for each other", "expected an order", "Remove one"],
    ),
    "two writers": (
        stages(
            small={"stage": "ntk", "projection": {"dim": 64}},
            large={"stage": "ntk", "projection": {"dim": 128}},
            freeshap={},
        ),
        ["stages.freeshap: found 2 writers of 'ntk' (", "small", "large", "Name the instance"],
    ),
    "unknown table": (
        stages(freeshap={"kernel": ["ntkk"]}),
        ["stages.freeshap: found that it reads 'ntkk'", "expected one of", "Name an instance"],
    ),
    "unknown utility": (
        put("stages", "freeshap", "utilities", value=["accuracy", "f1"]),
        ["stages.freeshap.utilities.1: found 'f1'", "accuracy"],
    ),
    "repeated utility": (
        put("stages", "freeshap", "utilities", value=["accuracy", "accuracy"]),
        ["utilities: found ['accuracy', 'accuracy']", "each once"],
    ),
    "ridge of zero": (
        put("stages", "freeshap", "ridge", value=0),
        ["stages.freeshap", "ridge", "found", "expected", "positive"],
    ),
    "no rounds": (
        put("stages", "freeshap", "rounds", value=0),
        ["stages.freeshap", "rounds: 0", "expected at least 1", "Raise"],
    ),
    "no permutations": (
        put("stages", "freeshap", "units_per_round", value=0),
        ["units_per_round: 0", "expected at least 1"],
    ),
    "empty shards": (
        put("shard_size", value=0),
        ["shard_size: found 0", "expected at least 1", "Leave it out"],
    ),
    "settings for an unknown stage": (
        put("ray", "stages", value={"nkt": {"cpus": 2}}),
        ["ray.stages.nkt: found no stage instance", "expected one of", "Correct the name"],
    ),
    "no such engine": (put("ray", "engine", value="spark"), ["ray.engine: found 'spark'", "ray"]),
    "no model": (
        cut("model"),
        ["found no model", "expected one for this stage", "Add `model: {path: ...}`"],
    ),
    "empty model": (put("model", value={}), ["model.path: found nothing", "Add `path: ...`"]),
    "missing model": (
        put("model", "path", value="./no/such/folder"),
        ["no/such/folder: found no such folder", "expected one with config.json", "Correct"],
    ),
    "unreachable model": (
        put("model", "path", value="nobody/nothing"),
        ["nobody/nothing: found neither", "expected", "HF_HUB_OFFLINE"],
    ),
    "missing package": (
        put("model", "path", value="package:no_such_weights/model"),
        ["found no installed package 'no_such_weights'", "Install it, or correct model.path"],
    ),
    "model folder without config": (
        model_folder("tokenizer.json"),
        ["found no config.json", "expected a Hugging Face model folder", "save_pretrained"],
    ),
    "random head of unknown size": (
        put("model", "head", value="random"),
        ["found head: random with num_labels: None", "expected num_labels", "Set"],
    ),
    "pin that is neither": (
        put("artefacts", value={"probe": "keep"}),
        ["artefacts.probe: found 'keep'", "expected `refit`"],
    ),
    "pin without a key": (
        put("artefacts", value={"probe": {"labels": "0" * 16}}),
        ["artefacts.probe: found", "expected `refit` or a mapping with key and labels"],
    ),
    "pin that is nowhere": (
        put("artefacts", value={"probe": {"key": "0" * 16, "labels": "1" * 16}}),
        ["artefacts.probe: found no artefact 0000000000000000", "probe: refit"],
    ),
    "pin of an unknown stage": (
        put("artefacts", value={"prob": "refit"}),
        ["artefacts.prob: found no stage instance", "Correct the name"],
    ),
    "missing corpus": (
        put("corpus", "path", value=str(ROOT / "configs/data/sst2_trian.parquet")),
        ["found no file or folder at", "did you mean sst2_train.parquet?"],
    ),
    "glob without match": (
        put("corpus", "path", value="/no/such/place/*.csv"),
        ["found no file that the pattern matches", "expected at least one", "Correct"],
    ),
    "file of another kind": (
        put("corpus", "path", value=str(ROOT / "configs" / "tiny.yaml")),
        ["tiny.yaml", "expected a file with an ending among .parquet", "Convert"],
    ),
    "missing column": (
        put("corpus", "text", value="txt"),
        ["found no column 'txt' for text (did you mean text: text?)", "columns id, text, label"],
    ),
    "missing id column": (
        put("corpus", "id", value="key"),
        ["found no column 'key' for id", "Set id"],
    ),
    "unknown split": (
        put("corpus", "split", value="test"),
        ["found the splits train", "expected 'test'", "Correct split"],
    ),
    "split that is no expression": (
        put("corpus", "split", value="train[:x]"),
        ["split expression 'train[:x]'", "expected one such as train", "Correct split"],
    ),
    "one class declared": (
        put("corpus", "classes", value=["only"]),
        ["classes: found ['only']", "expected at least two different names"],
    ),
    "one class found": (
        corpus([{"text": f"t {i}", "label": "same"} for i in range(4)]),
        ["found 1 class (same)", "expected at least two", "classes"],
    ),
    "labels that are measurements": (
        corpus([{"text": f"t {i}", "label": i + 0.5} for i in range(4)]),
        ["found the label 0.5", "expected whole numbers or strings", "regression"],
    ),
    "labels of no class": (
        corpus([{"text": "a", "label": "x"}] * 3, classes=["a", "b"]),
        ["found the labels x in column label", "expected those of `classes`: a, b", "Name"],
    ),
    "no usable row": (
        corpus([{"text": "", "label": 1}, {"text": " ", "label": 0}]),
        ["found no usable row among 2 (2 empty text)", "expected at least one", "Check"],
    ),
    "corpus without a row": (corpus([]), ["found an empty file", "expected rows", "fill"]),
    "corpus that is no JSON": (
        corpus(["text", 3]),
        ["found no JSON object in 2 lines", "expected one per line", "Write it as JSONL"],
    ),
    "flip too many": (
        put("corpus", "flip_labels", value={"fraction": 1.5}),
        ["flip_labels.fraction: found 1.5", "expected a number in [0, 1)", "Write 0.1"],
    ),
    "flip queries": (
        put("queries", "flip_labels", value={"fraction": 0.5}),
        ["flip_labels: found on queries", "expected on the corpus only", "Remove"],
    ),
    "no labels in the corpus": (
        put("corpus", "label", value=None),
        ["found label: null for examples", "Set label"],
    ),
    "store of an unknown protocol": (
        put("store", value="ftpx://somewhere/else"),
        ["store ftpx://somewhere/else: found no file system", "expected a folder, s3://", "store:"],
    ),
    "corrections that are not there": (
        put("corpus", "corrections", value=["no/such/review.csv"]),
        ["found no file or folder at", "review.csv"],
    ),
    "duplicate key": (
        broken_yaml("run: a\nrun: b\n"),
        ["found text that is not YAML", "found the key 'run' twice", "line 2"],
    ),
    "duplicate nested key": (
        broken_yaml("run: a\nstages:\n  ntk: {}\n  ntk: {}\n"),
        ["found the key 'ntk' twice", "line 4"],
    ),
    "not YAML": (
        broken_yaml("run: [a\ncorpus: b"),
        ["found text that is not YAML", "expected a mapping", "Check the indentation"],
    ),
    "code in YAML": (
        broken_yaml("run: !!python/object/apply:os.getcwd []"),
        ["found text that is not YAML", "python/object"],
    ),
    "empty file": (broken_yaml(""), ["found nothing", "expected a mapping", "configs/tiny.yaml"]),
    "a list": (broken_yaml("- run: a"), ["found a list of 1", "expected a mapping"]),
}


def planned(path: Path) -> Plan:
    run = read_config(path)
    store = Store(run.store_url)
    return make_plan(run, read_corpus(run, store), store)


@pytest.mark.parametrize("case", CASES)
def test_bad_configurations_and_data(case: str, tmp_path: Path, reader: Any) -> None:
    change, fragments = CASES[case]
    path = write_config(tmp_path, small_config(tmp_path, reader), change)
    with pytest.raises((RunError, StageError, StorageError)) as caught:
        planned(path)
    said = " ".join(str(caught.value).split())
    holds(said, *fragments)
    check_grammar(said)


@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        ("shard_size", ["--set shard_size", "found no key.path=value", "expected for example"]),
        ("=3", ["--set =3", "found no key.path=value"]),
        ("a..b=3", ["--set a..b=3", "found no key.path=value"]),
        ("run.deeper=3", ["found str", "at run", "expected a mapping", "Correct the path"]),
        ("stages.freeshap.rounds=[1", ["found a value that is not YAML", "Put quotes"]),
        ("stages.freeshap.sede=1", ["stages.freeshap.sede", "did you mean seed?"]),
        ("stages.freeshap.rounds=lots", ["stages.freeshap.rounds: found 'lots'", "integer"]),
    ],
)
def test_bad_overrides(tmp_path: Path, reader: Any, setting: str, fragments: list[str]) -> None:
    path = write_config(tmp_path, small_config(tmp_path, reader))
    with pytest.raises(ConfigFileError) as caught:
        read_config(path, [setting])
    said = " ".join(str(caught.value).split())
    holds(said, *fragments)
    check_grammar(said)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("no.yaml", ["found no such file", "configs/tiny.yaml"]),
        (".", ["found a file that cannot be read", "Name a YAML file"]),
        ("latin.yaml", ["cannot be read", "UTF-8"]),
    ],
)
def test_configurations_that_cannot_be_read(
    tmp_path: Path, name: str, fragments: list[str]
) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run: caf\xe9")
    with pytest.raises(ConfigFileError) as caught:
        read_config(tmp_path / name)
    holds(str(caught.value), *fragments)
    check_grammar(str(caught.value))
