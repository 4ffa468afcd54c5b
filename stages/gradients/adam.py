"""The step that Adam would take on one row, from the moments that a checkpoint was left with.

With g the gradient of a row's loss at a checkpoint, and m, v the moments that Adam had there after
t steps, the next step on this row alone would move the weights by minus the learning rate times

    Gamma(g) = m' / (sqrt(v') + eps),
    m' = (beta1 m + (1 - beta1) g) / (1 - beta1^(t+1)),
    v' = (beta2 v + (1 - beta2) g^2) / (1 - beta2^(t+1)),

number by number: a row whose gradient is large where gradients are always large moves little. No
decay of weights and no cut to a longest gradient is part of it.

Source: LESS, Xia et al. 2024, arXiv:2402.04333, section 3.1. There eps is inside the root, and its
exponents of beta are t; here all is as in `torch.optim.Adam` and AdamW, Kingma and Ba 2015,
arXiv:1412.6980, algorithm 1.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stages.model.hub import adapter_folder, resolve
from stages.model.layers import transposes
from stages.model.spec import ModelSpec
from stages.stage import ModelError

FILE = "optimizer.pt"
"""The file in which the Trainer of transformers saves what its optimiser knows."""
FIRST, SECOND = "exp_avg", "exp_avg_sq"


class Moments(NamedTuple):
    """What Adam knows of one weight; matrices are (outputs, inputs) as blocks of gradients are."""

    first: Float[Tensor, "outputs inputs"]
    second: Float[Tensor, "outputs inputs"]
    n_steps: int
    """Steps taken so far."""
    betas: tuple[float, float]
    eps: float

    def step(
        self, gradients: Float[Tensor, "rows outputs inputs"]
    ) -> Float[Tensor, "rows outputs inputs"]:
        """Gamma of each row's gradient of this weight; the memory of `gradients` is used up."""
        (first, second), at = self.betas, self.n_steps + 1
        root = gradients.square().mul_(1 - second).add_(self.second, alpha=second)
        root.div_(1 - second**at).sqrt_().add_(self.eps)
        mean = gradients.mul_(1 - first).add_(self.first, alpha=first).div_(1 - first**at)
        return mean.div_(root)


def moments_file(model: ModelSpec) -> Path:
    """The file with the moments of a checkpoint: beside its adapter, or else its weights.

    Raises:
        ModelError: there is none.
    """
    folder = resolve(model) if model.adapter is None else adapter_folder(model.adapter)
    if not (folder / FILE).is_file():
        raise ModelError(
            f"{folder}: found no {FILE}, expected the moments of Adam, which a Trainer saves with "
            "a checkpoint (save_only_model: false). Name such a checkpoint in model.adapter or "
            "model.path, or leave adam_step out."
        )
    return folder / FILE


def read_moments(
    path: Path, network: nn.Module, layers: Mapping[str, nn.Module], device: str
) -> dict[int, Moments]:
    """The moments of the layers' weights, by the id of the weight, in float32.

    The file names no weights: it holds them in the order in which the Trainer gave them to its
    optimiser, those that decay first. All adapters of the network were trained, or, where it has
    none, all of its weights; the sizes of every one of them are compared.

    Raises:
        ModelError: the file holds something else.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    found: dict[int, Moments] = {}
    groups = _groups(network)
    given = [group for group in saved.get("param_groups", []) if group["params"]]
    if [len(group["params"]) for group in given] != [len(group) for group in groups]:
        raise _refused(
            path,
            f"{sum(len(group['params']) for group in given)} weights in {len(given)} groups",
            f"the {sum(map(len, groups))} that are trained in {len(groups)}",
        )
    wanted = {id(layer.weight): transposes(layer) for layer in layers.values()}
    for group, weights in zip(given, groups, strict=True):
        for number, weight in zip(group["params"], weights, strict=True):
            own = saved["state"].get(number, {})
            if not {FIRST, SECOND, "step"} <= set(own) or group.get("amsgrad"):
                raise _refused(
                    path, ", ".join(map(str, own)) or "nothing", f"{FIRST}, {SECOND} and step"
                )
            if own[FIRST].shape != weight.shape:
                raise _refused(
                    path, f"a weight of {tuple(own[FIRST].shape)}", str(tuple(weight.shape))
                )
            if id(weight) in wanted:
                first, second = (
                    (moment.T if wanted[id(weight)] else moment).to(device, torch.float32)
                    for moment in (own[FIRST], own[SECOND])
                )
                found[id(weight)] = Moments(
                    first, second, int(own["step"]), tuple(group["betas"]), float(group["eps"])
                )
    if set(found) != set(wanted):
        raise _refused(path, f"{len(found)} of the layers that gradients are of", str(len(wanted)))
    return found


def _groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """The trained weights in the order of the Trainer: those that decay, then the others."""
    # Imported here: it takes seconds, which other gradients are spared.
    from transformers import Trainer

    named: Iterable[tuple[str, nn.Parameter]] = list(network.named_parameters())
    adapters = [(name, weight) for name, weight in named if ".lora_" in name]
    decaying = set(Trainer.get_decay_parameter_names(None, network))
    groups: list[list[nn.Parameter]] = [[], []]
    for name, weight in adapters or named:
        groups[name not in decaying].append(weight)
    return [group for group in groups if group]


def _refused(path: Path, found: str, expected: str) -> ModelError:
    return ModelError(
        f"{path}: found {found}, expected {expected}: what Adam or AdamW knows of all adapters or, "
        "without adapters, of all weights of the model. Name a checkpoint that was trained so, or "
        "leave adam_step out."
    )
