"""A check of a model before any row of a corpus goes through it.

Rows of random words, of different lengths and one as long as `max_length`, are run alone and padded
in a batch. A model that reads padding, has too few positions, or gives no finite numbers fails at
once, not in the middle of a corpus, and not by wrong numbers. Loading the model for it already
refuses weights that do not fit its config, and tokens that it does not know.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.model.heads.head import head_of
from stages.model.measurement import Measurement, load_embedder, measurement_of
from stages.model.pretrained import load_tokenizer
from stages.model.spec import ModelSpec
from stages.stage import ModelError, StageError

LENGTHS = (2, 7, 15)
"""Words of the short rows."""
MOST_FLOPS = 2e11
"""Operations that a row as long as `max_length` may cost, some seconds; it is left out above."""


def check_model(model: ModelSpec, form: str) -> None:
    """Refuses a model whose outputs cannot be trusted, whatever the corpus.

    `form` is the content of the text columns. A head that the run fits itself is not there yet: the
    hidden states that it reads are checked, of all layers. Runs on the CPU, in float32, as long as
    loading the model and a few forward passes take.

    Raises:
        ModelError: the model cannot be loaded or fails on such rows, an output is not finite, or
            one changes when the row is padded by more than `tolerance`.
        ConfigError: `max_length` is above what the model can read.
    """
    if model.kind.is_fitted:
        measurement = load_embedder(model, "all", "cpu", form)
    else:
        head, tokenizer = head_of(model), load_tokenizer(model)
        network, n_outputs = head.load(tokenizer, None)
        measurement = measurement_of(model, network, tokenizer, n_outputs, "cpu", form, head)
    try:
        alone, together = _outputs(measurement)
    except (StageError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{model.path}: found that the model fails on rows of random words "
            f"({type(error).__name__}: {str(error)[:200]}), expected outputs. Use a model of text "
            f"that head: {model.head} is for."
        ) from error
    refuse_unequal(model, alone, together)


def refuse_unequal(model: ModelSpec, alone: list[Tensor], together: list[Tensor]) -> None:
    """Refuses outputs that are not finite, or that differ between rows alone and in a batch.

    Both lists hold the outputs of each row, in one order.

    Raises:
        ModelError: there are such outputs.
    """
    bad = [at for at, row in enumerate(alone) if not row.isfinite().all()]
    if bad:
        raise ModelError(
            f"{model.path}: found outputs that are not finite for {len(bad)} of {len(alone)} rows "
            "of random words, expected numbers. The weights are damaged, or too large for "
            "float32: save the model again."
        )
    scale = max(float(row.abs().max()) for row in alone) or 1.0
    pairs = zip(alone, together, strict=True)
    error = max(float((a - b).abs().nan_to_num(nan=torch.inf).max()) for a, b in pairs) / scale
    allowed = tolerance(alone[0].dtype)
    if error > allowed:
        raise ModelError(
            f"{model.path}: found outputs of a row that change by {error:.1%} of the largest when "
            f"it is padded in a batch, expected at most {allowed:.2%}: the model reads its "
            "padding, and a row's numbers would depend on its neighbours. Correct pad_token in "
            "tokenizer_config.json and pad_token_id in config.json, or use another model."
        )


def tolerance(dtype: torch.dtype) -> float:
    """The largest error, relative to the largest output, that rounding explains: half the digits.

    The square root of the type's precision: 3.5e-4 in float32, 0.088 in bfloat16. Sums in another
    order change about the last two digits of each layer's numbers; padding that is read changes the
    first.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


def _outputs(measurement: Measurement) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of each row alone, and of the short ones padded in a batch.

    The long row comes first, and stands for itself in the batch, in which it would have no padding.
    """
    longest = measurement.spec.max_length
    n_parameters = sum(p.numel() for p in measurement.network.parameters())
    has_long = 2.0 * n_parameters * longest < MOST_FLOPS
    lengths = [longest, *LENGTHS] if has_long else [*LENGTHS]
    texts = [measurement.random_text(1, n, seed) for seed, n in enumerate(lengths)]
    tokens = measurement.tokenise(pa.concat_tables(texts))
    # `max_length` may cut a completion off.
    rows = np.flatnonzero(measurement.has_target(tokens))

    def run(some: np.ndarray) -> list[Tensor]:
        with torch.no_grad():
            outputs = measurement.outputs(measurement.batch(tokens, some))
        return [_own(measurement, row, at, tokens) for row, at in zip(outputs, some, strict=True)]

    alone = [run(rows[[at]])[0] for at in range(len(rows))]
    n_long = int(has_long and 0 in rows)
    return alone, alone[:n_long] + run(rows[n_long:])


def _own(
    measurement: Measurement, outputs: Float[Tensor, "..."], row: Any, tokens: Any
) -> Float[Tensor, "..."]:
    """The outputs of a row without those of its padding, where each token has its own."""
    if measurement.head.explains != "answer":
        return outputs
    is_context = torch.tensor(tokens.columns["is_context"][row], dtype=torch.bool)
    return outputs[..., : len(is_context)][..., is_context]
