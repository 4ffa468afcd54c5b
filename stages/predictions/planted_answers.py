"""Bad answers made of a corpus's own rows, for `answer_issues` to know what bad looks like there.

Of each drawn example:

    another answer   that of an example with a prompt much like it
    off topic        that of an example with quite another prompt
    cut off          its own, which ends after a part of its tokens
    garbled          its own, a fifth of its letters replaced by others

What is measured of them is what `answer_loss` measures of the rows as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from stages.model.answers import (
    Reader,
    TokenLosses,
    answer_columns,
    answer_of,
    cut_after,
    told,
    with_answer_of,
    with_changed_answer,
)
from stages.model.measurement import load_measurement
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.reading.drawn import is_drawn
from stages.reading.vectors import unit_rows
from stages.stage import ConfigError, Cost, DataError, Inputs, Role, Rows, Split, Stage, Work
from stages.tables import ANSWER_COLUMNS
from storage.schema import TableSpec

PLANTED_ANSWER = TableSpec(
    name="planted_answer",
    schema=pa.schema(
        [("id", pa.int64()), ("kind", pa.string()), ("donor_id", pa.int64()), *ANSWER_COLUMNS]
    ),
    key=("kind", "id"),
)
"""What is measured of example `id` with a bad answer of this kind, and whose answer that is."""

DONORS = 4096
"""Most examples whose answers are given to others."""
NEAREST = 15
"""Prompts that are much like one: so many nearest ones."""
SHORTEST = 6
"""Tokens of an answer that can be cut off."""
PARTS = (0.2, 0.8)
"""Between these shares of its tokens it is cut."""
CUT_OFF = "cut off"
GARBLED = 0.2
"""Share of letters and digits that are replaced."""


class Row(NamedTuple):
    """The text columns of an example."""

    text: str
    pair: str | None


class Planted(NamedTuple):
    """An example with a bad answer."""

    of: int
    kind: str
    donor: int | None
    """The example whose answer it is, where it is one's."""
    row: Row
    """With the bad answer; where that is cut off, with the whole one, of which a part is taken."""


class Opened(NamedTuple):
    """The model, and what each drawn example is given, by id."""

    reader: Reader
    planted: dict[int, list[Planted]]


@dataclass(frozen=True)
class PlantedAnswers(RunsModel, Stage):
    """Four bad answers for each drawn example, by eight forward passes.

    A worker holds the vectors of 4,096 examples, and reads every text once.
    """

    model: ModelSpec
    """The language model of `answer_loss`."""
    losses: str = "answer_loss"
    """Instance of `answer_loss`."""
    rows: int = 96
    """Examples that are given bad answers, drawn by a hash of their ids."""
    random_seed: int = 0
    """Of what they are given."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 6
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("example",)
    roles: ClassVar[tuple[Role, ...]] = ("example",)
    tasks: ClassVar[tuple[str, ...]] = ("completion",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train", "model.reduction"})

    def __post_init__(self) -> None:
        """Refuses too few rows to learn from.

        Raises:
            ConfigError: there are fewer than 10.
        """
        if self.rows < 10:
            raise ConfigError(
                f"planted_answers: found rows: {self.rows}, expected at least 10 to tell bad "
                "answers by. Set rows: 96."
            )

    @property
    def seed(self) -> int:
        """The seed of what rows are given."""
        return self.random_seed

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts, and the states of prompts."""
        return ("text", self.losses)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per drawn example and kind."""
        return (PLANTED_ANSWER,)

    def open(self, inputs: Inputs) -> Opened:
        """The model, and what each drawn example is given.

        Raises:
            DataError: too few examples have an answer.
        """
        form = str(inputs.details("text").get("format", "text"))
        ids, prompts = self._prompts(inputs)
        if len(ids) < 2 * NEAREST:
            raise DataError(
                f"planted_answers: found {len(ids)} examples with an answer of which a token is "
                f"read, expected at least {2 * NEAREST}. Raise max_length, or leave this stage out."
            )
        drawn = np.flatnonzero(is_drawn(ids, self.rows))
        near, far = neighbours(prompts, drawn, np.random.default_rng([self.random_seed, 0]))
        texts = self._texts(inputs, ids, np.unique([*drawn, *near.ravel(), *far.ravel()]))
        said = {place: answer_of(*row, form) for place, row in texts.items()}
        planted: dict[int, list[Planted]] = {}
        for place, likes, others in zip(drawn.tolist(), near, far, strict=True):
            of, own = int(ids[place]), texts[place]
            generator = self._generator(of, 1)
            planted[of] = []
            for kind, choices in (("another answer", likes), ("off topic", others)):
                donor = _donor(said, place, generator.permutation(choices))
                if donor is not None:
                    row = Row(*with_answer_of(*own, form, texts[donor]))
                    planted[of].append(Planted(of, kind, int(ids[donor]), row))
            row = Row(*with_changed_answer(*own, form, partial(garbled, generator=generator)))
            if answer_of(*row, form) != said[place]:
                planted[of].append(Planted(of, "garbled", None, row))
            planted[of].append(Planted(of, CUT_OFF, None, own))
        return Opened(Reader(load_measurement(self.model, inputs), self.token_budget), planted)

    def compute(self, inputs: Inputs) -> Rows:
        """What is measured of the bad answers of the drawn examples of a shard."""
        opened: Opened = inputs.opened
        ids = np.sort(inputs.table("text", "example")["id"].to_numpy()).tolist()
        rows = [planted for key in ids for planted in opened.planted.get(key, ())]
        # A template may refuse what stands together nowhere, such as results of calls without them.
        refused = opened.reader.refusals([p.row.text for p in rows], [p.row.pair for p in rows])
        rows = [planted for planted, why in zip(rows, refused, strict=True) if why is None]
        if not rows:
            return
        read = opened.reader.read([p.row.text for p in rows], [p.row.pair for p in rows])
        kept, losses = [], []
        for at, planted in enumerate(rows):
            of_row = (read.tokens[at], read.alone[at])
            if planted.kind == CUT_OFF:
                cut = _cut(*of_row, self._generator(planted.of, 2))
                if cut is None:
                    continue
                of_row = cut
            kept.append(at)
            losses.append(told(*of_row))
        if not kept:
            return
        columns = [
            pa.array([rows[at].of for at in kept]),
            pa.array([rows[at].kind for at in kept]),
            pa.array([rows[at].donor for at in kept], pa.int64()),
            *answer_columns(losses, read.prompts[kept], read.answers[kept]),
        ]
        names = PLANTED_ANSWER.schema.names
        yield PLANTED_ANSWER.name, pa.RecordBatch.from_arrays(columns, names)

    def _generator(self, key: int, stream: int) -> np.random.Generator:
        """The draws of an example, the same in whichever shard it lies."""
        return np.random.default_rng([self.random_seed, stream, key % 2**64])

    def cost(self, work: Work) -> Cost:
        """Eight passes of each drawn row."""
        size = network_size(self.model, None)
        n = max(1, work.n_examples + work.n_queries)
        drawn = min(self.rows, work.n_examples)
        return Cost(
            forward_rows=8 * drawn,
            flops=8 * size.forward_flops(round(work.n_tokens / n * drawn)),
            written_bytes=4 * drawn * (8 * size.dim + 60),
            memory_bytes=size.forward_bytes(self.token_budget)
            + 8 * size.dim * min(DONORS, work.n_examples)
            + 8 * work.n_examples,
            read_bytes=n * (8 * size.dim + 60) + 4 * work.n_tokens,
        )

    def _prompts(
        self, inputs: Inputs
    ) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]]:
        """Ids, ascending, of the examples that may give and be given answers, and their prompts.

        These are mean states, less the mean of all and of unit length.
        """
        able = [
            table["id"].to_numpy()[table["n_tokens"].to_numpy() > 0]
            for table in inputs.by_shard(self.losses, "example")
        ]
        answered = np.sort(np.concatenate(able)) if able else np.zeros(0, np.int64)
        answered = answered[is_drawn(answered, DONORS)]
        ids, vectors = inputs.vectors(self.losses, "example")
        order = np.argsort(ids)
        at = order[np.searchsorted(np.asarray(ids)[order], answered)]
        prompts = np.asarray(vectors[at], dtype=np.float32)
        prompts = prompts[:, : prompts.shape[1] // 2]
        return answered, unit_rows(prompts - prompts.mean(0)).astype(np.float32)

    def _texts(
        self, inputs: Inputs, ids: Int64[np.ndarray, " rows"], places: Int64[np.ndarray, " wanted"]
    ) -> dict[int, Row]:
        """The texts of some of the rows, by place."""
        wanted = {int(ids[place]): int(place) for place in places}
        found: dict[int, Row] = {}
        for table in inputs.by_shard("text", "example"):
            rows = np.flatnonzero(np.isin(table["id"].to_numpy(), list(wanted)))
            if len(rows):
                few = table.select(["id", "text", "text_b"]).take(pa.array(rows))
                for key, text, pair in _rows(few):
                    found[wanted[key]] = Row(text, pair)
        return found


def _rows(table: pa.Table) -> Iterator[tuple[int, str, str | None]]:
    yield from zip(*(table[name].to_pylist() for name in ("id", "text", "text_b")), strict=True)


def neighbours(
    prompts: Float[np.ndarray, "rows dim"],
    drawn: Int64[np.ndarray, " drawn"],
    generator: np.random.Generator,
) -> tuple[Int64[np.ndarray, "drawn near"], Int64[np.ndarray, "drawn far"]]:
    """For each drawn row the nearest others, and as many at random of the further half."""
    likeness = prompts[drawn] @ prompts.T
    likeness[np.arange(len(drawn)), drawn] = np.inf
    order = np.argsort(-likeness, axis=1, kind="stable")
    near = order[:, 1 : NEAREST + 1]
    half = order[:, len(prompts) // 2 :]
    columns = np.argsort(generator.random(half.shape), axis=1)[:, :NEAREST]
    return near, np.take_along_axis(half, columns, axis=1)


def garbled(text: str, generator: np.random.Generator) -> str:
    """The text with a fifth of its letters and digits replaced; as it is where it has too few."""
    letters = [at for at, sign in enumerate(text) if sign.isalnum()]
    if len(letters) < SHORTEST:
        return text
    changed = list(text)
    for at in generator.permutation(letters)[: max(2, round(GARBLED * len(letters)))].tolist():
        changed[at] = chr(ord("a") + int(generator.integers(26)))
    return "".join(changed)


def _donor(
    said: Mapping[int, str], place: int, choices: Int64[np.ndarray, " choices"]
) -> int | None:
    """The first of the choices whose answer is another than that of `place`."""
    own = said[place].strip()
    others = (choice for choice in choices.tolist() if said[choice].strip() not in ("", own))
    return next(others, None)


def _cut(
    own: TokenLosses | None, alone: TokenLosses | None, generator: np.random.Generator
) -> tuple[TokenLosses, TokenLosses | None] | None:
    """An answer as if it ended early; None where it is too short, or its end has no loss."""
    if own is None or np.isnan(own.end_losses).any():
        return None
    n_text = len(own.losses) - own.n_ends
    if n_text < SHORTEST:
        return None
    n = max(2, int(n_text * generator.uniform(*PARTS)))
    fits = alone is not None and len(alone.losses) > n
    return cut_after(own, n), cut_after(alone, n) if alone is not None and fits else None


STAGE = PlantedAnswers
