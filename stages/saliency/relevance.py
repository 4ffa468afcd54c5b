"""The backward rules of layer-wise relevance propagation for transformers, AttnLRP.

Within `relevance_rules` a backward pass gives other gradients than the true ones: times the input,
they are the relevances of that input. Values of the forward pass are as always.

| operation | rule | what a gradient becomes |
|---|---|---|
| linear maps, sums, means, choices of elements | epsilon, with epsilon 0 | the true one |
| a product of two parts that both depend on the input (attention, gates) | uniform | half of it |
| softmax | Taylor | the true one |
| GELU, SiLU, ReLU, tanh and their like | identity | output / input, held constant |
| LayerNorm, RMSNorm | identity | that of a constant standard deviation |

Relevances add up to the output but for what constants take (biases, positions) and for what the
Taylor rule leaves at a softmax. Whatever has no rule is computed, and refused if a gradient passes
through it.

Operations are recognised while they are called, so that nothing of a model or library is replaced:
by functions of torch, and the activations of transformers as modules. A kernel that is no function
of torch would not be seen; so attention must be `eager` or `sdpa`.

Source: Achtibat et al. 2024, arXiv:2402.05602 (equation 7: uniform, equation 9: identity), as
changed gradients as in Arras et al. 2025, arXiv:2502.15886.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.stage import ConfigError, ModelError

TRUE_GRADIENT = frozenset(
    {
        *("add", "add_", "__add__", "__radd__", "__iadd__", "cat", "concat", "mean", "neg"),
        *("__neg__", "rsub", "__rsub__", "softmax", "stack", "sub", "sub_", "__sub__"),
        *("__isub__", "sum", "__get__", "__getitem__", "__setitem__", "chunk", "clone"),
        *("contiguous", "copy_", "detach", "diagonal", "double", "dropout", "embedding"),
        *("expand", "expand_as", "flatten", "flip", "float", "gather", "grad", "index_select"),
        *("masked_fill", "masked_fill_", "movedim", "narrow", "pad", "permute", "repeat"),
        *("repeat_interleave", "requires_grad_", "reshape", "roll", "select", "split", "squeeze"),
        *("swapaxes", "swapdims", "t", "take_along_dim", "to", "transpose", "tril", "triu"),
        *("type", "type_as", "unbind", "unflatten", "unsqueeze", "view", "view_as", "where"),
    }
)
"""Functions of torch that are linear in what they move, and softmax; by name."""
FACTORS = {
    **dict.fromkeys(("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"), (0, 1)),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm", "linear", "conv1d"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
}
"""Products: the places of their two factors among the arguments; that of `einsum`, too, of two."""
QUOTIENTS = frozenset({"div", "div_", "__truediv__", "__itruediv__", "divide"})
ACTIVATIONS = frozenset({"gelu", "silu", "relu", "leaky_relu", "elu", "mish", "tanh"})
"""Functions of one element, 0 at 0."""
ROOTS = frozenset({"rsqrt", "sqrt"})
"""What a normalisation divides by: a constant for gradients."""
SMALL = 1e-6
"""Where the ratio output / input of an activation is taken for an input of 0."""


@contextmanager
def relevance_rules(network: nn.Module) -> Iterator[None]:
    """Backward passes of what `network` computes within this context propagate relevance.

    It holds for this thread, and for a network whose weights are frozen: a weight that requires a
    gradient would count as a part of the input. Afterwards the network is as it was.

    Raises:
        ConfigError: attention is computed by a kernel that these rules do not see.
        ModelError: an operation without a rule lies between the input and the output.
    """
    _refuse_kernels(network)
    with ExitStack() as stack:
        for module in network.modules():
            if type(module).__module__ == "transformers.activations":
                for hook in _as_identity(module):
                    stack.callback(hook.remove)
        stack.enter_context(_Rules())
        yield


class _Rules(TorchFunctionMode):
    """Applies the rules to the functions of torch that are called while it is entered."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        moving = list(_moving([*args, *kwargs.values()])) if torch.is_grad_enabled() else []
        if not moving or name in TRUE_GRADIENT:
            return func(*args, **kwargs)
        if name in FACTORS and len(args) > FACTORS[name][1]:
            return _product(func, args, kwargs, FACTORS[name])
        if name == "einsum" and len(args) == 3:
            return _product(func, args, kwargs, (1, 2))
        if name in QUOTIENTS and len(args) > 1 and not _moves(args[1]):
            return func(*args, **kwargs)
        if name in ROOTS:
            return func(*args, **kwargs).detach()
        if name in ACTIVATIONS and args and len(moving) == 1 and moving[0] is args[0]:
            return _identity(lambda x: func(x, *args[1:], **kwargs), args[0])
        if name in NORMS:
            return NORMS[name](*args, **kwargs)
        if name == "scaled_dot_product_attention" and len(args) > 2:
            if not list(_moving([*args[3:], *kwargs.values()])):
                return func(*_attention_factors(*args[:3]), *args[3:], **kwargs)
        return _refused(func, name, args, kwargs, moving)


class _Replaced(torch.autograd.Function):
    """The value `y`, through which a gradient passes to `x` multiplied by `factor`."""

    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor, factor: Tensor | float) -> Tensor:
        context.factor = factor
        return y.view_as(y)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * context.factor, None, None


class _Refusing(torch.autograd.Function):
    """The value `y` of an operation without a rule, which no gradient may pass."""

    @staticmethod
    def forward(context: Any, name: str, y: Tensor, *sources: Tensor) -> Tensor:
        context.operation = name
        return y.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise _without_rule(context.operation)


def _scaled(x: Any, factor: float) -> Any:
    """`x`, whose gradient is multiplied by `factor`."""
    return _Replaced.apply(x, x.detach(), factor) if _moves(x) and factor != 1 else x  # type: ignore[no-untyped-call]


def _product(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], places: tuple[int, int]
) -> Any:
    """The uniform rule: of two factors that move, each takes half of the relevance."""
    if not all(_moves(args[place]) for place in places):
        return func(*args, **kwargs)
    if func.__name__ in ("mul_", "__imul__"):
        raise _without_rule(func.__name__)
    halved = [_scaled(arg, 0.5) if place in places else arg for place, arg in enumerate(args)]
    return func(*halved, **kwargs)


def _attention_factors(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value with the uniform rule of both products of attention."""
    scores_move = _moves(query) or _moves(key)
    of_scores = 0.5 if scores_move and _moves(value) else 1.0
    of_each = of_scores * (0.5 if _moves(query) and _moves(key) else 1.0)
    return (
        _scaled(query, of_each),
        _scaled(key, of_each),
        _scaled(value, 0.5 if scores_move else 1.0),
    )


def _identity(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The identity rule: an activation's gradient is its output by its input."""
    with torch.no_grad():
        y = function(x.detach().clone())
        limit = function(x.new_full((1,), SMALL)) / SMALL
        factor = torch.where(x == 0, limit, y / x)
    return _Replaced.apply(x, y, factor)  # type: ignore[no-any-return,no-untyped-call]


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """LayerNorm whose standard deviation is constant for gradients."""
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    deviation = (centred.detach().square().mean(dims, keepdim=True) + eps).sqrt()
    scaled = centred / deviation
    scaled = scaled * weight if weight is not None else scaled
    return scaled + bias if bias is not None else scaled


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMSNorm whose root mean square is constant for gradients."""
    dims = tuple(range(-len(shape), 0))
    added = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = x * (x.detach().square().mean(dims, keepdim=True) + added).rsqrt()
    return scaled * weight if weight is not None else scaled


NORMS: dict[str, Callable[..., Tensor]] = {"layer_norm": _layer_norm, "rms_norm": _rms_norm}


def _as_identity(activation: nn.Module) -> Iterable[Any]:
    """Hooks by which a module of one function of an element follows the identity rule.

    Inside it the input is constant, so that none of its own operations needs a rule.
    """
    inputs: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(args[0])
        return (args[0].detach(), *args[1:])

    def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs.pop()
        if not _moves(x):
            return output
        at_zero, limit = module.forward(x.new_tensor([0.0, SMALL])).tolist()
        if at_zero != 0:
            raise _without_rule(type(module).__name__)
        with torch.no_grad():
            factor = torch.where(x == 0, limit / SMALL, output / x)
        return _Replaced.apply(x, output, factor)  # type: ignore[no-any-return,no-untyped-call]

    yield activation.register_forward_pre_hook(enter)
    yield activation.register_forward_hook(leave)


def _refused(
    func: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    moving: list[Tensor],
) -> Any:
    """The result of an operation without a rule; numbers that depend on the input refuse gradients.

    Others, such as sizes, comparisons and zeros, are constants.
    """
    result = func(*args, **kwargs)
    if any(result is tensor for tensor in moving):
        raise _without_rule(name)

    def refusing(value: Any) -> Any:
        return _Refusing.apply(name, value.detach(), *moving) if _moves(value) else value  # type: ignore[no-untyped-call]

    if isinstance(result, tuple | list) and any(map(_moves, result)):
        return type(result)([refusing(value) for value in result])
    return refusing(result)


def _without_rule(name: str) -> ModelError:
    return ModelError(
        f"attn_lrp: found the operation {name} between the words and the explained output, "
        "expected operations that have a rule of relevance: linear maps, products, softmax, "
        "LayerNorm, RMSNorm, and activations that are 0 at 0. Use ig for this model."
    )


def _refuse_kernels(network: nn.Module) -> None:
    for module in network.modules():
        kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if kernel not in (None, "eager", "sdpa"):
            raise ConfigError(
                f"attn_lrp: found a model whose attention is computed by {kernel}, expected eager "
                "or sdpa, whose products have a rule. Use ig for this model."
            )


def _moves(value: Any) -> bool:
    """Whether this is a tensor that depends on the explained input."""
    return isinstance(value, Tensor) and value.requires_grad


def _moving(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that depend on the explained input, among arguments and lists of them."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _moving(value)
        elif _moves(value):
            yield value
