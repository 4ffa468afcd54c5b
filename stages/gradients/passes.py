"""Forward and backward passes of a model over a shard: one projected gradient per row.

Rows are sorted by length and cut into batches by a token budget. A batch that does not fit in
memory is halved until it does, which is recorded, since it changes the last bits. A row whose
gradient is not finite is left out and recorded; it never touches another row.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.gradients.adam import Moments
from stages.gradients.projection import Projection
from stages.gradients.projector import NUMBERS, Projector, RowsTogether
from stages.gradients.rows import BatchVectors, DType
from stages.model.batches import Tokens, batches
from stages.model.checkpointing import checkpointed
from stages.model.layers import Shape, trained_layers
from stages.model.measurement import Measurement, load_measurement
from stages.model.precision import Precision, check_precision
from stages.model.size import network_size
from stages.model.spec import ModelSpec
from stages.stage import Cost, Inputs, StageError, Tell, Work

Measured = Callable[[Float[Tensor, "batch outputs"], Int[np.ndarray, " batch"]], Tensor]
RANDOM_ROWS, RANDOM_WORDS = 32, 32
"""Rows and words of the random text whose principal directions a projection keeps; half the words,
and half of these again, while `max_length` cuts the completion of a row away."""


@dataclass(frozen=True)
class Passes:
    """A loaded model and the projector of its gradients, once per worker."""

    measurement: Measurement
    projector: Projector
    precision: Precision = "float32"
    is_checkpointed: bool = False
    """Whether blocks are run again in the backward pass (`stages.model.checkpointing`)."""
    moments: Mapping[int, Moments] | None = None
    """What steps of Adam take the place of gradients by (`stages.gradients.adam`)."""

    def details(self) -> dict[str, Any]:
        """The blocks of a vector: name, start and size of each layer's part."""
        return {"blocks": self.projector.sketch.blocks}


def open_passes(
    model: ModelSpec,
    inputs: Inputs,
    projection: Projection,
    precision: Precision,
    is_checkpointed: bool = False,
) -> Passes:
    """The model and the projections of all its trained layers.

    Memory beside the model: for the at most 64 tokens of each of `RANDOM_ROWS` rows the hidden
    states between blocks, the inside of one block, and twice the logits of their completions.

    Raises:
        ConfigError: bfloat16 is asked of a device without it.
    """
    measurement = load_measurement(model, inputs, by_sides=True)
    check_precision(measurement.device, precision)
    layers = trained_layers(measurement.network, model.train)
    projector = Projector(measurement.network, layers, projection, measurement.device)
    passes = Passes(measurement, projector, precision, is_checkpointed)
    if projection.principal:
        _calibrate(passes, projection.seed)
    return passes


def make_features(
    passes: Passes, tokens: Tokens, token_budget: int, measured: Measured, tell: Tell
) -> Iterator[BatchVectors]:
    """Projected gradients of all rows of `tokens`, batch by batch.

    `measured(outputs, rows)` gives the number or numbers per row that are differentiated. `tell` is
    given a notice when a batch did not fit in memory.

    Raises:
        StageError: a single row does not fit in memory.
    """
    tell(n_not_finite=0)  # a shard without rows has facts, too

    def compute(rows: Int[np.ndarray, " batch"]) -> BatchVectors:
        vectors, numbers = run_batch(passes, tokens, rows, measured)
        return BatchVectors(rows, vectors.flatten(1).cpu().numpy(), numbers.double().cpu().numpy())

    for rows in batches(tokens.lengths, token_budget):
        yield from halving(compute, rows, tell)


def run_batch(
    passes: Passes, tokens: Tokens, rows: Int[np.ndarray, " batch"], measured: Measured
) -> tuple[Float[Tensor, "batch measured dim"], Float[Tensor, "batch measured"]]:
    """Projected gradients of some rows of `tokens` in one batch, and the numbers themselves."""
    batch = passes.measurement.batch(tokens, rows)
    mask = batch["attention_mask"].bool()

    def measure() -> Tensor:
        return measured(passes.measurement.outputs(batch), rows)

    network = passes.measurement.network
    with checkpointed(network) if passes.is_checkpointed else nullcontext():
        if passes.moments is not None:
            return passes.projector.steps(measure, mask, passes.moments, passes.precision)
        return passes.projector.features(measure, mask, passes.precision)


def halving(
    compute: Callable[[Int[np.ndarray, " batch"]], BatchVectors],
    rows: Int[np.ndarray, " batch"],
    tell: Tell,
) -> Iterator[BatchVectors]:
    """The results of `compute` for the rows, all at once or, where memory runs out, in halves.

    One by one where a layer does not keep the rows of a batch apart.

    Raises:
        StageError: a single row does not fit.
    """
    try:
        yield compute(rows)
        return
    except RowsTogether:
        if len(rows) == 1:  # of two texts
            raise
        tell("layers of this model take rows together, so each row had a pass of its own")
        for at in range(len(rows)):
            yield from halving(compute, rows[at : at + 1], tell)
        return
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise StageError(
                f"memory: found that row {rows[0]} of the shard does not fit alone ({error}), "
                "expected room for one row. Lower max_length, or give the stage more memory."
            ) from error
    tell("a batch did not fit in memory and was halved; lower token_budget", is_exact_bytes=False)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    yield from halving(compute, rows[:middle], tell)
    yield from halving(compute, rows[middle:], tell)


def vector_length(model: ModelSpec, projection: Projection, n_classes: int) -> int:
    """Length of a feature vector if all linear layers are trained; no weight is loaded."""
    shapes = network_size(model, n_classes).linear
    return projection.length([Shape(*shape) for shape in shapes])


def pass_cost(
    model: ModelSpec,
    work: Work,
    projection: Projection,
    token_budget: int,
    dtype: DType,
    n_backward: int = 1,
    is_checkpointed: bool = False,
    n_sides: int = 1,
    has_moments: bool = False,
) -> Cost:
    """One forward and `n_backward` weight-free backward passes per row, and the projections.

    Where blocks are checkpointed, one more forward pass with each backward pass. `n_sides` is how
    often a row's text is read, each time with another answer. With moments whole gradients are
    formed, and projected row by row.
    """
    size = network_size(model, work.n_classes)
    n_rows = work.n_examples + work.n_queries
    shapes = [Shape(*shape) for shape in size.linear]
    dim = vector_length(model, projection, work.n_classes)
    per_token = 0.0
    for shape in shapes:
        left, right = projection.block(shape)
        per_token += 2.0 * (shape.inputs * right + shape.outputs * left + left * right)
    joined = sum(left * right for left, right in map(projection.block, shapes))
    is_dense = projection.final == "dense" and dim < joined
    dense = joined * dim if is_dense else 0
    widths = sum(shape.inputs + shape.outputs for shape in shapes)
    # Attention, norms and activations keep about as much again as the linear layers.
    kept_bytes = 4 * token_budget * 2 * widths
    if is_checkpointed:
        kept_bytes = kept_bytes // (size.n_states - 1) + 4 * token_budget * size.dim * size.n_states
    width = 2 if dtype == "float16" else 4
    last = model.train.last_blocks
    share = 1.0 if last is None else last / (size.n_states - 1)
    n_runs = n_backward * (2 if is_checkpointed else 1)
    n_weights = sum(shape.inputs * shape.outputs for shape in shapes) if has_moments else 0
    per_weight = 2 * (max(right for _, right in map(projection.block, shapes)) + 8)
    return Cost(
        forward_rows=n_sides * n_rows,
        backward_rows=n_sides * n_rows * n_backward,
        flops=n_sides * (1 + n_runs * share) * size.forward_flops(work.n_tokens)
        + n_sides * n_backward * (share * work.n_tokens * per_token + 2.0 * n_rows * dense)
        + share * per_weight * n_rows * n_weights,
        written_bytes=n_rows * (width * dim * n_backward + 64),
        memory_bytes=size.forward_bytes(token_budget)
        + kept_bytes
        + 4 * dense
        + (8 * n_weights + 16 * NUMBERS if has_moments else 0)
        + 3 * width * dim * n_backward * work.n_examples // max(1, work.n_shards),
        vector_length=dim,
    )


def _calibrate(passes: Passes, seed: int) -> None:
    """Gives the projector the principal directions of random text drawn with `seed`."""
    measurement = passes.measurement
    n_words = RANDOM_WORDS
    while True:
        tokens = measurement.tokenise(measurement.random_text(RANDOM_ROWS, n_words, seed))
        rows = np.flatnonzero(measurement.has_target(tokens))
        if len(rows) == RANDOM_ROWS or n_words == 1:
            break
        # A row without a target measures 0 / 0, which would make every direction NaN.
        n_words //= 2
    if len(rows) == 0:
        return
    batch = measurement.batch(tokens, rows)
    columns = torch.arange(len(rows), device=measurement.device) % measurement.n_outputs

    def measure() -> Tensor:
        # The loss of any class is a sum over logits: each row stands for one of them.
        return measurement.outputs(batch).gather(1, columns.unsqueeze(1)).squeeze(1)

    passes.projector.calibrate(measure, batch["attention_mask"].bool())


def _is_out_of_memory(error: BaseException) -> bool:
    is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_named or "allocate memory" in str(error)
