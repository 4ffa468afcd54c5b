"""The head `probe`: a linear layer that the run fits on the trunk's mean-pooled hidden states."""

from typing import Any, ClassVar

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stages.model.heads.head import Head
from stages.model.networks import PooledNetwork
from stages.model.pretrained import linear, load_trunk
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, DataError, Inputs, ModelError


class Probe(Head):
    """A trunk with the linear layer of the table `probe` on its mean-pooled last hidden states."""

    reads: ClassVar[tuple[str, ...]] = ("probe",)
    is_fitted: ClassVar[bool] = True
    is_on_trunk: ClassVar[bool] = True

    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The trunk with the probe on top, and the number of the probe's outputs.

        Raises:
            ModelError: the trunk cannot be loaded, or the probe has not its hidden size.
            ConfigError: the probe was fitted on another layer than the last.
        """
        if inputs is None:
            raise ValueError("found no inputs, expected the table probe")
        trunk = load_trunk(self.spec)
        head = _linear(int(trunk.config.hidden_size), inputs)
        return PooledNetwork(trunk, head), head.out_features


def read_probe(
    probe: pa.Table,
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Weight and bias of the table `probe`, in class order; a regression's has one row.

    Raises:
        DataError: the classes are not 0, 1, 2, and so on.
    """
    probe = probe.sort_by("class")
    classes = probe["class"].to_pylist()
    if classes != list(range(len(classes))) or not classes:
        raise DataError(
            f"probe: found classes {classes}, expected 0 to n - 1. Fit the probe again."
        )
    bias = probe["bias"].to_numpy().copy()
    return torch.from_numpy(matrix_of(probe["weight"]).copy()), torch.from_numpy(bias)


def _linear(dim: int, inputs: Inputs) -> nn.Linear:
    """The probe as a layer on hidden states of length `dim`; raises as `Probe.load`."""
    details = inputs.details("probe")
    layer = details.get("layer", -1)
    if layer != -1:
        raise ConfigError(
            f"probe: found one fitted on the {details.get('embedding', 'embedding')} of layer "
            f"{layer}, expected layer -1, which the head reads. Set layer: -1 in the "
            "embedding stage."
        )
    weight, bias = read_probe(inputs.table("probe"))
    if weight.shape[1] != dim:
        raise ModelError(
            f"probe: found {weight.shape[1]} weights per class, expected {dim}, the model's hidden "
            "size. Fit the probe on this model's embeddings."
        )
    return linear(weight, bias)


HEAD = Probe
