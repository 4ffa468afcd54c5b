import torch
from torch import Tensor

from stages.model.networks import LogLikelihood


def by_autograd(logits: Tensor, words: Tensor) -> Tensor:
    chosen = logits.gather(-1, words.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def test_log_likelihoods_are_those_of_the_softmax_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = 6 * torch.randn(5, 7, 301, generator=generator)
    words = torch.randint(301, (5, 7), generator=generator)
    slopes = torch.randn(5, 7, generator=generator)
    results = []
    for function in (by_autograd, lambda *inputs: LogLikelihood.apply(*inputs)[0]):
        logits = drawn.clone().requires_grad_()
        each = function(logits, words)
        (gradient,) = torch.autograd.grad(each, logits, slopes)
        results.append((each.detach(), gradient))
    (expected, expected_gradient), (found, gradient) = results
    assert found.equal(expected)
    assert gradient.equal(expected_gradient)
    torch.testing.assert_close(
        found, drawn.log_softmax(-1)[torch.arange(5)[:, None], torch.arange(7), words]
    )
