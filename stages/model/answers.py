"""How likely a language model finds each answer of a corpus of completions: with its prompt, alone.

An answer is what a row's loss is on: the completion, or the messages that are learned. **Alone** it
is laid out as it is in the row, its prompt left empty: all other messages say nothing, and there
are no tools. Losses are in nats a token. The loss of the text leaves out the tokens that end
a text, which a template writes.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from stages.corpus.conversations import MARKS, is_learned, said
from stages.corpus.preferences import SIDE_FORMS, sides
from stages.model.batches import Tokens, batches
from stages.model.chats import mapped, special_ids
from stages.model.measurement import Measurement, forward
from stages.model.networks import IGNORED, TokenNetwork
from stages.stage import RefusedRow

WORST = 0.1
"""Share of an answer's tokens whose mean loss is `worst_loss`: those of the largest, one at least.
"""


class TokenLosses(NamedTuple):
    """Of one row the loss of each predicted token, and of the end of the text in its place."""

    losses: Float32[np.ndarray, " tokens"]
    end_losses: Float32[np.ndarray, " tokens"]
    """-log p of the token that ends a text, before each predicted token; NaN without such a token.
    """
    n_ends: int
    """How many of the last tokens end the text: special tokens, and line ends behind them."""


class Answered(NamedTuple):
    """Rows as they are, by `losses`, and their answers alone; a row without an answer has none."""

    tokens: list[TokenLosses | None]
    alone: list[TokenLosses | None]
    """None also where the form has no prompt, or the template lays out none that is empty."""
    prompts: Float32[np.ndarray, "rows dim"]
    """The mean last hidden state of the tokens before the answer; 0 where there are none."""
    answers: Float32[np.ndarray, "rows dim"]
    """That of the answer's tokens where it stands alone, or else in the row; `in_rows` in the row.
    """


class Reader:
    """A measurement of `head: completion` that says the loss of each token.

    The model computes in the type of its weights, what is made of its logits in float32.
    """

    def __init__(self, measurement: Measurement, token_budget: int, in_rows: bool = False) -> None:
        self._measurement, self._in_rows = measurement, in_rows
        self._network = TokenNetwork(measurement.network)
        self._budget = token_budget
        self._special = special_ids(measurement.tokenizer)

    def read(self, texts: Sequence[str], pairs: Sequence[str | None]) -> Answered:
        """The rows with these text columns. Cost: two forward passes a row."""
        form = self._measurement.form
        found, prompts, answers = self._passed(self._encoded(texts, pairs))
        alone: list[TokenLosses | None] = [None] * len(texts)
        emptied = [without_prompt(*row, form) for row in zip(texts, pairs, strict=True)]
        rows, encoded = [], []
        for row, left in enumerate(emptied):
            tokens = None if left is None or found[row] is None else self._one(*left)
            if tokens is not None:
                rows.append(row)
                encoded.append(tokens)
        if rows:
            joined = {
                name: [tokens.columns[name][0] for tokens in encoded] for name in encoded[0].columns
            }
            own, _, states = self._passed(Tokens(joined))
            for row, losses in zip(rows, own, strict=True):
                alone[row] = losses
            is_read = np.array([losses is not None for losses in own])
            if not self._in_rows:
                answers[np.array(rows)[is_read]] = states[is_read]
        return Answered(found, alone, prompts, answers)

    def refusals(self, texts: Sequence[str], pairs: Sequence[str | None]) -> Sequence[str | None]:
        """Why each row cannot be read; None where it can."""
        measurement = self._measurement
        return measurement.head.refusals(
            measurement.tokenizer, list(texts), list(pairs), measurement.form
        )

    def losses(self, texts: Sequence[str], pairs: Sequence[str | None]) -> list[TokenLosses | None]:
        """The losses of the rows as they are. Cost: one forward pass a row."""
        return self._passed(self._encoded(texts, pairs))[0]

    def _one(self, text: str, pair: str | None) -> Tokens | None:
        """The tokens of a row, or None where its template refuses it."""
        try:
            return self._encoded([text], [pair])
        except RefusedRow:
            return None

    def _encoded(self, texts: Sequence[str], pairs: Sequence[str | None]) -> Tokens:
        measurement = self._measurement
        return measurement.head.encode(
            measurement.tokenizer, list(texts), list(pairs), measurement.form
        )

    def _passed(self, tokens: Tokens) -> tuple[list[TokenLosses | None], np.ndarray, np.ndarray]:
        """Losses, and the mean states before and in the answer, of each row."""
        n, head = len(tokens.lengths), self._network.head
        found: list[TokenLosses | None] = [None] * n
        prompts: np.ndarray | None = None
        answers: np.ndarray | None = None
        for rows in batches(tokens.lengths, self._budget):
            batch = self._measurement.batch(tokens, rows)
            targets = batch.pop("targets")
            with torch.no_grad():
                states = forward(self._network, batch)
                if prompts is None or answers is None:
                    prompts, answers = np.zeros((2, n, states.shape[2]), np.float32)
                for place, row in enumerate(rows.tolist()):
                    at = torch.nonzero(targets[place] != IGNORED)[:, 0]
                    if not len(at):
                        continue
                    own = states[place, at].to(head.weight.dtype)
                    found[row] = self._losses(head(own), targets[place, at])
                    prompts[row] = states[place, : int(at[0]) + 1].mean(0).cpu().numpy()
                    answers[row] = states[place, at + 1].mean(0).cpu().numpy()
        empty = np.zeros((n, 0), np.float32)
        return found, empty if prompts is None else prompts, empty if answers is None else answers

    def _losses(
        self, logits: Float[Tensor, "tokens words"], targets: Int64[Tensor, " tokens"]
    ) -> TokenLosses:
        logs = torch.log_softmax(logits.float(), 1)
        losses = -logs.gather(1, targets[:, None])[:, 0]
        words = targets.tolist()
        n_ends = 0
        while n_ends < len(words) and self._ends(words[-n_ends - 1]):
            n_ends += 1
        ends = [word for word in words if word in self._special]
        end = -logs[:, ends[-1]] if ends else torch.full_like(losses, torch.nan)
        return TokenLosses(losses.cpu().numpy(), end.cpu().numpy(), n_ends)

    def _ends(self, word: int) -> bool:
        """Whether a token only ends a text: a special one, or the line end that a template adds."""
        return word in self._special or not self._measurement.tokenizer.decode([word]).strip()


class Losses(NamedTuple):
    """What is told of an answer, in nats a token; NaN where it is not known."""

    n_tokens: int
    loss: float
    """Of all predicted tokens, the loss that training would lower."""
    text_loss: float
    """Of the text, without the tokens that end it."""
    text_loss_alone: float
    """The same without the prompt."""
    end_loss: float
    """Of the token that ends the text: large where an answer stops in the middle."""
    worst_loss: float
    """The mean of the tenth of the tokens with the largest losses."""


def answer_columns(
    found: Sequence[Losses],
    prompts: Float32[np.ndarray, "rows dim"],
    answers: Float32[np.ndarray, "rows dim"],
) -> list[pa.Array]:
    """The columns `stages.tables.ANSWER_COLUMNS` of some answers."""
    columns: list[pa.Array] = [pa.array([row.n_tokens for row in found], pa.int64())]
    for name in Losses._fields[1:]:
        values = np.array([getattr(row, name) for row in found], dtype=np.float64)
        columns.append(pa.array(values, from_pandas=True))
    joined = np.concatenate([prompts, answers], axis=1)
    flat = pa.array(joined.astype(np.float32).reshape(-1))
    return [*columns, pa.FixedSizeListArray.from_arrays(flat, joined.shape[1])]


SILENT = ("role", "name", "tool_call_id", *MARKS)
"""What is left of a message that says nothing, beside an empty content."""
UNKNOWN = Losses(0, *[float("nan")] * 5)


def told(tokens: TokenLosses | None, alone: TokenLosses | None) -> Losses:
    """The numbers of one answer. The same number of tokens counts with the prompt and alone."""
    if tokens is None:
        return UNKNOWN
    losses = tokens.losses.astype(np.float64)
    n_text = max(1, len(losses) - tokens.n_ends)
    without = float("nan")
    if alone is not None:
        without = float(alone.losses[:n_text].mean(dtype=np.float64))
    end = float(losses[n_text]) if len(losses) > n_text else float("nan")
    worst = np.sort(losses[:n_text])[-max(1, int(WORST * n_text)) :]
    return Losses(
        len(losses),
        float(losses.mean()),
        float(losses[:n_text].mean()),
        without,
        end,
        float(worst.mean()),
    )


def cut_after(tokens: TokenLosses, n: int) -> TokenLosses:
    """The row as if its answer ended after its first `n` tokens, with the end of the text behind.

    Exact without a pass of the model, since no token sees a later one.
    """
    losses = np.append(tokens.losses[:n], tokens.end_losses[n])
    return TokenLosses(losses, tokens.end_losses[: n + 1], 1)


def without_prompt(text: str, pair: str | None, form: str) -> tuple[str, str | None] | None:
    """The text columns of a row whose prompt is left empty; None where there is none to leave."""
    if form == "prompt_completion":
        return ("", pair) if text else None
    if form != "messages":
        return None
    messages = [turn if is_learned(turn) else _silent(turn) for turn in json.loads(text)]
    return json.dumps(messages, ensure_ascii=False), None


def _silent(turn: dict[str, Any]) -> dict[str, Any]:
    """A message that says nothing: who speaks, and no calls of tools or reasoning either."""
    return {name: turn[name] for name in SILENT if name in turn} | {"content": ""}


def answer_of(text: str, pair: str | None, form: str) -> str:
    """The text of a row's last answer, of a pair both; calls of tools stand behind it."""
    if form in SIDE_FORMS:
        return "\n".join(answer_of(*side, SIDE_FORMS[form]) for side in sides(text, pair, form))
    if form == "messages":
        return said(_last_learned(text))
    return text if form == "text" else str(pair)


def with_answer_of(
    text: str, pair: str | None, form: str, donor: tuple[str, str | None]
) -> tuple[str, str | None]:
    """The text columns of a row with the last answer of another, calls and reasoning with it."""
    if form == "messages":
        return _with_turn(text, _last_learned(donor[0])), pair
    return (text, donor[1]) if form == "prompt_completion" else donor


def with_changed_answer(
    text: str, pair: str | None, form: str, change: Callable[[str], str]
) -> tuple[str, str | None]:
    """The text columns of a row with all that its last answer says changed."""
    if form == "messages":
        named = ("role", "name", "id", "type", *MARKS)
        return _with_turn(text, mapped(_last_learned(text), change, named)), pair
    return (text, change(str(pair))) if form == "prompt_completion" else (change(text), pair)


def _last_learned(text: str) -> dict[str, Any]:
    return next(turn for turn in reversed(json.loads(text)) if is_learned(turn))


def _with_turn(text: str, turn: dict[str, Any]) -> str:
    messages: list[dict[str, Any]] = json.loads(text)
    last = max(at for at, turn in enumerate(messages) if is_learned(turn))
    messages[last] = turn
    return json.dumps(messages, ensure_ascii=False)
