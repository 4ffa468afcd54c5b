"""AttnLRP against relevance propagated by hand, its axioms, and every kind of model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.model.spec import ModelSpec, Prompt
from stages.saliency.outputs import load_embedded, read_outputs
from stages.saliency.relevance import relevance_rules
from stages.stage import ConfigError, ModelError
from stages.tokens.attn_lrp import AttnLrp

IDS = torch.tensor([[5, 7, 6, 9, 8, 7]])
SIZE = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Linear = Callable[[Tensor], Tensor]


def made(kind: str, n_layers: int = 1, attention: str = "eager", **more: Any) -> nn.Module:
    """A classifier in float64 with drawn weights, biases and norms."""
    fields = {**SIZE, "num_hidden_layers": n_layers, **more}
    config = transformers.AutoConfig.for_model(kind, **fields)
    loader = transformers.AutoModelForSequenceClassification
    network = loader.from_config(config, attn_implementation=attention).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in sorted(network.named_parameters()):
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator).double())
            weight += 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
    return network.requires_grad_(False)


def relevance(network: Any, target: int, rules: bool = True) -> tuple[Tensor, Tensor]:
    """The output, and the gradient by the word embeddings times these."""
    x = network.get_input_embeddings()(IDS).detach().requires_grad_(True)

    def output() -> Tensor:
        logits: Tensor = network(inputs_embeds=x, attention_mask=torch.ones_like(IDS)).logits
        return logits[0, target]

    if rules:
        with relevance_rules(network):
            value = output()
            (gradient,) = torch.autograd.grad(value, x)
    else:
        value = output()
        (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), (gradient * x.detach())[0]


# Relevance by hand: no gradient, each rule as the paper writes it, R being shares of the output.


def through(x: Tensor, weight: Tensor, z: Tensor, shares: Tensor) -> Tensor:
    """The epsilon rule of z = x W^T + b: R_i = sum_j x_i W_ji R_j / z_j."""
    return x * ((shares / z) @ weight)


def split(a: Tensor, b: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The epsilon rule of a sum."""
    return a * shares / (a + b), b * shares / (a + b)


def through_norm(x: Tensor, norm: nn.LayerNorm, shares: Tensor) -> Tensor:
    """LayerNorm as a linear map, its deviation given."""
    deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    center = torch.eye(x.shape[-1]).double() - 1 / x.shape[-1]
    return torch.stack(
        [
            through(row, norm.weight[:, None] * center / own, z, share)
            for row, own, z, share in zip(x, deviation, norm(x), shares, strict=True)
        ]
    )


def through_attention(
    q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform rule of A v, Taylor rule of the softmax, uniform rule of q k^T; one head."""
    scores = q @ k.T / q.shape[1] ** 0.5
    a = torch.where(is_seen, scores, -torch.inf).softmax(1)
    half = shares / (2 * (a @ v))
    of_a, of_v = a * (half @ v.T), v * (a.T @ half)
    of_scores = torch.where(is_seen, scores * (of_a - a * of_a.sum(1, keepdim=True)), 0.0)
    each = of_scores / (2 * q @ k.T)
    return q * (each @ k), k * (each.T @ q), of_v


def by_head(x: Tensor, n_heads: int) -> Any:
    return x.reshape(len(x), n_heads, -1).unbind(1)


def of_bert(network: Any, target: int) -> Tensor:
    """The relevance of each word's embedding in a BERT of one layer with its pooler."""
    bert, (layer,) = network.bert, network.bert.encoder.layer
    attention, inner = layer.attention, layer.attention.self
    n, tables = IDS.shape[1], bert.embeddings
    word = tables.word_embeddings(IDS[0])
    place = tables.position_embeddings.weight[:n] + tables.token_type_embeddings.weight[0]
    x = tables.LayerNorm(word + place)
    q, k, v = inner.query(x), inner.key(x), inner.value(x)
    is_seen = torch.ones(n, n).bool()
    heads = list(zip(*(by_head(part, 2) for part in (q, k, v)), strict=True))
    parts = [(a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c for a, b, c in heads]
    context = torch.cat(parts, 1)
    out = attention.output.dense(context)
    y = attention.output.LayerNorm(out + x)
    up = layer.intermediate.dense(y)
    down = layer.output.dense(nn.functional.gelu(up))
    h = layer.output.LayerNorm(down + y)
    pooled = bert.pooler.dense(h[0])
    logits = network.classifier(pooled.tanh())
    shares = torch.zeros(3).double()
    shares[target] = logits[target]
    shares = through(pooled.tanh(), network.classifier.weight, logits, shares)
    first = through(h[0], bert.pooler.dense.weight, pooled, shares)
    shares = torch.zeros_like(h)
    shares[0] = first
    of_down, of_y = split(down, y, through_norm(down + y, layer.output.LayerNorm, shares))
    gelu = nn.functional.gelu(up)
    shares = through(gelu, layer.output.dense.weight, down, of_down)
    of_y = of_y + through(y, layer.intermediate.dense.weight, up, shares)
    of_out, of_x = split(out, x, through_norm(out + x, attention.output.LayerNorm, of_y))
    of_context = through(context, attention.output.dense.weight, out, of_out)
    parts = [
        through_attention(*head, is_seen, own)
        for head, own in zip(heads, by_head(of_context, 2), strict=True)
    ]
    for kind, z, of in zip(
        ("query", "key", "value"), (q, k, v), zip(*parts, strict=True), strict=True
    ):
        of_x = of_x + through(x, getattr(inner, kind).weight, z, torch.cat(of, 1))
    return split(word, place, through_norm(word + place, tables.LayerNorm, of_x))[0]


def turned(x: Tensor) -> Tensor:
    """The matrix of each position's rotary turn: (positions, dim, dim)."""
    n, half = len(x), x.shape[1] // 2
    angle = torch.arange(n)[:, None] / 10000.0 ** (torch.arange(half) / half)
    cos, sin = angle.double().cos(), angle.double().sin()
    matrix = torch.zeros(n, 2 * half, 2 * half).double()
    for i in range(half):
        matrix[:, i, i] = matrix[:, i + half, i + half] = cos[:, i]
        matrix[:, i, i + half], matrix[:, i + half, i] = -sin[:, i], sin[:, i]
    return matrix


def of_llama(network: Any, target: int) -> Tensor:
    """The relevance of each word's embedding in a Llama of one layer, read at the last token."""
    model, (layer,) = network.model, network.model.layers
    inner, mlp, n = layer.self_attn, layer.mlp, IDS.shape[1]
    word = model.embed_tokens(IDS[0])

    def root(x: Tensor, norm: Any) -> Tensor:
        return norm.weight / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()

    x = word * root(word, layer.input_layernorm)
    q, k, v = inner.q_proj(x), inner.k_proj(x), inner.v_proj(x)
    turn, is_seen = turned(by_head(q, 2)[0]), torch.ones(n, n).tril().bool()

    def turn_of(head: Tensor) -> Tensor:
        return (turn @ head[:, :, None])[:, :, 0]

    raw = list(zip(*(by_head(part, 2) for part in (q, k, v)), strict=True))
    heads = [(turn_of(a), turn_of(b), c) for a, b, c in raw]
    parts = []
    for a, b, c in heads:
        scores = torch.where(is_seen, a @ b.T / a.shape[1] ** 0.5, -torch.inf)
        parts.append(scores.softmax(1) @ c)
    context = torch.cat(parts, 1)
    out = inner.o_proj(context)
    y = word + out
    normed = y * root(y, layer.post_attention_layernorm)
    gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
    mixed = nn.functional.silu(gate) * up
    down = mlp.down_proj(mixed)
    h = y + down
    last = (h * root(h, model.norm))[-1]
    shares = torch.zeros_like(h)
    shares[-1] = last * network.score.weight[target]
    of_y, of_down = split(y, down, shares)
    half = through(mixed, mlp.down_proj.weight, down, of_down) / 2
    of_y = of_y + through(normed, mlp.gate_proj.weight, gate, half)
    of_y = of_y + through(normed, mlp.up_proj.weight, up, half)
    of_word, of_out = split(word, out, of_y)
    of_context = through(context, inner.o_proj.weight, out, of_out)
    parts = []
    for head, (a, b, _), own in zip(heads, raw, by_head(of_context, 2), strict=True):
        of_q, of_k, of_v = through_attention(*head, is_seen, own)
        back = [
            torch.stack([through(*one) for one in zip(x, turn, z, of, strict=True)])
            for x, z, of in ((a, head[0], of_q), (b, head[1], of_k))
        ]
        parts.append((*back, of_v))
    for kind, z, of in zip(
        ("q_proj", "k_proj", "v_proj"), (q, k, v), zip(*parts, strict=True), strict=True
    ):
        of_word = of_word + through(x, getattr(inner, kind).weight, z, torch.cat(of, 1))
    return of_word


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("kind", "by_hand", "tolerance"), [("bert", of_bert, 1e-11), ("llama", of_llama, 1e-5)]
)
def test_relevance_equals_rules_by_hand(
    kind: str, by_hand: Any, tolerance: float, attention: str
) -> None:
    # Llama's norms and turns are float32 in a model of float64, too.
    network = made(kind, attention=attention)
    for target in range(3):
        with torch.no_grad():
            wanted = by_hand(network, target)
        _, found = relevance(network, target)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        _, plain = relevance(network, target, rules=False)
        assert (plain - wanted).abs().max() > 0.05 * wanted.abs().max()


class Softmaxes(TorchFunctionMode):
    """Remembers what enters and leaves every softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__ == "softmax":
            self.seen.append((args[0], result))
        return result


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama"])
def test_relevance_is_conserved(kind: str) -> None:
    """Words, biases, positions and the remainders of softmax add up to the output."""
    more = {"n_inner": 20} if kind == "gpt2" else {}
    network: Any = made(kind, 2, num_key_value_heads=2, **more)
    constants = [
        weight.requires_grad_(True)
        for name, weight in network.named_parameters()
        if name.endswith("bias") or "position" in name or "token_type" in name or "wpe" in name
    ]
    x = network.get_input_embeddings()(IDS).detach().requires_grad_(True)
    with relevance_rules(network), Softmaxes() as softmaxes:
        value = network(inputs_embeds=x, attention_mask=torch.ones_like(IDS)).logits[0, 1]
        ends = [tensor for pair in softmaxes.seen for tensor in pair]
        sources = [x, *constants, *ends]
        gradients = torch.autograd.grad(value, sources, allow_unused=True)
    shares = [
        torch.zeros(()) if g is None else torch.where(g == 0, 0.0, s.detach() * g).sum()
        for s, g in zip(sources, gradients, strict=True)
    ]
    n = 1 + len(constants)
    remainders = sum(shares[n + 1 :: 2]) - sum(shares[n::2])  # type: ignore[operator]
    assert len(softmaxes.seen) == 2
    assert float(sum(shares[:n]) + remainders) == pytest.approx(float(value.detach()), rel=1e-6)
    assert abs(float(shares[0])) > 1e-3


def test_without_biases_and_attention_words_take_all() -> None:
    network: Any = made("llama", 3)
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    value, found = relevance(network, 2)
    assert float(found.sum()) == pytest.approx(float(value), rel=1e-6)
    _, plain = relevance(network, 2, rules=False)
    assert float(plain.sum()) != pytest.approx(float(value), rel=0.1)


class Gated(nn.Module):
    """Words through two linear maps, between which one function stands."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 1)
        self.function = function
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.function(self.first(x)))
        return hidden.mean()


def of(network: nn.Module, rules: bool = True) -> Tensor:
    x = torch.linspace(-1, 2, 12).reshape(3, 4).requires_grad_(True)
    if not rules:
        return torch.autograd.grad(network(x), x)[0] * x
    with relevance_rules(network):
        return torch.autograd.grad(network(x), x)[0] * x


def test_of_a_linear_model_it_is_gradient_times_input() -> None:
    network = Gated(lambda x: torch.cat([x[:1], 3 * x[1:].flip(0) / 2 + 1]).reshape(5, 3).T)
    assert torch.equal(of(network), of(network, rules=False))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x.cumsum(0), "cumsum"),
        (lambda x: x.cumsum(0).masked_fill_(x > 1, 0.0), "cumsum"),
        (lambda x: x / (1 + x.abs()), "truediv|div"),
        (lambda x: x * x.sigmoid(), "sigmoid"),
        (lambda x: x.exp_(), "exp_"),
        (lambda x: x.max(0, keepdim=True).values, "max"),
        (lambda x: torch.einsum("ij,ij,ij->ij", x, x, x), "einsum"),
        (lambda x: (x + 0).mul_(x), "mul_"),
        (transformers.activations.LaplaceActivation(), "LaplaceActivation"),
    ],
)
def test_what_has_no_rule_is_refused(function: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        of(Gated(function))


def test_an_operation_that_no_relevance_passes_needs_no_rule() -> None:
    def function(x: Tensor) -> Tensor:
        assert torch.sigmoid(x).shape == x.shape
        empty = torch.zeros_like(x)
        empty[:] = x * (x.exp() + 1).detach()
        return empty

    network = Gated(function)
    assert torch.equal(of(network), of(network, rules=False))


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "tanh", "gelu_new", "quick_gelu", "mish"])
def test_an_activation_passes_its_relevance_on(name: str) -> None:
    """Also at 0, where the ratio is the slope; whether a module or a function."""
    network = Gated(transformers.activations.ACT2FN[name])
    with torch.no_grad():
        network.first.bias.zero_()
        network.second.bias.zero_()
    x = torch.linspace(-1, 2, 12).reshape(3, 4).requires_grad_(True)
    with relevance_rules(network):
        value = network(x)
        (gradient,) = torch.autograd.grad(value, x)
    assert float((gradient * x.detach()).sum()) == pytest.approx(float(value.detach()), rel=1e-5)
    nothing = torch.zeros(1, 4, requires_grad=True)
    with relevance_rules(network):
        (gradient,) = torch.autograd.grad(network(nothing), nothing)
    if name != "relu":
        (slope,) = torch.autograd.grad(network(nothing), nothing)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


def test_nothing_stays_changed() -> None:
    network = made("gpt2", n_inner=20)
    before = relevance(network, 0, rules=False)
    with pytest.raises(RuntimeError, match="stopped"), relevance_rules(network):
        raise RuntimeError("stopped")
    value, found = relevance(network, 0)
    after = relevance(network, 0, rules=False)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(found, after[1])
    assert float(value) == pytest.approx(float(after[0]), rel=1e-12)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    network.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="attention is computed by flash_attention_2"):
        relevance(network, 0)


PROMPT = Prompt("{text} it was {mask}", ("good", "bad"))
MODELS = [
    *((kind, "SequenceClassification", {"head": "checkpoint"}) for kind in ("bert", "roberta")),
    ("gpt2", "SequenceClassification", {"head": "checkpoint"}),
    ("bart", "", {"head": "random", "num_labels": 3}),
    ("bert", "MaskedLM", {"head": "label_words", "prompt": PROMPT}),
    ("bert", "QuestionAnswering", {"head": "span"}),
    ("llama", "CausalLM", {"head": "completion"}),
]


@pytest.mark.parametrize(("kind", "task", "fields"), MODELS)
def test_every_kind_of_model(
    memory: Any, saved: Any, text: pa.Table, kind: str, task: str, fields: dict[str, Any]
) -> None:
    """Scores of padded batches are those of each row alone, and not true gradients."""
    folder: Path = saved(kind, task)
    spec = ModelSpec(str(folder), **fields)
    queries = text.set_column(1, "role", pa.array(["query"] * text.num_rows)).sort_by("id")
    if fields["head"] == "span":
        queries = queries.set_column(3, "text_b", pa.array(["was it good"] * text.num_rows))
    elif fields["head"] == "completion":
        queries = queries.set_column(3, "text_b", pa.nulls(text.num_rows, pa.string()))
    tables = {"text": queries}
    if fields["head"] == "completion":
        chosen = {"query_id": [10, 60], "token_index": [9, 14], "token_id": [5, 6]}
        prefixes = [[0, *range(20, 28)], [0, *range(30, 43)]]
        tables["continuation"] = pa.table({**chosen, "token": ["x", "y"], "prefix": prefixes})
    inputs = memory(tables)
    found = inputs.run(AttnLrp(spec, token_budget=64))
    embedded = load_embedded(spec, inputs)
    explained = read_outputs(embedded, inputs, 64)
    wanted, plain = [], []
    for row in range(explained.n):
        one, target = np.array([row]), explained.targets.take(np.array([row]))
        batch = embedded.batch(explained.tokens, one)
        x = embedded.table[batch["input_ids"]].clone().requires_grad_(True)
        with relevance_rules(embedded.network):
            logits = embedded.choices(batch, target.distribution, x)
            (gradient,) = torch.autograd.grad(logits[0, target.choice[0]], x)
        logits = embedded.choices(batch, target.distribution, x)
        (true,) = torch.autograd.grad(logits[0, target.choice[0]], x)
        is_text = explained.offsets[row].is_text
        wanted.append((gradient * x.detach())[0].sum(1).numpy()[is_text])
        plain.append((true * x.detach())[0].sum(1).numpy()[is_text])
    scores = found["score"].to_numpy()
    np.testing.assert_allclose(scores, np.concatenate(wanted), rtol=1e-3, atol=1e-5)
    assert np.abs(scores - np.concatenate(plain)).max() > 1e-3 * np.abs(scores).max()
    assert set(inputs.written["explained"]["n_gradients"].to_pylist()) == {1}
