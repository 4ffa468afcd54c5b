"""Outputs and classes are joined by name; what cannot be joined is refused with both sets."""

import json
from pathlib import Path
from typing import Any

import pytest
from runs import check_grammar

from stages.model.class_names import CorpusClasses, join, ordered_words, output_names
from stages.model.spec import ModelSpec, Prompt
from stages.stage import ConfigError, ModelError

SPEC = ModelSpec("some/model", head="checkpoint")
GENERIC = ("LABEL_0", "LABEL_1", "LABEL_2")


def config_of(folder: Path, **config: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSpec(str(folder), head="checkpoint")


@pytest.mark.parametrize(
    ("outputs", "classes", "order"),
    [
        (("neg", "pos"), ("neg", "pos"), (0, 1)),
        (("pos", "neg"), ("neg", "pos"), (1, 0)),
        (("c", "a", "b"), ("a", "b", "c"), (1, 2, 0)),
        # Numbers are names, too.
        (("1", "0"), ("0", "1"), (1, 0)),
        (("10", "20"), ("20", "10"), (1, 0)),
        # Names that differ by case alone are two, where both sides have both.
        (("a", "A"), ("A", "a"), (1, 0)),
    ],
)
def test_equal_names_are_joined_in_any_order(
    outputs: tuple[str, ...], classes: tuple[str, ...], order: tuple[int, ...]
) -> None:
    joined = join(SPEC, outputs, CorpusClasses(classes))
    assert joined.order == order
    # Class k is the output of its name: the definition.
    assert tuple(outputs[at] for at in joined.order) == classes
    assert (joined.notice is not None) == (outputs != classes)


@pytest.mark.parametrize("classes", [("negative", "positive"), (" Negative", "POSITIVE ")])
def test_case_and_space_are_forgiven_and_told(classes: tuple[str, ...]) -> None:
    joined = join(SPEC, ("Positive", "Negative"), CorpusClasses(classes))
    assert joined.order == (1, 0)
    assert joined.notice is not None
    assert "but for case or space" in joined.notice
    for name in ("Positive", "Negative", *classes):
        assert repr(name) in joined.notice


@pytest.mark.parametrize(
    ("classes", "is_guess"),
    [
        (CorpusClasses(("0", "1", "2")), False),
        (CorpusClasses(("x", "z", "y"), has_order=True), False),
        (CorpusClasses(("x", "y", "z")), True),
        (CorpusClasses(("1", "2", "3")), True),
    ],
)
def test_outputs_without_names_are_taken_by_number(classes: CorpusClasses, is_guess: bool) -> None:
    joined = join(SPEC, GENERIC, classes)
    assert joined.order == (0, 1, 2)
    assert (joined.notice is not None) == is_guess
    if joined.notice is not None:
        assert "guess" in joined.notice
        assert all(repr(name) in joined.notice for name in (*GENERIC, *classes.names))


def test_numbers_are_taken_as_those_of_named_outputs_and_told() -> None:
    joined = join(SPEC, ("pos", "neg"), CorpusClasses(("0", "1")))
    assert joined.order == (0, 1)
    assert joined.notice is not None
    assert "0 = pos, 1 = neg" in joined.notice


@pytest.mark.parametrize(
    ("outputs", "classes"),
    [
        (("pos", "neg"), ("good", "bad")),
        (("pos", "neg"), ("pos", "bad")),
        (("pos", "neg"), ("1", "2")),
        (("pos", "neg", "neutral"), ("neg", "pos")),
        (("pos", "neg"), ("neg", "neutral", "pos")),
        (GENERIC, ("neg", "pos")),
        (GENERIC, ("0", "1")),
        (("pos", "neg"), ("0", "1", "2")),
        # Two names that case alone tells apart cannot be joined by folding it.
        (("a", "A"), ("a", "b")),
        (("LABEL_1", "LABEL_0"), ("a", "b")),
    ],
)
@pytest.mark.parametrize("has_order", [False, True])
def test_other_names_or_another_count_are_refused_with_both_sets(
    outputs: tuple[str, ...], classes: tuple[str, ...], has_order: bool
) -> None:
    with pytest.raises(ConfigError) as raised:
        join(SPEC, outputs, CorpusClasses(classes, has_order))
    check_grammar(str(raised.value))
    assert all(repr(name) in str(raised.value) for name in (*outputs, *classes))


def test_names_come_from_the_config(tmp_path: Path) -> None:
    named = {"0": "b", "1": "a"}
    assert output_names(config_of(tmp_path, id2label=named)) == ("b", "a")
    assert output_names(config_of(tmp_path)) == ("LABEL_0", "LABEL_1")
    assert output_names(config_of(tmp_path, num_labels=3)) == GENERIC
    # transformers leaves numbers of its own beside names that were set alone.
    stale = {"LABEL_0": 0, "LABEL_1": 1}
    assert output_names(config_of(tmp_path, id2label=named, label2id=stale)) == ("b", "a")
    generic = {"0": "LABEL_0", "1": "LABEL_1"}
    spec = config_of(tmp_path, id2label=generic, label2id={"b": 0, "a": 1})
    assert output_names(spec) == ("b", "a")


def test_names_of_an_adapter_stand_before_those_of_its_base(tmp_path: Path) -> None:
    spec = config_of(tmp_path, id2label={"0": "b", "1": "a"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with_adapter = ModelSpec(spec.path, head="checkpoint", adapter=str(adapter))
    assert output_names(with_adapter) == ("b", "a")
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b"}}))
    assert output_names(with_adapter) == ("a", "b")


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"1": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
    ],
)
def test_a_config_that_contradicts_itself_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(ModelError) as raised:
        output_names(config_of(tmp_path, **config))
    check_grammar(str(raised.value))


def test_label_words_that_are_the_names_are_joined_by_name() -> None:
    classes = CorpusClasses(("Bad", "Good", "So"))
    words, note = ordered_words(("so", "good", "bad"), classes)
    assert words == ("bad", "good", "so")
    assert "Bad = bad, Good = good, So = so" in note
    # Others stand in the order of the classes, which is told.
    words, note = ordered_words(("awful", "great", "fair"), classes)
    assert words == ("awful", "great", "fair")
    assert "Bad = awful, Good = great, So = fair" in note


def test_a_label_word_too_few_is_refused() -> None:
    prompt = Prompt("{text} It was", ("bad", "good"))
    with pytest.raises(ConfigError) as raised:
        ordered_words(prompt.label_words, CorpusClasses(("bad", "good", "so")))
    check_grammar(str(raised.value))
    assert "'so'" in str(raised.value)
