"""The tree of tasks that merges the partial results of shards; nothing is merged in the driver.

The leaves are the tasks of the shards of examples, in the order of the corpus. Each node above
merges the next `FAN_IN` nodes of the level below; a node that would be alone in its group moves
up as it is. The one node at the top, the root, makes the table; the shards of all others lie in the
same folder, each under a key of its own that follows from the keys of the shards that it merges.
Hence appended shards, which come last, change the nodes between them and the root and no others,
and a run that was killed goes on with the nodes that are finished.

The shape depends on the number of leaves alone and the order of a sum on the shape: the result has
the same bytes for any number of workers. The road not taken: combining whatever is ready first
would keep workers a little busier and make every result a different sum.
"""

from collections.abc import Sequence

from pipeline.node import Task
from stages.stage import Part
from storage.manifest import Recipe

FAN_IN = 8
"""Partial results that one task merges; part of the keys, as another tree gives other last bits."""


def grow(leaves: Sequence[Task], recipe: Recipe) -> tuple[Task, ...]:
    """The leaves, and after them the tasks that merge them, level by level, the root last.

    There is always a root, also over a single leaf. `recipe` makes the keys of the merging tasks.
    """
    tasks, below, level = list(leaves), list(leaves), 0
    while len(below) > 1 or level == 0:
        level += 1
        above: list[Task] = []
        for start in range(0, len(below), FAN_IN):
            group = below[start : start + FAN_IN]
            if len(group) == 1 and len(below) > 1:
                above.append(group[0])
                continue
            keys = tuple(task.key for task in group)
            key = recipe.key(["merge", str(FAN_IN), *keys])
            above.append(Task(Part("", len(above)), key, keys, level))
            tasks.append(above[-1])
        below = above
    return tuple(tasks)


def not_needed(tasks: Sequence[Task], present: set[str]) -> frozenset[str]:
    """Keys of the tasks of a tree that need not run: their shard, or one above it, is `present`."""
    by_key = {task.key: task for task in tasks}
    needed: set[str] = set()
    waiting = [tasks[-1].key] if tasks else []
    while waiting:
        key = waiting.pop()
        if key not in present and key not in needed:
            needed.add(key)
            waiting.extend(by_key[key].parts)
    return frozenset(by_key.keys() - needed)
