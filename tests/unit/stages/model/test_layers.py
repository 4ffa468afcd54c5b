import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.model.layers import scale_of, tied_tables, trained_layers
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


def test_experts_in_a_stack_are_refused_where_they_are_selected() -> None:
    config = transformers.MixtralConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    network = transformers.MixtralForCausalLM(config)
    for trained in (Trained(), Trained(last_blocks=1), Trained(layers=("*.1.*",))):
        with pytest.raises(ModelError, match=r"experts\.gate_up_proj, 3 matrices in a stack"):
            trained_layers(network, trained)
    chosen = trained_layers(network, Trained(layers=("*attn*",)))
    assert len(chosen) == 2 * 4
    # Convolutions have weights of such a shape.
    assert trained_layers(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Linear(2, 2)), Trained())


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(input)


class Shifted(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_scales_its_rows_at_most(dtype: torch.dtype) -> None:
    assert scale_of(nn.Embedding(7, 4, dtype=dtype)) == 1
    scaled = Scaled(7, 4, padding_idx=0, dtype=dtype)
    assert scale_of(scaled) == pytest.approx(3, rel=4 * torch.finfo(dtype).eps)
    with pytest.raises(ModelError, match="Shifted, that gives no multiples"):
        scale_of(Shifted(7, 4, dtype=dtype))
