"""The `max_length` of models that learn completions: chosen from the corpus, and what it cuts.

Where the YAML leaves it open it is the smallest multiple of `STEP` that keeps 99 % of the examples
whole, at most what the model reads and at most `MOST`. A note in the store keeps it for a corpus
that grows, whose earlier rows would otherwise all be computed anew.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.corpus import Corpus
from pipeline.lengths import SHARE, Left, Lengths
from pipeline.node import Node
from pipeline.settings import Run
from stages.model.chats import CALLS, REASONING
from stages.model.refusals import reading_fingerprint
from stages.model.spec import ModelSpec
from stages.stage import ModelError, Stage
from storage.manifest import digest
from storage.table import Store

STEP = 64
MOST = 2048
"""Tokens; a longer row is chosen by a person, who knows what it costs."""
ROLES = {"example": "examples", "query": "queries"}
LEFT_OUT = {
    REASONING: (
        "the reasoning (<think>, reasoning_content)",
        "it is not learned. Use a template that shows it, or take the reasoning out of the corpus.",
    ),
    CALLS: (
        "tools or calls of tools",
        "a message that only calls is learned as an empty one, and what can be called is not read. "
        "Use a template that shows them, or take such rows out of the corpus.",
    ),
}
"""What a chat template may leave out: how it is called, and what that means."""
NOTES = ".lengths"
"""Folder of the store with a note for each corpus and model."""


class _Choice(NamedTuple):
    """A `max_length`, and a sentence for the user about it."""

    max_length: int
    note: str


def with_max_lengths(
    run: Run, corpus: Corpus, store: Store, is_dry: bool = True
) -> tuple[Run, list[str]]:
    """The run with every `max_length` that it leaves open, and sentences about the choices.

    Unless `is_dry`, the store keeps them. Where nothing was measured, as of a corpus without
    completions, the default stays.
    """
    chosen: dict[tuple[str, str | None], _Choice | None] = {}

    def fitted(model: ModelSpec) -> ModelSpec:
        files = (model.path, model.revision)
        if files not in chosen:
            chosen[files] = _choose(model, corpus, store, is_dry)
        choice = chosen[files]
        if choice is None:
            return model
        return dataclasses.replace(model, max_length=choice.max_length)

    places = set(run.open_lengths)
    stages: dict[str, Stage] = {
        instance: dataclasses.replace(stage, model=fitted(stage.model_ref))
        if instance in places and isinstance(stage.model_ref, ModelSpec)
        else stage
        for instance, stage in run.stages.items()
    }
    model = fitted(run.model) if "model" in places and run.model is not None else run.model
    fixed = dataclasses.replace(run, model=model, stages=stages, open_lengths=())
    return fixed, [choice.note for choice in chosen.values() if choice is not None]


def length_notes(nodes: Iterable[Node], corpus: Corpus) -> list[str]:
    """Sentences about completions that models cut, or whose reasoning a chat template leaves out.

    One for each model and way to cut; none where every row is whole.
    """
    notes = dict[str, None]()
    seen = set()
    for node in nodes:
        model = node.stage.model_ref
        if not isinstance(model, ModelSpec) or "model.head" in node.stage.outside_key:
            continue
        cut = (model.path, model.revision, model.max_length, model.truncation_mode)
        if cut in seen or "text" not in node.reads or not corpus.lengths:
            continue
        seen.add(cut)
        lengths = _lengths(model, corpus)
        if "example" in lengths:
            notes |= dict.fromkeys([*_cuts(model, lengths), *_left_out(model, lengths)])
    return list(notes)


def _lengths(model: ModelSpec, corpus: Corpus) -> dict[str, Lengths]:
    """The lengths of the corpus in the tokens of a model, by role; empty where it learns none."""
    if "completion" not in model.kind.tasks or not corpus.lengths:
        return {}
    reading = reading_fingerprint(model)
    return {
        role: corpus.lengths[f"{reading}/{role}"]
        for role in ("example", "query")
        if f"{reading}/{role}" in corpus.lengths
    }


def _choose(model: ModelSpec, corpus: Corpus, store: Store, is_dry: bool) -> _Choice | None:
    """The choice for a model; None where nothing is known of its rows."""
    examples = _lengths(model, corpus).get("example")
    if examples is None or not examples.n_measured:
        return None
    needed = examples.long_enough()
    longest = _most_tokens(model)
    wanted = max(STEP, -(-needed // STEP) * STEP)
    best = min(wanted, longest, MOST)
    kept = _kept(model, corpus, store, best, is_dry)
    where = f"{model.path}: max_length: {kept}"
    of_rows = f"{SHARE:.0%} of the examples{_sampled(examples)}"
    if kept != best:
        return _Choice(
            kept,
            f"{where} is kept, chosen from this corpus when it had other rows, so that its rows "
            f"stay as they are; {best} would now be chosen. Set model.max_length to compute all "
            "rows anew.",
        )
    if best == wanted:
        why = f"the smallest multiple of {STEP} that keeps {of_rows} whole"
    elif best == longest:
        why = f"the most tokens that the model reads; {of_rows} have up to {needed:,}"
    else:
        why = f"the most that is chosen unasked; {of_rows} have up to {needed:,} tokens"
    return _Choice(best, f"{where} is chosen: {why}.")


def _most_tokens(model: ModelSpec) -> int:
    from stages.model.size import most_tokens  # transformers takes seconds

    try:
        return most_tokens(model)
    except ModelError:
        # The check of models tells what is wrong with it.
        return MOST


def _kept(model: ModelSpec, corpus: Corpus, store: Store, best: int, is_dry: bool) -> int:
    """What was chosen for the corpus and model before, or else `best`, which the store then keeps.

    A corpus is known by the key of its first shard, as in `pipeline.sizes`.
    """
    first = next((s.key for s in corpus.tables["text"].shards if s.role == "example"), None)
    name = digest([first, reading_fingerprint(model)])
    note: Mapping[str, Any] | None = store.read_note(NOTES, name)
    if note is not None:
        return int(note["max_length"])
    if not is_dry:
        store.write_note(NOTES, name, {"max_length": best, "first": first})
    return best


def _cuts(model: ModelSpec, lengths: Mapping[str, Lengths]) -> list[str]:
    """A note of what `max_length` cuts, in a list; empty where every row is whole."""
    left = {
        role: found.left(model.max_length, model.truncation_mode == "keep_end")
        for role, found in lengths.items()
    }
    if all(left[role].n_whole == lengths[role].n_measured for role in left):
        return []
    note = f"{model.path}: rows are cut to max_length: {model.max_length} tokens. " + " ".join(
        _losses(role, lengths[role], of_role) for role, of_role in left.items()
    )
    needed = lengths["example"].long_enough()
    if needed > model.max_length:
        longest = _most_tokens(model)
        if needed > longest:
            note += (
                f" To keep {SHARE:.0%} of the examples whole takes {needed:,}, and the model reads "
                f"at most {longest:,}."
            )
        else:
            advised = min(-(-needed // STEP) * STEP, longest)
            note += f" max_length: {advised} would keep {SHARE:.0%} of the examples whole."
    return [note]


def _losses(role: str, lengths: Lengths, left: Left) -> str:
    """A sentence about how many rows of a role are whole, and what the others lose."""
    n = lengths.n_measured
    lost = {
        "all of the answer": left.n_lost,
        "a part of the answer": left.n_cut,
        "a part of the prompt": n - left.n_whole - left.n_lost - left.n_cut,
    }
    told = [f"{left.n_whole:,} {'stays' if left.n_whole == 1 else 'stay'} whole"]
    told += [f"{k:,} {'loses' if k == 1 else 'lose'} {what}" for what, k in lost.items() if k]
    return f"Of {n:,} {ROLES[role]}{_sampled(lengths)} {', '.join(told)}."


def _left_out(model: ModelSpec, lengths: Mapping[str, Lengths]) -> list[str]:
    """Sentences about what the chat template leaves out of answers; none where nothing."""
    notes = []
    for what, (named, advice) in LEFT_OUT.items():
        counts = {role: found.n_without(what) for role, found in lengths.items()}
        if any(counts.values()):
            notes.append(
                f"{model.path}: the chat template leaves out {named} of {_by_role(counts)} of "
                f"{_in_all(lengths)}: {advice}"
            )
    return notes


def _by_role(counts: Mapping[str, int]) -> str:
    """Numbers of examples and queries, such as `5 and 1`."""
    return " and ".join(f"{n:,}" for n in counts.values())


def _in_all(lengths: Mapping[str, Lengths]) -> str:
    return " and ".join(
        f"{found.n_measured:,} {ROLES[role]}{_sampled(found)}" for role, found in lengths.items()
    )


def _sampled(lengths: Lengths) -> str:
    if lengths.n_measured == lengths.n_rows:
        return ""
    return f" (of a sample, evenly spread over {lengths.n_rows:,})"
