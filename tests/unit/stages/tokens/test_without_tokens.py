"""Queries of which a tokenizer leaves nothing have no rows, are counted, and change no others."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import transformers

from stages.model.spec import ModelSpec, Prompt
from stages.tokens.attention import Attention
from stages.tokens.attn_lrp import AttnLrp
from stages.tokens.grad_input import GradInput
from stages.tokens.gradient_shap import GradientShap
from stages.tokens.ig import IntegratedGradients
from stages.tokens.occlusion import Occlusion
from stages.tokens.random_token import RandomToken
from stages.tokens.sig import SequentialGradients
from stages.tokens.simple_grad import SimpleGrad
from stages.tokens.smooth_grad import SmoothGrad

METHODS = [
    Attention,
    AttnLrp,
    GradInput,
    GradientShap,
    IntegratedGradients,
    Occlusion,
    RandomToken,
    SequentialGradients,
    SimpleGrad,
    SmoothGrad,
]
NOTHING = ["\u200b", "\ufeff\u200b"]


def asked(texts: list[str], pair: str | None = None) -> pa.Table:
    pairs = pa.array([pair] * len(texts), pa.string())
    ids, roles = pa.array(range(len(texts))), ["query"] * len(texts)
    return pa.table({"id": ids, "role": roles, "text": texts, "text_b": pairs})


@pytest.mark.parametrize("method", METHODS)
def test_a_query_without_tokens_has_no_rows(
    memory: Any, checkpoint_folder: Path, method: Any
) -> None:
    stage = method(ModelSpec(str(checkpoint_folder), head="checkpoint"))
    inputs = memory({"text": asked(["good film", NOTHING[0], "bad", NOTHING[1]])})
    found = inputs.run(stage).to_pylist()
    assert {row["query_id"] for row in found} == {0, 2}
    assert inputs.written["explained"]["query_id"].to_pylist() == [0, 2]
    assert inputs.said_by(stage)["n_without_tokens"] == 2
    with_text = memory({"text": asked(["good film", "bad"])})
    wanted = with_text.run(stage).to_pylist()
    assert "n_without_tokens" not in with_text.said_by(stage)
    assert [row["token"] for row in found] == [row["token"] for row in wanted]
    if method not in (RandomToken, GradientShap, SmoothGrad):  # These draw by the query's id.
        scores = [row["score"] for row in wanted]
        assert [row["score"] for row in found] == pytest.approx(scores, rel=1e-4, abs=1e-6)
    alone = memory({"text": asked(NOTHING)})
    assert alone.run(stage).num_rows == 0
    assert alone.said_by(stage)["n_without_tokens"] == 2


def test_a_prompt_is_no_token_of_the_text(memory: Any, saved: Any) -> None:
    prompt = Prompt("{text} it was {mask}", ("good", "bad"))
    spec = ModelSpec(str(saved("bert", "MaskedLM")), head="label_words", prompt=prompt)
    inputs = memory({"text": asked(["film", "\u200b"])})
    assert set(inputs.run(Occlusion(spec))["query_id"].to_pylist()) == {0}


def test_a_question_about_nothing_has_no_answer_to_explain(memory: Any, saved: Any) -> None:
    spec = ModelSpec(str(saved("bert", "QuestionAnswering", num_labels=2)), head="span")
    inputs = memory({"text": asked(["good film", "\u200b"], "was it good")})
    found = inputs.run(Occlusion(spec))
    assert set(found["query_id"].to_pylist()) == {0}
    assert inputs.said_by(Occlusion(spec))["n_without_tokens"] == 1


def test_nothing_before_a_next_token(memory: Any, saved: Any) -> None:
    """Of a model that begins a text, `continuation` may explain the first token."""
    folder = str(saved("llama", "CausalLM"))
    begin = transformers.AutoTokenizer.from_pretrained(folder).bos_token_id
    chosen = pa.table(
        {
            "query_id": [0, 0],
            "token_index": [1, 2],
            "token_id": [5, 6],
            "token": ["x", "y"],
            "prefix": [[begin], [begin, 5]],
        }
    )
    inputs = memory({"text": asked(["good film"]), "continuation": chosen})
    stage = Occlusion(ModelSpec(folder, head="completion"), baseline="zero")
    assert set(inputs.run(stage)["output"].to_pylist()) == {2}
    assert inputs.said_by(stage)["n_without_tokens"] == 1
