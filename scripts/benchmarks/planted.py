"""Wrong labels that are planted: evenly, or between classes that are much alike."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

FLIPS = {"even": 0.1, "similar": 0.2}
"""Part of the labels that is moved."""
BUCKETS = 2**15


def planted(
    labels: np.ndarray, texts: Sequence[str], n_classes: int, flips: str, seed: int
) -> np.ndarray:
    """The labels with a part of them moved: to any other class, or to the one most like it."""
    rng = np.random.default_rng([seed, 1])
    moved = rng.permutation(len(labels))[: round(FLIPS[flips] * len(labels))]
    given = labels.copy()
    if flips == "even":
        given[moved] = (labels[moved] + rng.integers(1, n_classes, len(moved))) % n_classes
    else:
        given[moved] = most_alike(labels, texts, n_classes)[labels[moved]]
    return given


def most_alike(labels: np.ndarray, texts: Sequence[str], n_classes: int) -> np.ndarray:
    """Of each class the other one whose words are most like its own.

    By the cosine of the classes' mean rows, less the mean of these means; a row is a set of words.
    """
    means = np.zeros((n_classes, BUCKETS))
    for label, text in zip(labels, texts, strict=True):
        words = {zlib.crc32(word.encode()) % BUCKETS for word in re.findall(r"\w+", text.lower())}
        means[label, list(words)] += 1 / max(1, len(words)) ** 0.5
    means /= np.maximum(np.bincount(labels, minlength=n_classes), 1)[:, None]
    means -= means.mean(0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    near = means @ means.T
    np.fill_diagonal(near, -np.inf)
    alike: np.ndarray = near.argmax(1)
    return alike
