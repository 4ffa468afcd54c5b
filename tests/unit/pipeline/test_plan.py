"""The plan: order, stages that are added, and keys that change with exactly the right things."""

import dataclasses
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from pipeline.config import dump_config, parse_config
from pipeline.corpus import CORPUS, Corpus
from pipeline.errors import ConfigFileError, RunError
from pipeline.plan import Plan, make_plan, sources, stages_in_order
from stages.gradients.projection import Projection
from stages.model.spec import ModelSpec
from stages.predictions.probe import PROBE
from storage.manifest import Manifest, ShardRecord, digest
from storage.table import Store

SHARDS = (("example", 0), ("example", 1), ("query", 0))
FEATURES = {"embedding", "hidden_states", "gradient", "ntk"}
Raw = dict[str, Any]


def corpus(changed: dict[str, str] | None = None, **details: Any) -> Corpus:
    """Two shards of examples and one of queries; `changed` renames keys such as `label:0`."""
    changed = changed or {}
    facts = {"classes": ["a", "b"], "column": "label", "flip_labels": None, **details}
    manifests = {}
    for table in CORPUS:
        records = [
            ShardRecord(
                digest(changed.get(f"{table}:{at}", f"{table}-{at}")), role, index, 10, 1, "", 0, 9
            )
            for at, (role, index) in enumerate(SHARDS)
        ]
        manifests[table] = Manifest(
            table, "ingest", 1, {}, {}, tuple(records), facts if table == "label" else {}
        )
    return Corpus(manifests)


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """A configuration whose model is a folder of a few bytes; planning reads no weight."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return {
        "run": str(tmp_path / "run"),
        "model": {"path": str(model)},
        "corpus": {"path": "rows.csv"},
        "stages": {"gradient": {}, "label_issues": {}, "freeshap": {"rounds": 2}},
    }


def plan(raw: Raw, over: Corpus | None = None) -> Plan:
    run = parse_config(raw, "test")
    return make_plan(run, over or corpus(), Store(run.store_url))


def keys(made: Plan) -> dict[str, list[str]]:
    return {node.instance: [task.key for task in node.tasks] for node in made.nodes}


def moved(before: Plan, after: Plan) -> set[str]:
    """Stages of which some shard has another key."""
    old, new = keys(before), keys(after)
    return {name for name in old if not set(old[name]) <= set(new[name])}


def test_stages_follow_what_they_read_and_missing_ones_are_added(raw: Raw) -> None:
    made = plan(raw)
    order = [node.instance for node in made.nodes]
    assert set(order) == {
        *raw["stages"],
        "embedding",
        "probe",
        "ntk",
        "hidden_states",
        "kernel_regression",
        "label_noise",
    }
    assert set(made.added) == set(order) - set(raw["stages"])
    for node in made.nodes:
        for instance, _ in node.reads.values():
            assert instance == "corpus" or order.index(instance) < order.index(node.instance)


def test_usual_values_of_young_fields_are_not_in_keys(raw: Raw) -> None:
    # Stores that are older than these fields stay of use.
    fields = [node.fields["model"] for node in plan(raw).nodes if "model" in node.fields]
    assert fields
    young = {"dtype", "class_order", "attn_implementation"}
    assert not any(young & model.keys() for model in fields)


def test_the_order_of_the_file_changes_no_key(raw: Raw) -> None:
    before = plan(raw)
    raw["stages"] = dict(reversed(raw["stages"].items()))
    assert keys(plan(raw)) == keys(before)


def test_tasks_follow_the_split(raw: Raw) -> None:
    tasks = {node.instance: node.tasks for node in plan(raw).nodes}
    for name in FEATURES:
        assert [(t.part.role, t.part.index) for t in tasks[name]] == list(SHARDS)
    assert [(t.part.role, t.part.index) for t in tasks["freeshap"]] == [("", 0), ("", 1)]
    assert len(tasks["probe"]) == len(tasks["label_noise"]) == 1
    every = [task.key for found in tasks.values() for task in found]
    assert len(every) == len(set(every))


def put(*path: str, value: Any) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for key in path[:-1]:
            raw = raw.setdefault(key, {})
        raw[path[-1]] = value

    return change


def other_weights(raw: Raw) -> None:
    (Path(raw["model"]["path"]) / "model.safetensors").write_bytes(b"others")


def same_weights_elsewhere(raw: Raw) -> None:
    folder = Path(raw["model"]["path"])
    raw["model"]["path"] = str(folder.rename(folder.with_name("moved")))


FLAGS = {"label_noise", "label_issues"}
JUDGED = {"kernel_regression", *FLAGS}
ALL = {*FEATURES, "probe", *JUDGED, "freeshap"}
LABEL_FREE = {"embedding", "hidden_states"}
BY_PROBE = {"gradient", "ntk", "freeshap"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("stages", "freeshap", "rounds", value=7), set()),
        (put("ray", "default", value={"cpus": 4}), set()),
        (put("ray", "engine", value="in_process"), set()),
        (put("run", value="elsewhere"), set()),
        (put("shard_size", value=7), set()),
        (same_weights_elsewhere, set()),
        (put("stages", "prediction", value={}), set()),
        (put("stages", "freeshap", "seed", value=1), {"freeshap"}),
        (put("stages", "freeshap", "utilities", value=["margin"]), {"freeshap"}),
        (put("stages", "freeshap", "units_per_round", value=3), {"freeshap"}),
        (put("stages", "gradient", "projection", value={"seed": 1}), {"gradient"}),
        (put("stages", "ntk", value={"projection": {"seed": 1}}), {"ntk", "freeshap"}),
        (put("stages", "kernel_regression", value={"ridge": 0.5}), JUDGED),
        (put("stages", "embedding", value={"layer": -2}), {"embedding", "probe", *BY_PROBE}),
        (put("stages", "probe", value={"regularization": 0.5}), {"probe", *BY_PROBE}),
        (put("model", "max_length", value=64), ALL),
        (put("model", "dtype", value="float32"), set()),
        (put("model", "dtype", value="auto"), ALL),
        (put("model", "attn_implementation", value="eager"), ALL),
        (put("stages", "gradient", "checkpointing", value=True), set()),
        (put("model", "train", value={"last_blocks": 1}), BY_PROBE),
        (other_weights, ALL),
    ],
)
def test_keys_change_with_the_fields_that_change_rows(
    raw: Raw, change: Callable[[Raw], None], expected: set[str]
) -> None:
    before = plan(raw)
    changed = deepcopy(raw)
    change(changed)
    after = moved(before, plan(changed))
    assert after == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"text:0": "x"}, ALL),
        ({"text:2": "x"}, ALL),
        ({"label:0": "x"}, ALL - LABEL_FREE),
        ({"label:2": "x"}, ALL - LABEL_FREE),
        ({"extra:0": "x"}, set()),
        ({"rejected:0": "x"}, set()),
    ],
)
def test_keys_change_with_the_shards_that_are_read(
    raw: Raw, changed: dict[str, str], expected: set[str]
) -> None:
    assert moved(plan(raw), plan(raw, corpus(changed))) == expected


def test_only_the_shard_that_changed_is_computed_again(raw: Raw) -> None:
    before, after = keys(plan(raw)), keys(plan(raw, corpus({"text:1": "x"})))
    same = [a == b for a, b in zip(before["embedding"], after["embedding"], strict=True)]
    assert same == [True, False, True]


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


def test_stages_that_do_not_fit(raw: Raw) -> None:
    raw["stages"] = {"a": {"stage": "ntk"}, "b": {"stage": "ntk"}, "freeshap": {}}
    with pytest.raises(ConfigFileError, match=r"2 writers of 'ntk' \(a, b\)"):
        stages_in_order(parse_config(raw, "test"))
    raw["stages"]["freeshap"] = {"kernel": ["a", "b"]}
    assert len(stages_in_order(parse_config(raw, "test"))[0]) == 5


@pytest.mark.parametrize("stage", ["freeshap", "tracin", "similarity", "retrain", "knn_shapley"])
def test_what_explains_queries_or_measures_on_them_is_refused_without_any(
    raw: Raw, stage: str
) -> None:
    tables = {
        name: dataclasses.replace(
            table, shards=tuple(shard for shard in table.shards if shard.role == "example")
        )
        for name, table in corpus().tables.items()
    }
    with pytest.raises(ConfigFileError, match=rf"stages.{stage}: found no queries, expected some"):
        plan({**raw, "stages": {stage: {}}}, Corpus(tables))
    assert plan({**raw, "stages": {"label_issues": {}}}, Corpus(tables)).nodes


def test_curvature_alone_gets_gradients_whose_layers_are_not_mixed(raw: Raw) -> None:
    made = plan({**raw, "stages": {"curvature": {}}})
    assert set(made.added) == {"embedding", "probe", "gradient"}
    stages = {node.instance: node.stage for node in made.nodes}
    assert stages["gradient"].projection == Projection(inputs=16, outputs=16, dim=None)
    made = plan({**raw, "stages": {"curvature": {"kind": "gauss_newton"}}})
    stages = {node.instance: node.stage for node in made.nodes}
    assert stages["ntk"].projection == Projection(inputs=16, outputs=16, dim=None)
    assert stages["ntk"].logit == "all"


def test_influence_alone_gets_curvature_of_the_same_gradients(raw: Raw) -> None:
    made = plan({**raw, "stages": {"influence": {}}})
    assert set(made.added) == {"embedding", "probe", "gradient", "curvature"}
    stages = {node.instance: node.stage for node in made.nodes}
    assert stages["gradient"].projection == Projection(inputs=16, outputs=16, dim=None)
    mine = {"stage": "gradient", "projection": {"dim": 64}, "queries": "predicted"}
    made = plan({**raw, "stages": {"influence": {"gradient": "mine"}, "mine": mine}})
    stages = {node.instance: node.stage for node in made.nodes}
    assert stages["curvature"].gradient == "mine"
    with pytest.raises(ConfigFileError, match="found a corpus with task: regression"):
        plan({**raw, "stages": {"mine": mine}}, corpus(task="regression", classes=[]))


def test_influence_wants_gradients_and_curvature_in_the_same_coordinates(raw: Raw) -> None:
    short = {"projection": {"dim": 64}}
    stages: Raw = {"influence": {}, "gradient": short, "other": {"stage": "gradient", **short}}
    stages["curvature"] = {"gradient": "other"}
    with pytest.raises(ConfigFileError, match="influence: curvature: found the curvature of other"):
        plan({**raw, "stages": stages})
    stages = {"influence": {}, "gradient": short, "ntk": {**short, "logit": "all"}}
    stages["curvature"] = {"kind": "gauss_newton"}
    with pytest.raises(ConfigFileError, match="Set ntk: ntk in gradient"):
        plan({**raw, "stages": stages})
    stages["gradient"] = {**short, "ntk": "ntk"}
    assert set(plan({**raw, "stages": stages}).added) == {"embedding", "probe", "prediction"}


@pytest.mark.parametrize("stage", ["influence", "tracin"])
def test_pairs_of_tokens_are_refused(raw: Raw, stage: str) -> None:
    tokens = {"per": "token", "projection": {"dim": 64}}
    raw = {**raw, "model": {**raw["model"], "head": "completion"}}
    over = corpus(task="completion", classes=[])
    with pytest.raises(ConfigFileError, match=f"{stage}: gradient: found per: token"):
        plan({**raw, "stages": {"gradient": tokens, stage: {}}}, over)
    rows = {"projection": {"dim": 64}}
    assert len(plan({**raw, "stages": {"gradient": rows, stage: {}}}, over).nodes) >= 2


def test_what_the_file_names_stays_as_it_says(raw: Raw) -> None:
    own = {"projection": {"inputs": 8, "dim": None}}
    made = plan({**raw, "stages": {"curvature": {}, "gradient": own}})
    stages = {node.instance: node.stage for node in made.nodes}
    assert stages["gradient"].projection == Projection(inputs=8, dim=None)


@pytest.mark.parametrize(
    ("projection", "numbers"),
    [({}, "8192"), ({"inputs": 64, "outputs": 65, "dim": None}, "4160"), ({"dim": 5000}, "5000")],
)
def test_gradients_of_long_blocks_are_refused(raw: Raw, projection: Raw, numbers: str) -> None:
    stages = {"mine": {"stage": "gradient", "projection": projection}}
    stages["curvature"] = {"gradient": "mine"}
    with pytest.raises(ConfigFileError, match=rf"curvature: mine: found .* have {numbers} numbers"):
        plan({**raw, "stages": stages})
    stages = {"mine": {"stage": "ntk", "projection": projection, "logit": "all"}}
    stages["curvature"] = {"ntk": "mine", "kind": "gauss_newton"}
    with pytest.raises(ConfigFileError, match=rf"curvature: mine: found .* have {numbers} numbers"):
        plan({**raw, "stages": stages})


@pytest.mark.parametrize("order", [1, -1])
def test_readers_that_ask_for_different_stages_get_one_each(raw: Raw, order: int) -> None:
    stages: Raw = {"freeshap": {}, "curvature": {"kind": "gauss_newton"}}
    made = plan({**raw, "stages": dict(list(stages.items())[::order])})
    assert set(made.added) == {"embedding", "probe", "prediction", "ntk", "ntk_for_curvature"}
    found = {node.instance: node.stage for node in made.nodes}
    assert (found["ntk"].logit, found["ntk_for_curvature"].logit) == (0, "all")
    assert made.readers("ntk_for_curvature") == ["curvature"]
    (note,) = made.notes
    assert note.startswith("ntk_for_curvature is added for curvature, beside ntk for freeshap: ")
    assert "logit: all, projection: {inputs: 16, outputs: 16, dim: null}" in note


@pytest.mark.parametrize("order", [1, -1])
def test_each_wish_is_added_once_and_its_name_changes_no_key(raw: Raw, order: int) -> None:
    names = ["tracin", "influence", "udig", "dig"][::order]
    made = plan({**raw, "stages": {name: {} for name in names}})
    again = {"gradient_for_influence", "word_path_for_dig"}
    assert set(made.added) >= {"gradient", "curvature", "word_path"} | again
    found = {node.instance: node.stage for node in made.nodes}
    assert found["curvature"].gradient == found["influence"].gradient == "gradient_for_influence"
    assert made.readers("gradient_for_influence") == ["curvature", "influence"]
    assert (found["word_path"].candidates, found["dig"].paths) == ("uniform", "word_path_for_dig")
    assert len(made.notes) == 2
    together = keys(made)
    for name in names:
        alone = keys(plan({**raw, "stages": {name: {}}}))
        assert alone[name] == together[name]
        for needed in set(alone) & {"gradient", "word_path"}:
            assert alone[needed] in (together[needed], together.get(f"{needed}_for_{name}"))


def test_the_resolved_file_plans_the_same_run(raw: Raw) -> None:
    made = plan({**raw, "stages": {"tracin": {}, "influence": {}, "udig": {"anchors": 9}}})
    resolved = {node.instance: node.stage for node in made.nodes}
    written = yaml.safe_load(dump_config(dataclasses.replace(made.run, stages=resolved)))
    again = plan(written)
    assert (again.added, again.notes) == ((), ())
    assert {n.instance: n.stage for n in again.nodes} == resolved
    assert keys(again) == keys(made)


def test_names_that_a_person_chose_stay_in_keys(raw: Raw) -> None:
    mine = {"stage": "gradient", "projection": {"inputs": 16, "outputs": 16, "dim": None}}
    own = plan({**raw, "stages": {"mine": mine, "influence": {"gradient": "mine"}}})
    plain = plan({**raw, "stages": {"influence": {}}})
    assert keys(own)["mine"] == keys(plain)["gradient"]
    assert keys(own)["influence"] != keys(plain)["influence"]


def test_of_wishes_that_are_none_the_default_the_first_reader_has_the_plain_name(raw: Raw) -> None:
    stages: Raw = {"udig": {"anchors": 9}, "dig": {}, "more": {"stage": "dig", "midpoints": 1}}
    for order in (1, -1):
        made = plan({**raw, "stages": dict(list(stages.items())[::order])})
        assert set(made.readers("word_path")) == {"dig", "more"}
        assert made.readers("word_path_for_udig") == ["udig"]


def test_what_the_file_names_serves_all_and_is_refused_where_it_does_not_fit(raw: Raw) -> None:
    with pytest.raises(ConfigFileError, match="stages.dig: neighbours: found 500 here and 50 in"):
        plan({**raw, "stages": {"udig": {}, "dig": {}, "word_path": {}}})
    both: Raw = {"classes": {"stage": "ntk", "logit": "all", "projection": {"dim": 2048}}}
    both |= {"ntk": {}, "curvature": {"kind": "gauss_newton", "ntk": "classes"}, "freeshap": {}}
    added = plan({**raw, "stages": both}).added
    assert set(added) == {"embedding", "probe", "prediction"}


def test_stages_of_another_model_get_anchors_and_continuations_of_it(
    raw: Raw, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"others")
    raw["model"]["head"] = "checkpoint"
    own = {"stage": "udig", "model": {"path": str(other), "head": "checkpoint"}}
    found = {n.instance: n.stage for n in plan({**raw, "stages": {"udig": {}, "own": own}}).nodes}
    assert found[found["own"].paths].model == found["own"].model
    assert found["own"].paths == "word_path_for_own"
    speaking = {"stage": "token_support", "model": {"path": str(other), "head": "completion"}}
    over = corpus(task="completion", classes=[])
    texts = {"path": "rows.jsonl", "task": "completion"}
    raw = {**raw, "model": None, "corpus": texts, "stages": {"own": speaking}}
    made = plan(raw, over)
    assert made.added == ("continuation",)


def test_resources_of_a_stage_are_those_of_what_is_added_beside_it(raw: Raw) -> None:
    raw["ray"] = {"stages": {"gradient": {"gpus": 1}, "word_path_for_dig": {"cpus": 2}}}
    run = plan({**raw, "stages": {"tracin": {}, "influence": {}, "udig": {}, "dig": {}}}).run
    assert run.resources("gradient_for_influence").gpus == 1
    assert run.resources("word_path_for_dig").cpus == 2
    with pytest.raises(ConfigFileError, match="ray.stages.paths_for_dig: found no stage instance"):
        plan({**raw, "ray": {"stages": {"paths_for_dig": {}}}})


def test_gradients_of_logits_are_added_as_the_loss_needs_them(raw: Raw) -> None:
    own = {"ntk": "ntk", "projection": {"dim": 99, "seed": 3}, "token_budget": 512}
    made = plan({**raw, "stages": {"gradient": own}})
    assert set(made.added) == {"embedding", "probe", "ntk", "prediction"}
    stages = {node.instance: node.stage for node in made.nodes}
    loss, logits = stages["gradient"], stages["ntk"]
    for name in ("model", "projection", "precision", "token_budget", "dtype"):
        assert getattr(loss, name) == getattr(logits, name)
    assert (logits.logit, logits.output) == ("all", "logit")
    assert set(stages["gradient"].reads) == {"ntk", "prediction", "label"}
    # A corrected label changes its shard of the loss gradients and nothing else, once the probe is
    # kept, which the plan of an empty store cannot know.
    raw["model"] |= {"head": "random", "num_labels": 2}
    before = plan({**raw, "stages": {"gradient": own}})
    after = plan({**raw, "stages": {"gradient": own}}, corpus({"label:0": "x"}))
    assert moved(before, after) == {"gradient"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": {"logit": 0}}, "logits: found gradients of logit: 0, output: logit"),
        ({"logits": {"output": "margin"}}, "logits: found gradients of logit: all, output: margin"),
        ({"logits": {"projection": {"seed": 1}}}, "logits: found another projection"),
        ({"logits": {"token_budget": 7}}, "logits: found another token_budget"),
        ({"logits": {"max_length": 9}}, "guesses: found logits of another model"),
        ({"logits": {"train": {"last_blocks": 1}}}, "logits: found another model than"),
        ({"logits": {"max_length": 9}, "guesses": {"max_length": 9}}, "logits: found another mod"),
        ({"guesses": {"head": "random", "num_labels": 2}}, "guesses: found logits of another mo"),
    ],
    ids=str,
)
def test_gradients_of_other_logits_are_refused(
    raw: Raw, change: dict[str, Any], message: str
) -> None:
    fields: dict[str, Any] = {"logits": {"stage": "ntk", "logit": "all"}}
    fields["guesses"] = {"stage": "prediction"}
    for instance, changes in change.items():
        own = {k: v for k, v in changes.items() if hasattr(ModelSpec(path=""), k)}
        rest = {k: v for k, v in changes.items() if k not in own}
        model = {"model": {**raw["model"], **own}} if own else {}
        fields[instance] = {**fields[instance], **rest, **model}
    loss = {"stage": "gradient", "ntk": "logits", "predictions": "guesses"}
    with pytest.raises(ConfigFileError, match=f"stages.loss: {message}"):
        plan({**raw, "stages": {**fields, "loss": loss}})


def test_fresh_adapters_and_the_probe_without_a_model_change_no_logit(raw: Raw) -> None:
    train = {**raw["model"], "train": {"lora": {"rank": 2}}}
    stages: dict[str, Any] = {
        "ntk": {"logit": "all", "model": train},
        "gradient": {"ntk": "ntk", "model": train},
    }
    assert plan({**raw, "stages": {**stages, "prediction": {}}})
    assert plan({**raw, "stages": {**stages, "prediction": {"model": None}}})


def test_gauss_newton_wants_gradients_of_the_very_logits(raw: Raw) -> None:
    stages: dict[str, Any] = {"curvature": {"kind": "gauss_newton"}}
    stages["ntk"] = {"logit": "all", "output": "margin", "projection": {"dim": 64}}
    with pytest.raises(ConfigFileError, match="curvature: ntk: found gradients of .* margin"):
        plan({**raw, "stages": stages})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ntk": "ntk", "model": {"head": "completion"}}, "ntk: found ntk with head: completion"),
        ({"predictions": "mine"}, "predictions: found mine with ntk: null"),
    ],
)
def test_fields_without_effect_are_refused(raw: Raw, fields: Raw, message: str) -> None:
    if "model" in fields:
        fields = {**fields, "model": {**raw["model"], **fields["model"]}}
    with pytest.raises(ConfigFileError, match=message):
        plan({**raw, "stages": {"gradient": fields}})


def features(raw: Raw, *, without: str | None = None, **stages: Any) -> Plan:
    """The plan over a corpus with features and without a model, one of its tables taken away."""
    bare = {k: v for k, v in raw.items() if k != "model"}
    bare["corpus"] = {"path": "rows.csv", "features": "vectors.npy", "text": None}
    tables = {name: m for name, m in corpus().tables.items() if name != without}
    return plan({**bare, "stages": stages}, Corpus(tables))


def test_features_of_the_corpus_are_read_shard_by_shard_without_a_model(raw: Raw) -> None:
    made = features(
        raw,
        probe={"embedding": "features"},
        prediction={"embedding": "features"},
        label_issues={},
        kernel_regression={"kernel": ["features"]},
    )
    nodes = {node.instance: node for node in made.nodes}
    assert made.added == ("label_noise",)
    assert nodes["prediction"].reads["features"] == ("corpus", "features")
    assert len(nodes["prediction"].tasks) == len(SHARDS)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"freeshap": {}}, "stages.freeshap: found that it reads 'ntk', which needs a model"),
        ({"probe": {}}, "stages.probe: found that it reads 'embedding', which needs a model"),
        ({"probe": {"embedding": "features"}, "text": {"stage": "probe"}}, "name of a table of"),
    ],
)
def test_a_model_is_asked_for_only_where_one_is_needed(
    raw: Raw, stages: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigFileError, match=message):
        features(raw, **stages)


def test_a_corpus_without_features_or_text_is_told_so(raw: Raw) -> None:
    with pytest.raises(ConfigFileError, match="reads features, expected a corpus that has it"):
        features(raw, without="features", probe={"embedding": "features"})
    tables = dict(corpus().tables)
    tables["text"] = dataclasses.replace(tables["text"], details={"has_text": False})
    with pytest.raises(ConfigFileError, match="stages.gradient: found that it reads the text"):
        plan(raw, Corpus(tables))


@pytest.mark.parametrize("task", ["regression", "completion"])
@pytest.mark.parametrize("stage", ["label_issues", "freeshap", "leave_one_out", "knn_shapley"])
def test_stages_for_classes_refuse_other_tasks(raw: Raw, stage: str, task: str) -> None:
    with pytest.raises(ConfigFileError, match=f"found a corpus with task: {task}, expected class"):
        plan({**raw, "stages": {stage: {}}}, corpus(task=task, classes=[]))


@pytest.mark.parametrize(
    ("task", "stage", "advice"),
    [
        ("regression", "label_issues", "Leave the stage out, or correct corpus.task"),
        ("completion", "label_issues", "Use answer_issues instead, or correct corpus.task"),
        ("preference", "label_issues", "Use preference_issues instead"),
        ("classification", "answer_issues", "Use label_issues instead"),
        ("regression", "freeshap", r"Use `kernel: \[gradient\], utilities: \[loss\]` instead"),
    ],
)
def test_a_stage_that_does_not_fit_names_itself_and_what_does(
    raw: Raw, task: str, stage: str, advice: str
) -> None:
    """Already by the YAML: the stages that it would add are not asked, nor is the corpus read."""
    raw["corpus"] = {"path": "rows.jsonl", "task": task}
    with pytest.raises(ConfigFileError, match=f"^stages.{stage}: .* works on. {advice}"):
        stages_in_order(parse_config({**raw, "stages": {stage: {}}}, "test"))


def test_what_an_added_stage_lacks_is_told_of_the_stage_that_adds_it(raw: Raw) -> None:
    said = "label_issues: found that kernel_regression, which it adds, reads 'hidden_states', .* "
    with pytest.raises(ConfigFileError, match=said + r"`kernel_regression: {kernel: \[features"):
        features(raw, label_issues={})
    bare = {name: m for name, m in corpus().tables.items()}
    bare["text"] = dataclasses.replace(bare["text"], details={"has_text": False})
    said = "stages.label_issues, for which hidden_states is added: found that it reads the text"
    with pytest.raises(ConfigFileError, match=said):
        plan({**raw, "stages": {"label_issues": {}}}, Corpus(bare))


def test_a_regression_plans_what_can_regress(raw: Raw) -> None:
    kernel = {"kernel_regression": {"kernel": ["embedding"]}, "probe": {}}
    made = plan({**raw, "stages": kernel}, corpus(task="regression", classes=[]))
    assert {node.instance for node in made.nodes} == {"embedding", "kernel_regression", "probe"}
    with pytest.raises(ConfigFileError, match="expected classification or regression"):
        plan({**raw, "stages": kernel}, corpus(task="completion", classes=[]))


def test_blocks_of_queries_depend_on_their_own_labels_and_on_all_examples(raw: Raw) -> None:
    raw = {**raw, "stages": {"knn_shapley": {}}}
    before = plan(raw)
    tasks = {node.instance: node.tasks for node in before.nodes}["knn_shapley"]
    assert [(task.part.role, task.part.index) for task in tasks] == [("query", 0)]
    assert moved(before, plan(raw, corpus({"label:1": "new"}))) == {"knn_shapley"}
    assert moved(before, plan(raw, corpus({"label:2": "new"}))) == {"knn_shapley"}


def test_scores_of_pairs_depend_on_their_own_examples_and_on_all_queries(raw: Raw) -> None:
    model = {**raw["model"], "head": "random", "num_labels": 2}
    raw = {**raw, "model": model, "stages": {"tracin": {}, "curvature": {"gradient": "short"}}}
    raw["stages"]["gradient"] = {}
    raw["stages"]["short"] = {"stage": "gradient", "projection": {"dim": 64}}

    def leaves(over: Corpus) -> dict[str, list[str]]:
        return {name: found[:2] for name, found in keys(plan(raw, over)).items()}

    before, after = leaves(corpus()), leaves(corpus({"label:0": "new"}))
    assert [x == y for x, y in zip(before["tracin"], after["tracin"], strict=True)] == [False, True]
    after = leaves(corpus({"label:2": "new"}))
    assert not set(before["tracin"]) & set(after["tracin"])
    assert before["curvature"] == after["curvature"]


def test_a_stage_can_read_another_table_of_an_instance_than_its_first(raw: Raw) -> None:
    stages = {name: {"stage": "kernel_regression"} for name in ("one", "two")}
    stages["values"] = {"stage": "kernel_representer", "regression": "two"}
    nodes = {node.instance: node for node in plan({**raw, "stages": stages}).nodes}
    assert nodes["values"].reads["two.kernel_dual"] == ("two", "kernel_dual")
    alone = {"kernel_representer": {"kernel": ["embedding"]}}
    made = plan({**raw, "stages": alone})
    assert set(made.added) == {"embedding", "kernel_regression"}
    ntk = {"kernel": ["ntk"]}
    for fields in ({"per_class": True, **ntk}, {"normalize": False}, {"kernel": ["embedding"]}):
        own = ntk if "per_class" in fields else {}
        stages = {"kernel_regression": fields, "kernel_representer": own}
        with pytest.raises(ConfigFileError, match="kernel_representer: kernel_regression: found"):
            plan({**raw, "stages": stages})


def test_work_in_blocks_of_queries_needs_queries(raw: Raw) -> None:
    tables = {
        name: dataclasses.replace(manifest, shards=manifest.shards[:2])
        for name, manifest in corpus().tables.items()
    }
    with pytest.raises(ConfigFileError, match=r"stages.knn_shapley: found no queries, expected"):
        plan({**raw, "stages": {"knn_shapley": {}}}, Corpus(tables))


@pytest.mark.parametrize("order", [1, -1])
def test_who_is_read_does_not_depend_on_the_order_of_the_file(raw: Raw, order: int) -> None:
    # label_issues adds a kernel_regression, which writes a table `prediction`, too.
    raw["stages"] = dict([("label_issues", {}), ("example_loss", {})][::order])
    stages, _ = stages_in_order(parse_config(raw, "test"))
    assert sources("example_loss", stages)["prediction"] == ("prediction", "prediction")
