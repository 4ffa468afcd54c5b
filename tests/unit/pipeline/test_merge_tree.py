"""The tree that combines partial results: its shape, its keys, and what of it must be done."""

import math

import pytest

from pipeline.merge_tree import FAN_IN, grow, not_needed
from pipeline.node import Node, Task
from stages.stage import Part
from storage.manifest import Recipe


def leaves(n, renamed=()):
    return [Task(Part("example", i), f"{'new' if i in renamed else 'leaf'} {i}") for i in range(n)]


def tree(n, **names):
    return grow(leaves(n, **names), Recipe("sum", 1, {"a": 1}))


def keys(tasks):
    return {task.key for task in tasks}


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 57, 64, 65, 100, 512, 513])
def test_every_leaf_reaches_the_root_once_and_in_order(n):
    tasks = tree(n)
    by_key = {task.key: task for task in tasks}
    assert len(by_key) == len(tasks)

    def under(key):
        parts = by_key[key].parts
        return [leaf for part in parts for leaf in under(part)] if parts else [key]

    root = tasks[-1]
    assert root.part == Part("", 0)
    assert under(root.key) == [f"leaf {i}" for i in range(n)]
    assert root.level == max(1, math.ceil(round(math.log(n, FAN_IN), 9)))
    for task in tasks[n:]:
        assert 1 <= len(task.parts) <= FAN_IN
        assert len(task.parts) > 1 or n == 1
        assert all(by_key[part].level < task.level for part in task.parts)
    assert [task.level for task in tasks] == sorted(task.level for task in tasks)


def test_no_examples_no_tree():
    assert grow([], Recipe("sum", 1, {})) == ()
    assert not_needed((), set()) == frozenset()


def test_keys_follow_from_everything_that_decides_the_sum():
    base = tree(9)[-1].key
    assert base == tree(9)[-1].key
    others = [
        grow(leaves(9), Recipe(*facts))[-1].key for facts in (("t", 1, {"a": 1}), ("sum", 2, {}))
    ]
    others += [tree(9, renamed={4})[-1].key, tree(8)[-1].key]
    assert len({base, *others}) == 5


def test_the_fan_in_is_part_of_the_key(monkeypatch):
    # Of five leaves both trees are one node over the same keys.
    before = tree(5)
    monkeypatch.setattr("pipeline.merge_tree.FAN_IN", 7)
    assert [t.parts for t in tree(5)] == [t.parts for t in before]
    assert tree(5)[-1].key != before[-1].key


@pytest.mark.parametrize(("n", "more"), [(20, 1), (64, 1), (63, 1), (100, 5)])
def test_appended_shards_change_the_way_to_the_root_alone(n, more):
    fresh = keys(tree(n + more)) - keys(tree(n))
    height = tree(n + more)[-1].level
    assert len(fresh) <= more + 2 * height
    assert tree(n + more)[-1].key in fresh


def test_a_changed_shard_changes_the_way_to_the_root_alone():
    fresh = keys(tree(100, renamed={42})) - keys(tree(100))
    assert len(fresh) == 1 + tree(100)[-1].level


def test_what_lies_below_a_finished_node_is_not_needed():
    tasks = tree(20)
    root, (first, second, third) = tasks[-1], tasks[20:23]
    assert root.parts == (first.key, second.key, third.key)
    everything = keys(tasks)
    assert not_needed(tasks, set()) == frozenset()
    assert not_needed(tasks, {root.key}) == everything
    # The partial sums of the first group are there, its leaves are gone; of the second, one leaf.
    found = not_needed(tasks, {first.key, "leaf 9"})
    assert everything - found == keys(tasks[8:20]) - {"leaf 9"} | {second.key, third.key, root.key}


def test_a_node_runs_level_by_level_and_lists_its_root():
    tasks = tree(20)
    done = not_needed(tasks, {tasks[20].key, "leaf 19"})
    node = Node("sums", None, {}, {}, tasks, {}, done)
    assert [[task.level for task in wave] for wave in node.waves] == [[0] * 11, [1] * 2, [2]]
    assert node.whole == tasks[-1:]
    assert node.shards() == [("", 0, tasks[-1].key)]
    plain = Node("rows", None, {}, {}, tuple(leaves(3)), {})
    assert plain.whole == plain.tasks
    assert [len(wave) for wave in plain.waves] == [3]
    assert Node("none", None, {}, {}, (), {}).waves == ()
