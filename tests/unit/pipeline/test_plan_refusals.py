"""What a plan refuses, and where it needs neither model nor queries."""

import dataclasses
from typing import Any

import pytest
from plans import SHARDS, Raw, corpus, plan

from pipeline.config import parse_config
from pipeline.corpus import Corpus
from pipeline.errors import ConfigFileError
from pipeline.plan import Plan, stages_in_order


def test_stages_that_do_not_fit(raw: Raw) -> None:
    raw["stages"] = {"a": {"stage": "ntk"}, "b": {"stage": "ntk"}, "freeshap": {}}
    with pytest.raises(ConfigFileError, match=r"2 writers of 'ntk' \(a, b\)"):
        stages_in_order(parse_config(raw, "test"))
    raw["stages"]["freeshap"] = {"kernel": ["a", "b"]}
    assert len(stages_in_order(parse_config(raw, "test"))[0]) == 5


@pytest.mark.parametrize(
    "stage", ["freeshap", "tracin", "similarity", "retrain", "knn_shapley", "query_relevance"]
)
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


@pytest.mark.parametrize("stage", ["influence", "tracin"])
def test_pairs_of_tokens_are_refused(raw: Raw, stage: str) -> None:
    tokens = {"per": "token", "projection": {"dim": 64}}
    raw = {**raw, "model": {**raw["model"], "head": "completion"}}
    over = corpus(task="completion", classes=[])
    with pytest.raises(ConfigFileError, match=f"{stage}: gradient: found per: token"):
        plan({**raw, "stages": {"gradient": tokens, stage: {}}}, over)
    rows = {"projection": {"dim": 64}}
    assert len(plan({**raw, "stages": {"gradient": rows, stage: {}}}, over).nodes) >= 2


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


def test_work_in_blocks_of_queries_needs_queries(raw: Raw) -> None:
    tables = {
        name: dataclasses.replace(manifest, shards=manifest.shards[:2])
        for name, manifest in corpus().tables.items()
    }
    with pytest.raises(ConfigFileError, match=r"stages.knn_shapley: found no queries, expected"):
        plan({**raw, "stages": {"knn_shapley": {}}}, Corpus(tables))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            {"example_loss": {"predictions": "similarity"}, "similarity": {}},
            "predictions: found similarity, a table of query_id, .* such as predict",
        ),
        ({"similarity": {"features": "prediction"}}, "features: found prediction, a table of id"),
        ({"freeshap": {"kernel": ["embedding", "probe"]}}, "kernel: found probe, .*of vectors"),
        ({"tracin": {"gradients": ["text"]}}, "gradients: found text, a table of id, role, text"),
        ({"influence": {"curvature": "ntk"}, "ntk": {}}, "curvature: found ntk, .*of curvature"),
    ],
)
def test_tables_of_another_kind_are_refused(raw: Raw, stages: Raw, said: str) -> None:
    with pytest.raises(ConfigFileError, match=rf"^stages\.\w+: {said}"):
        plan({**raw, "stages": stages})
