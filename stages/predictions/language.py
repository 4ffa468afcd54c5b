"""The language of every text, and how sure that is.

By the naive Bayes model over byte sequences of langid.py (Lui and Baldwin 2012, ACL system
demonstrations), as the package py3langid carries it: 97 languages, no network. Of short texts its
probabilities mean little. Of 26,800 real English sentences, reviews and tweets of at least 40
characters it finds 40 in another language with 0.9 or more; of the 34 with 0.95 or more, which were
read, 33 are (Spanish, Portuguese, French, Dutch, German), and one is a line of Japanese hashtags.
"""

import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages.model.templates import plain_texts
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

LANGUAGE = TableSpec(
    name="language",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("language", pa.string()),
            ("p_language", pa.float64()),
            ("n_characters", pa.int64()),
        ]
    ),
    key=("id",),
)
"""The likeliest language (ISO 639-1), its probability, and the characters that tell; language is
null where no letter stands in a text."""
LONGEST = 2000
"""Characters of a text that are looked at."""


class Identifier:
    """The model; it counts in place, so threads take turns."""

    def __init__(self) -> None:
        """Reads the model of the package."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._model: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._lock = threading.Lock()

    def language(self, text: str) -> tuple[str | None, float]:
        """The likeliest language of a text, and its probability; None where it has no letter."""
        if not any(map(str.isalpha, text)):
            return None, 0.0
        with self._lock:
            language, probability = self._model.classify(text)
        return str(language), float(probability)


@dataclass(frozen=True)
class Language(Stage):
    """Languages of examples and queries. A task holds the texts of a shard.

    Both texts of a pair, all messages of a conversation, prompt and completion count as one; of a
    preference the prompt with its chosen answer.
    """

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per text."""
        return (LANGUAGE,)

    def open(self, inputs: Inputs) -> Identifier:
        """The model, which is read once."""
        return Identifier()

    def compute(self, inputs: Inputs) -> Rows:
        """The languages of the texts of one shard."""
        identifier: Identifier = inputs.opened
        text = inputs.table("text")
        form = str(inputs.details("text").get("format", "text"))
        both = zip(
            *plain_texts(text["text"].to_pylist(), text["text_b"].to_pylist(), form), strict=True
        )
        looked_at = [f"{a or ''} {b or ''}".strip()[:LONGEST] for a, b in both]
        found = [identifier.language(one) for one in looked_at]
        columns = [
            text["id"].combine_chunks(),
            text["role"].combine_chunks(),
            pa.array([language for language, _ in found], pa.string()),
            pa.array([probability for _, probability in found]),
            pa.array(map(len, looked_at), pa.int64()),
        ]
        yield LANGUAGE.name, pa.RecordBatch.from_arrays(columns, schema=LANGUAGE.schema)

    def cost(self, work: Work) -> Cost:
        """A look at every character."""
        n = work.n_examples + work.n_queries
        return Cost(
            flops=50_000.0 * work.n_tokens,
            written_bytes=20 * n,
            memory_bytes=60 * work.n_tokens // max(1, work.n_shards),
        )


STAGE = Language
