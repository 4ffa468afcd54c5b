from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.saliency.from_embeddings import FromEmbeddings


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "gemma"])
def test_a_texts_own_rows_of_the_table_are_the_text(
    saved: Any, text: pa.Table, memory: Any, kind: str
) -> None:
    spec = ModelSpec(str(saved(kind, "SequenceClassification")), head="checkpoint")
    embedded = FromEmbeddings(load_measurement(spec, memory({"text": text})))
    tokens = embedded.measurement.tokenise(text)
    rows = np.arange(text.num_rows)
    batch, none = embedded.batch(tokens, rows), np.zeros(len(rows), np.int64)
    with torch.no_grad():
        of_ids = embedded.choices(batch, none)
        of_rows = embedded.choices(batch, none, embedded.table[batch["input_ids"]])
    torch.testing.assert_close(of_rows, of_ids)
