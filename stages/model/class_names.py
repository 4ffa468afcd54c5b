"""Names of classes, joined: those of a model's outputs with those of the corpus.

The classes of a corpus have an order, which is that of labels, logits and probabilities in every
table. A fine-tuned model lists its classes in an order of its own (`id2label` of its config), and
label words are listed by a person. Here both are joined **by name**; nothing else does it, and
outputs that went through it have the corpus's order everywhere.

    the names of the outputs          the classes of the corpus     joined
    the same, in any order            any                           by name
    the same but for case and space   any                           by name, and told
    `LABEL_0`, ...: no names          numbers from 0, ClassLabel,
                                      or listed under `classes:`    by number
    `LABEL_0`, ...: no names          names alone                   by number, told as a guess
    other names                       numbers from 0                by number, and told
    anything else, or another count   any                           refused
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stages.model.hub import adapter_folder, read_json, resolve
from stages.model.spec import ModelSpec
from stages.stage import ConfigError, ModelError


@dataclass(frozen=True)
class CorpusClasses:
    """The classes of a corpus, and how they came by their names."""

    names: tuple[str, ...]
    """In the order of the labels."""
    has_order: bool = False
    """Whether the source says their order: it has a ClassLabel, or `classes:` lists them."""


class Joined(NamedTuple):
    """Which output of a model belongs to each class of the corpus."""

    order: tuple[int, ...]
    """Number of the output, for every class."""
    notice: str | None
    """A sentence for the user, where there is anything to tell."""


def output_names(model: ModelSpec) -> tuple[str, ...]:
    """The names of the outputs of the model's saved head, as its config lists them.

    `LABEL_0`, `LABEL_1` and so on where the config has no names. A config that was saved with an
    adapter stands before that of the model. No weight is read.

    Raises:
        ModelError: the numbers in the config are not 0 to n - 1, or its two lists contradict each
            other.
    """
    folders = [resolve(model)]
    if model.adapter is not None:
        folders.insert(0, adapter_folder(model.adapter))
    configs = [read_json(folder, "config.json") for folder in folders]
    config = next((c for c in configs if c.get("id2label")), configs[-1])
    by_number = {str(k): str(v) for k, v in (config.get("id2label") or {}).items()}
    if not by_number:
        n_outputs = next((config[key] for key in ("num_labels", "_num_labels") if key in config), 2)
        return tuple(f"LABEL_{number}" for number in range(int(n_outputs)))
    numbers = [str(number) for number in range(len(by_number))]
    if set(by_number) != set(numbers):
        raise ModelError(
            f"{model.path}: found the numbers {', '.join(by_number)} in id2label of config.json, "
            f"expected 0 to {len(by_number) - 1}, one for each output. Correct id2label."
        )
    names = tuple(by_number[number] for number in numbers)
    backwards = {str(k): str(v) for k, v in (config.get("label2id") or {}).items()}
    if _are_generic(names) and set(backwards.values()) == set(numbers) == set(by_number):
        named = {number: name for name, number in backwards.items()}
        return tuple(named[number] for number in numbers)
    contrary = [n for at, n in enumerate(names) if backwards.get(n, str(at)) != str(at)]
    if contrary:
        raise ModelError(
            f"{model.path}: found that id2label and label2id of config.json give {contrary[0]!r} "
            f"the numbers {names.index(contrary[0])} and {backwards[contrary[0]]}, expected the "
            "same. Correct config.json: nothing else says which output is which class."
        )
    return names


def has_saved_head(model: ModelSpec) -> bool:
    """Whether the config says that the weights are those of a sequence classifier."""
    named = read_json(resolve(model), "config.json").get("architectures") or []
    return any("ForSequenceClassif" in str(name) for name in named)


def join(model: ModelSpec, outputs: Sequence[str], classes: CorpusClasses) -> Joined:
    """The output of each class, by the names of both; see the table of this module.

    Raises:
        ConfigError: the names cannot be joined; the message shows both sets.
    """
    names = classes.names
    by_name = _by_name(outputs, names)
    if by_name is not None:
        is_moved = by_name != tuple(range(len(names)))
        notice = (
            f"the outputs of {model.path} are {_listed(outputs)}, in another order than the "
            f"corpus's classes {_listed(names)}: joined by name"
        )
        return Joined(by_name, notice if is_moved else None)
    folded = _by_name([_folded(o) for o in outputs], [_folded(n) for n in names])
    both = f"{_listed(outputs)} of {model.path} and {_listed(names)} of the corpus"
    if folded is not None:
        return Joined(
            folded, f"the classes {both} are the same names but for case or space: joined by name"
        )
    by_number = tuple(range(len(names)))
    if len(outputs) != len(names):
        by_number = ()
    from_zero = names == tuple(str(number) for number in range(len(names)))
    if by_number and _are_generic(outputs):
        if from_zero or classes.has_order:
            return Joined(by_number, None)
        return Joined(
            by_number,
            f"the outputs of {model.path} have no names ({_listed(outputs)}), so they are taken in "
            f"the order of the corpus's classes: {_listed(names)}. This is a guess: list "
            "`classes:` of the corpus in the order of the model's outputs",
        )
    if by_number and from_zero:
        pairs = ", ".join(f"{n} = {o}" for n, o in zip(names, outputs, strict=True))
        return Joined(
            by_number,
            f"the labels are numbers, and are taken as those of the outputs of {model.path}: "
            f"{pairs}. If that is wrong, list their names under `classes:` of the corpus",
        )
    raise ConfigError(
        f"model: found a saved head with {len(outputs)} classes, {_listed(outputs)}, expected the "
        f"{len(names)} of the corpus, {_listed(names)}. Write the same names in the corpus's "
        "labels, or under its `classes:` (which may list classes without rows, and names of "
        "numbers), or in id2label of the model's config.json; or set head: probe."
    )


def ordered_words(words: Sequence[str], classes: CorpusClasses) -> tuple[tuple[str, ...], str]:
    """The label words of a prompt in the order of the classes, and a sentence that says so.

    Words that are the names of the classes, but for case, are joined by name; any others stand in
    the order in which they are listed.

    Raises:
        ConfigError: there is not one word for each class.
    """
    names = classes.names
    if len(words) != len(names):
        raise ConfigError(
            f"model.prompt: found {len(words)} label_words, {_listed(words)}, expected one for "
            f"each of {len(names)} classes, {_listed(names)}, in this order. Correct label_words."
        )
    order = _by_name([_folded(w) for w in words], [_folded(n) for n in names])
    in_order = tuple(words) if order is None else tuple(words[at] for at in order)
    pairs = ", ".join(f"{n} = {w}" for n, w in zip(names, in_order, strict=True))
    return in_order, f"label words stand for the classes so: {pairs}"


def _by_name(outputs: Sequence[str], names: Sequence[str]) -> tuple[int, ...] | None:
    """The number of the output with each name; None unless both are the same set of names."""
    if len(set(outputs)) < len(outputs) or sorted(outputs) != sorted(names):
        return None
    return tuple(list(outputs).index(name) for name in names)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _are_generic(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to outputs, or bare numbers."""
    return all(re.fullmatch(f"(?:LABEL_)?{at}", name) for at, name in enumerate(names))


def _listed(names: Sequence[str]) -> str:
    """Up to twelve names, in quotes."""
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
