"""What a plan adds beside the stages that the file names."""

from pathlib import Path
from typing import Any

import pytest
from plans import Raw, corpus, keys, moved, plan

from pipeline.errors import ConfigFileError
from stages.gradients.projection import Projection
from stages.model.spec import ModelSpec


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


def test_what_the_file_names_stays_as_it_says(raw: Raw) -> None:
    own = {"projection": {"inputs": 8, "dim": None}}
    made = plan({**raw, "stages": {"curvature": {}, "gradient": own}})
    stages = {node.instance: node.stage for node in made.nodes}
    assert stages["gradient"].projection == Projection(inputs=8, dim=None)


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
