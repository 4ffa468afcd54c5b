"""A tiny BERT with its tokenizer, a few rows of text, and tables held in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer
from transformers.utils import logging

from stages.stage import Part, Vectors

WORDS = "a the film plot is was good bad dull bright very not and but slow ##ly ##er".split()
ROWS = [
    ("good film", None),
    ("a very dull and slowly bad plot but bright film", None),
    ("the plot is slower", "the film was good"),
    ("not bad", None),
    ("the film is very very very good and not dull", "bad"),
    ("dull", None),
    ("the slow plot was good but the good film was slow", None),
]


class MemoryInputs:
    """What `stages.stage.Inputs` promises, from tables in memory."""

    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        details: Mapping[str, Mapping[str, Any]] | None = None,
        vectors: Mapping[str, Vectors] | None = None,
    ) -> None:
        self.part = Part("example", 0)
        self.opened: Any = None
        self._tables, self._details, self._vectors = tables, details or {}, vectors or {}

    def table(self, name: str, role: str | None = None) -> pa.Table:
        return self._tables[name]

    def vectors(self, name: str, role: str) -> Vectors:
        return self._vectors[name]

    def details(self, name: str) -> Mapping[str, Any]:
        return self._details.get(name, {})

    def run(self, stage: Any) -> pa.Table:
        """All rows of a stage that writes one table, checked and in key order."""
        if hasattr(stage, "open"):
            self.opened = stage.open(self)
        batches = [batch for _, batch in stage.compute(self)]
        return stage.writes[0].check(pa.Table.from_batches(batches))


@pytest.fixture(scope="session")
def memory() -> type[MemoryInputs]:
    return MemoryInputs


@pytest.fixture
def text() -> pa.Table:
    # Ids out of order: rows must keep theirs, wherever batching puts them.
    ids = [30, 10, 60, 20, 70, 50, 40]
    texts, pairs = zip(*ROWS, strict=True)
    return pa.table(
        {
            "id": pa.array(ids),
            "role": ["example"] * len(ids),
            "text": list(texts),
            "text_b": pa.array(pairs, pa.string()),
        }
    )


@pytest.fixture
def label(text: pa.Table) -> pa.Table:
    labels = pa.array([0, 1, 2, 1, 0, 2, 1])
    columns = {"id": text["id"], "role": text["role"], "label": labels, "true_label": labels}
    return pa.table(columns)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, without a head."""
    return _save(tmp_path_factory.mktemp("encoder"), BertModel)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of 3 classes."""
    return _save(tmp_path_factory.mktemp("checkpoint"), BertForSequenceClassification)


def _save(folder: Path, network_class: Any) -> Path:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    # Weights of this size make every layer's gradient matter.
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=160,
        initializer_range=0.2,
        num_labels=3,
    )
    tokenizer = BertTokenizer(
        vocab={word: at for at, word in enumerate(vocabulary)}, model_max_length=160
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
