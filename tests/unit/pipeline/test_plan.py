"""The plan: order, stages that are added, and keys that change with exactly the right things."""

import dataclasses
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from plans import FEATURES, JUDGED, SHARDS, Raw, corpus, keys, moved, plan

from pipeline.config import dump_config, parse_config
from pipeline.corpus import Corpus
from pipeline.errors import ConfigFileError
from pipeline.plan import sources, stages_in_order


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


@pytest.mark.parametrize("order", [1, -1])
def test_who_is_read_does_not_depend_on_the_order_of_the_file(raw: Raw, order: int) -> None:
    # label_issues adds a kernel_regression, which writes a table `prediction`, too.
    raw["stages"] = dict([("label_issues", {}), ("example_loss", {})][::order])
    stages, _ = stages_in_order(parse_config(raw, "test"))
    assert sources("example_loss", stages)["prediction"] == ("prediction", "prediction")
