"""Passages that many texts share, against a loop over all windows."""

import numpy as np
import pyarrow as pa
import pytest

from stages.reading.shared_passages import LEAST, LEFT, LENGTH, shared_windows, without_shared

TASK = "is this movie review positive or negative "
WORDS = "a charming film that never gets going 東京 müde scene ending slow".split()


def sentences(n: int, seed: int) -> list[str]:
    drawn = np.random.default_rng(seed)
    return [" ".join(drawn.choice(WORDS, 9)) for _ in range(n)]


def by_loop(texts: list[str], sample: list[str]) -> list[str]:
    count: dict[str, int] = {}
    for text in set(sample):
        for window in {text[at : at + LENGTH] for at in range(len(text) - LENGTH + 1)}:
            count[window] = count.get(window, 0) + 1
    shared = {w for w, n in count.items() if n >= max(LEAST, 0.01 * len(set(sample)))}
    found = []
    for text in texts:
        covered = set()
        for at in range(len(text) - LENGTH + 1):
            if text[at : at + LENGTH] in shared:
                covered |= set(range(at, at + LENGTH))
        left = "".join(sign for at, sign in enumerate(text) if at not in covered).strip()
        found.append(left if len(left) >= min(LEFT, len(text)) else text)
    return found


@pytest.mark.parametrize("n_tasks", [0, LEAST - 1, LEAST, 40])
def test_what_many_texts_share_is_taken_out(n_tasks: int) -> None:
    free = sentences(60, 0)
    rows = [TASK + s for s in free[:n_tasks]] + free[n_tasks:]
    sample = rows + rows[:5]
    texts = [*rows, "", TASK.strip(), "a", TASK[:-10]]
    shared = shared_windows(pa.array(sample, pa.large_string()))
    found = without_shared(pa.array(texts, pa.large_string()), shared).to_pylist()
    assert found == by_loop(texts, sample)
    if n_tasks >= LEAST:
        assert found[0] == free[0]
        # A text that is nothing else stays.
        assert found[-3] == TASK.strip()
    else:
        assert found[0] == texts[0]


def test_without_texts_or_passages_nothing_changes() -> None:
    none = pa.array([], pa.large_string())
    assert not len(shared_windows(none))
    texts = pa.array(sentences(30, 1), pa.large_string())
    assert without_shared(texts, shared_windows(none)).equals(texts)
    assert without_shared(none, np.ones(1, np.uint64)).equals(none)
