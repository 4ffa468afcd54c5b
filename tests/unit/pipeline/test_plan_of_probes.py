"""Which probe a run takes: that of its last execution, a pinned one, or a new one."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest
from plans import JUDGED, Raw, corpus, keys, moved, plan

from pipeline.config import parse_config
from pipeline.corpus import Corpus
from pipeline.errors import ConfigFileError, RunError
from pipeline.plan import Plan, make_plan
from stages.predictions.probe import PROBE
from storage.manifest import Manifest, ShardRecord
from storage.table import Store


def fitted(raw: Raw, over: Corpus | None = None) -> tuple[str, Store]:
    """Key of a probe in the store, with the manifests that say what it was fitted on."""
    made = plan(raw, over)
    store = Store(made.run.store_url)
    nodes = {node.instance: node for node in made.nodes}
    for table, manifest in made.corpus.tables.items():
        if not store.has_manifest(table, manifest.key):
            store.write_manifest(manifest)
    records = tuple(
        ShardRecord(task.key, task.part.role, task.part.index, 10, 1, "", 0, 9)
        for task in nodes["embedding"].tasks
    )
    store.write_manifest(Manifest("embedding", "embedding", 1, {}, {}, records))
    node = nodes["probe"]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 1.0], pa.float32()), 1)
    bias = pa.array([0.0, 0.0], pa.float32())
    rows = pa.Table.from_arrays([pa.array([0, 1]), vectors, bias], PROBE.schema.names)
    record = store.write_shard(PROBE, node.tasks[0].key, "", 0, rows)
    manifest = Manifest(
        "probe", "probe", node.stage.version, dict(node.fields), dict(node.inputs), (record,)
    )
    store.write_manifest(manifest)
    return node.tasks[0].key, store


def probe_of(made: Plan) -> str:
    return next(node.tasks[0].key for node in made.nodes if node.instance == "probe")


def again(raw: Raw, over: Corpus, last: str) -> Plan:
    """The plan of a run that used the probe `last` when it was executed before."""
    run = parse_config(raw, "test")
    return make_plan(run, over, Store(run.store_url), {"probe": last})


APPENDED = corpus()
for _table, _manifest in list(APPENDED.tables.items()):
    _more = ShardRecord(f"{_table}-new", "example", 2, 10, 1, "", 20, 29)
    _shards = (*_manifest.shards, _more)
    APPENDED.tables[_table] = dataclasses.replace(_manifest, shards=_shards)  # type: ignore


@pytest.mark.parametrize("over", [corpus({"label:0": "x"}), APPENDED], ids=["corrected", "more"])
def test_the_probe_of_the_last_execution_is_kept_and_the_plan_says_so(
    raw: Raw, over: Corpus
) -> None:
    key, _ = fitted(raw)
    before, after = again(raw, corpus(), key), again(raw, over, key)
    assert before.notes == ()
    assert probe_of(before) == probe_of(after) == key
    assert any(key in note and "artefacts.probe=refit" in note for note in after.notes)
    if over is not APPENDED:
        # With the probe kept, only what reads labels itself is moved.
        assert moved(before, after) == {"gradient", "freeshap", *JUDGED}
        first, second = keys(before)["gradient"], keys(after)["gradient"]
        assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True]


@pytest.mark.parametrize("over", [corpus({"label:0": "x"}), APPENDED], ids=["corrected", "more"])
def test_a_run_that_was_never_executed_takes_no_probe_from_the_store(
    raw: Raw, over: Corpus
) -> None:
    """Another run over the same texts may have other labels; with the same it has the same key."""
    key, _ = fitted(raw)
    other = {**raw, "store": Store(parse_config(raw, "test").store_url).root, "run": "other"}
    made = plan(other, over)
    assert probe_of(made) != key
    assert made.notes == ()
    assert probe_of(plan(other)) == key


@pytest.mark.parametrize(
    "over",
    [
        corpus({"label:0": "x"}, classes=["a", "b", "c"]),
        corpus({"label:0": "x"}, column="topic"),
        corpus({"label:0": "x"}, flip_labels={"fraction": 0.1, "seed": 0}),
        corpus({"text:0": "x", "text:1": "y", "label:0": "x"}),
    ],
    ids=["classes", "column", "flips", "texts"],
)
def test_a_probe_is_not_kept_for_another_question(raw: Raw, over: Corpus) -> None:
    key, _ = fitted(raw)
    made = again(raw, over, key)
    assert probe_of(made) != key
    assert made.notes == ()


def test_the_probe_of_the_last_time_goes_before_that_of_the_same_labels(raw: Raw) -> None:
    first, store = fitted(raw)
    changed = corpus({"label:0": "u", "label:1": "v"})
    raw["artefacts"] = {"probe": "refit"}
    second, _ = fitted(raw, changed)
    raw.pop("artefacts")
    assert probe_of(plan(raw, changed)) == second
    assert probe_of(again(raw, changed, first)) == first
    # Gone from the store, it is fitted again on what its manifest says, and else anew.
    (Path(store.root) / "probe" / f"{first}.parquet").unlink()
    assert probe_of(again(raw, changed, first)) == first
    for manifest in (Path(store.root) / "probe").glob("*.json"):
        manifest.unlink()
    assert probe_of(again(raw, changed, first)) == second


def test_pins(raw: Raw) -> None:
    key, store = fitted(raw)
    labels = plan(raw).corpus.tables["label"].key
    changed = corpus({"label:0": "x"})
    raw["artefacts"] = {"probe": "refit"}
    assert probe_of(plan(raw, changed)) != key
    raw["artefacts"] = {"probe": {"key": key, "labels": labels}}
    made = plan(raw, changed)
    assert probe_of(made) == key
    assert next(n.pinned for n in made.nodes if n.instance == "probe") == {
        "key": key,
        "labels": labels,
    }
    with pytest.raises(RunError, match=r"other classes.*refit"):
        plan(raw, corpus({"label:0": "x"}, classes=["c", "d"]))
    (Path(store.root) / "probe" / f"{key}.parquet").unlink()
    # What it was fitted on is in its manifest: it can be fitted on just that again.
    (again,) = (node for node in plan(raw, changed).nodes if node.instance == "probe")
    assert [task.key for task in again.missing] == [key]
    for manifest in (Path(store.root) / "probe").glob("*.json"):
        manifest.unlink()
    with pytest.raises(RunError, match=rf"no artefact {key}.*probe: refit"):
        plan(raw, changed)
    raw["artefacts"] = {"probe": "keep"}
    with pytest.raises(ConfigFileError, match="expected `refit`"):
        plan(raw)


def test_what_lies_in_the_store_is_done(raw: Raw) -> None:
    fitted(raw)
    done = {node.instance: len(node.done) for node in plan(raw).nodes if node.done}
    assert done == {"probe": 1}
