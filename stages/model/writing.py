"""What a causal language model writes after a prompt: greedy, one pass for each new token alone.

It ends at what ends a text for the tokenizer, and at what `generation_config.json` names beside the
weights, such as the token that ends a turn of Gemma.
"""

import json
from typing import Any

import torch

from stages.corpus.conversations import is_learned
from stages.model.hub import read_json, resolve
from stages.model.measurement import Measurement
from stages.model.networks import IGNORED
from stages.stage import DataError


def written(measurement: Measurement, text: str, pair: str | None, new_tokens: int) -> str:
    """The likeliest answer of at most `new_tokens` tokens, without one that ends it (`ends_of`).

    `text` and `pair` are the text columns of a row whose answer is left open: of a conversation its
    messages up to the one that is asked for, of a prompt with a completion the prompt. A plain text
    goes on from its end. Cost: a pass over the prompt and one position for each token, whose
    earlier keys and values are kept.

    Raises:
        DataError: the prompt leaves no room within `max_length`.
    """
    network: Any = measurement.network
    ids = _prompt(measurement, text, pair)
    room = measurement.spec.max_length - len(ids)
    if not ids or room < 1:
        raise DataError(
            f"prompt: found {len(ids)} tokens, expected at least 1 and fewer than max_length, "
            f"{measurement.spec.max_length}. Give another prompt, or raise max_length."
        )
    ends, found, cache = ends_of(measurement), list[int](), None
    given = torch.tensor([ids], device=measurement.device)
    with torch.no_grad():
        while len(found) < min(new_tokens, room):
            out = network.trunk(input_ids=given, past_key_values=cache, use_cache=True)
            word = int(network.head(out.last_hidden_state[0, -1]).argmax())
            if word in ends:
                break
            found.append(word)
            given, cache = given.new_tensor([[word]]), out.past_key_values
    answer: str = measurement.tokenizer.decode(found, skip_special_tokens=True)
    return answer


def ends_of(measurement: Measurement) -> frozenset[int]:
    """The tokens at which a model stops writing, as `generate` of transformers does."""
    told = read_json(resolve(measurement.spec), "generation_config.json").get("eos_token_id")
    named = told if isinstance(told, list) else [told]
    ends = (measurement.tokenizer.eos_token_id, *named)
    return frozenset(int(end) for end in ends if end is not None)


def _prompt(measurement: Measurement, text: str, pair: str | None) -> list[int]:
    """The tokens before the place where the answer begins."""
    form = measurement.form
    if form == "messages":
        # The template says where an answer begins only in a conversation that has one, and where
        # that is the only one which is learned, it is not one of those before.
        before = [{**turn, "weight": 0} if is_learned(turn) else turn for turn in json.loads(text)]
        text = json.dumps([*before, {"role": "assistant", "content": "?"}])
    elif form == "prompt_completion":
        pair = " ?"
    tokens = measurement.head.encode(measurement.tokenizer, [text], [pair], form)
    (ids,), (targets,) = tokens.columns["input_ids"], tokens.columns["targets"]
    if form == "text":
        return ids[: len(ids) - (ids[-1] == measurement.tokenizer.eos_token_id)]
    places = [at for at, target in enumerate(targets) if target != IGNORED]
    return ids[: places[0] + 1] if places else ids
