import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.model.layers import tied_tables, trained_layers
from stages.model.spec import Trained
from stages.stage import ConfigError, ModelError


def test_a_network_needs_a_layer_that_counts() -> None:
    with pytest.raises(ConfigError, match="found no layer that fits"):
        trained_layers(nn.Sequential(nn.Tanh()), Trained())


def test_a_table_cannot_share_the_weight_of_a_conv1d() -> None:
    network = nn.ModuleDict({"table": nn.Embedding(7, 4), "first": Conv1D(4, 7)})
    network["first"].weight = network["table"].weight
    with pytest.raises(ModelError, match="embedding table table in a Conv1D"):
        tied_tables(network, trained_layers(network, Trained()))
