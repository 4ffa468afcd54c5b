import pytest

from pipeline.shard_facts import of_task, sentences, together


def test_facts_of_a_task_can_be_added_up():
    said = {"ridge": 0.5, "notices": ["halved", "slow", "halved"], "is_exact_bytes": False}
    assert of_task(said, "k1") == {
        "ridge": 0.5,
        "notices": {"halved": 2, "slow": 1},
        "inexact_shards": ["k1"],
    }
    assert of_task({"is_exact_bytes": True, "n_not_finite": 0}, "k1") == {"n_not_finite": 0}


def test_the_first_shard_speaks_for_what_is_the_same_in_all():
    found = together([{}, {"ridge": 0.5, "n_examples": 9}, {"ridge": 0.5, "n_examples": 9}])
    assert found == {"ridge": 0.5, "n_examples": 9}
    assert together([{}, {}]) == {}


def test_counts_and_notices_are_added_up():
    parts = [
        {"n_not_finite": 1, "layer": 2, "n_without_label": 3},
        {"n_not_finite": 0, "n_without_label": 2, "notices": {"b": 1}, "inexact_shards": ["k3"]},
        {"n_not_finite": 2, "n_left_out": 4, "notices": {"b": 1, "a": 2}, "inexact_shards": ["k2"]},
    ]
    expected = {
        "layer": 2,
        "n_not_finite": 3,
        "n_left_out": 4,
        "n_without_label": 5,
        "notices": {"a": 2, "b": 2},
        "inexact_shards": ["k2", "k3"],
    }
    assert together(parts) == expected
    assert list(together(parts)["notices"]) == ["a", "b"]
    # Added up in a tree, as partial results are, they are the same.
    assert together([together(parts[:2]), together(parts[2:])]) == expected


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"ridge": 0.5, "n_not_finite": 0, "n_left_out": 0}, []),
        ({"notices": {"halved": 1}}, ["halved"]),
        ({"notices": {"halved": 3}}, ["halved (in 3 tasks)"]),
        ({"n_not_finite": 2}, ["rows without features, as a number was not finite"]),
        ({"n_left_out": 5}, ["rows left out, as one of the tables that are read lacks them: 5"]),
        ({"inexact_shards": ["k"]}, ["shards that may differ from another run's in last bits: 1"]),
    ],
)
def test_a_person_hears_what_went_otherwise(facts, told):
    found = sentences(facts)
    assert len(found) == len(told)
    assert all(sentence.startswith(start) for sentence, start in zip(found, told, strict=True))
