"""The head `checkpoint`: the classifier or regressor that a checkpoint holds."""

from typing import Any, ClassVar

import transformers
from torch import nn

from stages.model.adapters import adapted
from stages.model.heads.head import Head
from stages.model.networks import CheckpointNetwork
from stages.model.pretrained import load_whole, pad_with
from stages.stage import Inputs

# Parts of transformers that its own types leave out.
_auto: Any = transformers


class Checkpoint(Head):
    """A sequence classifier, or a regressor with one output, as it was saved."""

    architecture: ClassVar[str] = "AutoModelForSequenceClassification"

    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The classifier, and the number of its outputs.

        Raises:
            ModelError: the classifier cannot be loaded, or its tokenizer cannot pad.
        """
        loader = _auto.AutoModelForSequenceClassification
        network = load_whole(self.spec, loader, "a classifier")
        base = network.base_model_prefix
        network = adapted(self.spec, network)
        pad_with(tokenizer, network)
        n_outputs = int(network.config.num_labels)
        return CheckpointNetwork(network, base, self.spec.class_order), n_outputs

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """None: the saved classifier has its output layer already."""
        return None


HEAD = Checkpoint
