from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.saliency.from_embeddings import FromEmbeddings
from stages.stage import ConfigError


def opened(saved: Any, kind: str, text: pa.Table, memory: Any) -> tuple[FromEmbeddings, Any]:
    """A classifier of word embeddings, and the rows of `text` in one batch."""
    spec = ModelSpec(str(saved(kind, "SequenceClassification")), head="checkpoint")
    embedded = FromEmbeddings(load_measurement(spec, memory({"text": text})))
    tokens = embedded.measurement.tokenise(text)
    return embedded, embedded.batch(tokens, np.arange(text.num_rows))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "gemma", "longformer"])
def test_a_texts_own_rows_of_the_table_are_the_text(
    saved: Any, text: pa.Table, memory: Any, kind: str
) -> None:
    embedded, batch = opened(saved, kind, text, memory)
    none = np.zeros(text.num_rows, np.int64)
    with torch.no_grad():
        of_ids = embedded.choices(batch, none)
        of_rows = embedded.choices(batch, none, embedded.table[batch["input_ids"]])
    torch.testing.assert_close(of_rows, of_ids)


def test_a_model_that_takes_tokens_before_rows_is_refused(
    saved: Any, text: pa.Table, memory: Any
) -> None:
    embedded, batch = opened(saved, "xlnet", text, memory)
    rows = embedded.table[batch["input_ids"]]
    with pytest.raises(ConfigError, match=r"found a model that looks up words of shape \(14, 7\)"):
        embedded.choices(batch, np.zeros(len(rows), np.int64), rows)
