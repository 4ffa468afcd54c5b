"""Passes of a model over the rows of a shard that make one projected gradient per row.

Rows are sorted by length and cut into batches by a token budget. A batch that does not fit in
memory is halved until it does; that is told and recorded, since it changes the last bits. A row
whose gradient is not finite is put aside and recorded; it never touches another row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from stages.batching import Tokens, batches, vector_rows
from stages.checkpoint import network_size
from stages.measurement import Measurement, ModelSpec, load_measurement
from stages.projection import Precision, Projection
from stages.projector import Projector
from stages.stage import ConfigError, Cost, Inputs, StageError, Work
from stages.tables import DIAGNOSTICS
from stages.trained import Shape, trained_layers

DType = Literal["float32", "float16"]
Measured = Callable[[Float[Tensor, "batch outputs"], Int[np.ndarray, " batch"]], Tensor]
STATUSES = ("ok", "overflow", "not finite")
"""What becomes of a vector when it is stored, from good to bad."""
RANDOM_ROWS, RANDOM_WORDS = 32, 32
"""Random text whose principal directions a projection keeps; half the words, and half of these
again, while `max_length` cuts the completion of a row away."""


@dataclass
class Told:
    """What a shard has to say of itself."""

    notices: list[str] = field(default_factory=list)
    n_not_finite: int = 0
    is_exact: bool = True

    def details(self) -> dict[str, Any]:
        """As facts for a manifest."""
        facts: dict[str, Any] = {"notices": self.notices, "n_not_finite": self.n_not_finite}
        return facts if self.is_exact else {**facts, "is_exact_bytes": False}


@dataclass
class Passes:
    """What a stage of projected gradients loads once per worker."""

    measurement: Measurement
    projector: Projector
    precision: Precision = "float32"
    told: Told = field(default_factory=Told)

    def details(self) -> dict[str, Any]:
        """Facts of the shard that was computed last, and how its vectors are laid out."""
        return {"blocks": self.projector.sketch.blocks, **self.told.details()}


class Made(NamedTuple):
    """The features of one batch."""

    rows: Int[np.ndarray, " batch"]
    vectors: Float[np.ndarray, "batch dim"]
    """Of several measured numbers, one after the other."""
    numbers: Float[np.ndarray, "batch measured"]


def open_passes(
    model: ModelSpec,
    inputs: Inputs,
    projection: Projection,
    precision: Precision,
) -> Passes:
    """The model and the projections of all its trained layers.

    Raises:
        ConfigError: bfloat16 is asked of a device without it.
    """
    measurement = load_measurement(model, inputs)
    check_precision(measurement.device, precision)
    layers = trained_layers(measurement.network, model.train)
    projector = Projector(measurement.network, layers, projection, measurement.device)
    passes = Passes(measurement, projector, precision)
    if projection.principal:
        _calibrate(passes, projection.seed)
    return passes


def check_precision(device: str, precision: Precision) -> None:
    """Refuse bfloat16 where it would be emulated.

    Raises:
        ConfigError: the device does not compute in it.
    """
    if precision == "bfloat16" and not has_bfloat16(device):
        raise ConfigError(
            f"precision: found bfloat16 on {device}, expected a device that computes in it. Set "
            "precision: float32."
        )


def has_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are native there."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_features(
    passes: Passes, tokens: Tokens, token_budget: int, measured: Measured
) -> Iterator[Made]:
    """Features of all rows, batch by batch.

    `measured(outputs, rows)` gives the number or numbers per row whose gradients are wanted.

    Raises:
        StageError: a single row does not fit in memory.
    """
    passes.told = Told()

    def compute(rows: Int[np.ndarray, " batch"]) -> Made:
        batch = passes.measurement.batch(tokens, rows)
        mask = batch["attention_mask"].bool()

        def measure() -> Tensor:
            return measured(passes.measurement.outputs(batch), rows)

        vectors, numbers = passes.projector.features(measure, mask, passes.precision)
        return Made(rows, vectors.flatten(1).cpu().numpy(), numbers.double().cpu().numpy())

    for rows in batches(tokens.lengths, token_budget):
        yield from halving(compute, rows, passes.told)


def halving(
    compute: Callable[[Int[np.ndarray, " batch"]], Made],
    rows: Int[np.ndarray, " batch"],
    told: Told,
) -> Iterator[Made]:
    """What `compute` makes of the rows, at once or, where memory runs out, in halves.

    Raises:
        StageError: a single row does not fit.
    """
    try:
        yield compute(rows)
        return
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise StageError(
                f"memory: found that row {rows[0]} of the shard does not fit alone ({error}), "
                "expected room for one row. Lower max_length, or give the stage more memory."
            ) from error
    told.is_exact = False
    told.notices.append("a batch did not fit in memory and was halved; lower token_budget")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    yield from halving(compute, rows[:middle], told)
    yield from halving(compute, rows[middle:], told)


def feature_rows(
    table: str, text: pa.Table, tokens: Tokens, made: Made, dtype: DType, told: Told
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of a feature table for one batch, and of `diagnostics` beside them.

    Rows that are not finite, or too large for float16, are in `diagnostics` alone.
    """
    stored, status = as_stored(made, dtype)
    told.n_not_finite += int((status != "ok").sum())
    yield from usable_rows(table, text, made.rows, stored, status)
    norms = np.linalg.norm(made.vectors.astype(np.float64), axis=1)
    n_tokens = tokens.lengths[made.rows]
    numbers = made.numbers[:, 0]
    yield DIAGNOSTICS.name, diagnostic_rows(text, made.rows, n_tokens, numbers, norms, status)


def as_stored(
    made: Made, dtype: DType
) -> tuple[Float[np.ndarray, "batch dim"], Shaped[np.ndarray, " batch"]]:
    """The vectors in the stored type, and for each one of `STATUSES`."""
    finite = np.isfinite(made.vectors).all(1) & np.isfinite(made.numbers).all(1)
    with np.errstate(over="ignore"):
        stored = made.vectors.astype(dtype)
    fits = np.isfinite(stored).all(1)
    return stored, np.where(~finite, "not finite", np.where(fits, "ok", "overflow"))


def usable_rows(
    table: str,
    text: pa.Table,
    rows: Int[np.ndarray, " batch"],
    stored: Float[np.ndarray, "batch dim"],
    status: Shaped[np.ndarray, " batch"],
    more: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of a feature table whose status is "ok".

    `more` adds columns, one value per row of `text`, between the role and the vector.
    """
    good = np.flatnonzero(status == "ok")
    if len(good):
        batch = vector_rows(text, rows[good], stored[good])
        for at, (name, values) in enumerate((more or {}).items()):
            batch = batch.add_column(2 + at, name, pa.array(values[rows[good]]))
        yield table, batch


def diagnostic_rows(
    text: pa.Table,
    rows: Int[np.ndarray, " batch"],
    n_tokens: Int[np.ndarray, " batch"],
    numbers: Float[np.ndarray, " batch"],
    norms: Float[np.ndarray, " batch"],
    status: Shaped[np.ndarray, " batch"],
) -> pa.RecordBatch:
    """How the features of these rows came out; numbers that are not finite become null."""
    picked = text.select(["id", "role"]).take(pa.array(rows)).combine_chunks()
    return pa.table(
        {
            "id": picked["id"],
            "role": picked["role"],
            "n_tokens": pa.array(n_tokens, pa.int64()),
            "measured": pa.array(numbers, pa.float64(), mask=~np.isfinite(numbers)),
            "norm": pa.array(norms, pa.float64(), mask=~np.isfinite(norms)),
            "status": pa.array(status.tolist(), pa.string()),
        }
    ).to_batches()[0]


def pass_cost(
    model: ModelSpec,
    work: Work,
    projection: Projection,
    token_budget: int,
    dtype: DType,
    n_backward: int = 1,
) -> Cost:
    """One forward and `n_backward` weight-free backward passes per row, and the projections."""
    size = network_size(model, work.n_classes)
    n_rows = work.n_examples + work.n_queries
    shapes = [Shape(*shape) for shape in size.linear]
    dim = projection.length(shapes)
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
    width = 2 if dtype == "float16" else 4
    last = model.train.last_blocks
    share = 1.0 if last is None else last / (size.n_states - 1)
    return Cost(
        forward_rows=n_rows,
        backward_rows=n_rows * n_backward,
        flops=(1 + n_backward * share) * size.forward_flops(work.n_tokens)
        + n_backward * (share * work.n_tokens * per_token + 2.0 * n_rows * dense),
        written_bytes=n_rows * (width * dim * n_backward + 64),
        memory_bytes=size.forward_bytes(token_budget) + kept_bytes + 4 * dense,
    )


def _calibrate(passes: Passes, seed: int) -> None:
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
