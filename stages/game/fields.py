"""The configuration fields of a game: kernel, ridge, engine and utilities of a coalition."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from stages.game.utility import Utility
from stages.game.utility import check_fields as check_utilities
from stages.stage import Size, Work
from stages.surrogate.default_kernel import NTK, default_kernel
from stages.surrogate.labelled_kernel import Ridge, check_ridge

Engine = Literal["auto", "prefix_cholesky", "least_squares"]
Precision = Literal["auto", "float32", "float64"]

DIRECTIONS = 512
"""What `directions: auto` takes for two classes, and twice as many for more: measured in
`scripts/benchmarks/short_features.md`."""
KERNEL_EXAMPLES = 5_000
"""Most examples for which `engine: auto` holds their kernel, 8 n^2 bytes."""


def n_directions(n_classes: int) -> int:
    """The directions that are enough for so many classes."""
    return DIRECTIONS if n_classes <= 2 else 2 * DIRECTIONS


@dataclass(frozen=True)
class FeatureFields:
    """The fields that say which features a regression is fitted on, and with which ridge."""

    kernel: tuple[str, ...] = ()
    """Feature tables; with several, their kernels' mean. By default the NTK, for more than 5,000
    examples the hidden states of all layers. For the utility loss: [gradient]."""
    normalize: bool | None = None
    """Scale every feature vector to unit length, which the paper does not. By default so, but not
    for the utility loss, where the lengths of gradients are part of the game."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal, the same for every subset; `auto` takes the least
    leave-one-out error on the labels of 2,048 examples at most, and 1 for the utility loss. The
    paper has 1e-6, absolute."""
    directions: int | Literal["auto"] | None = "auto"
    """Leading directions of the features that are taken, null for the features as they are; `auto`
    takes 512 for more than 5,000 examples of two classes, 1,024 for more classes."""
    short: str = "short_features"
    """Instance of `short_features`, with the features along these directions."""

    def sized(self, size: Size) -> Any:
        """The features, and their directions, for so many examples."""
        kernel = self.kernel or self._kernel(size)
        directions = self.directions
        if directions == "auto":
            directions = self._directions(kernel, size)
        return replace(self, kernel=kernel, directions=directions)

    def _kernel(self, size: Size) -> tuple[str, ...]:
        """The feature tables for so many examples, where none are named."""
        return default_kernel(size)

    def _is_few(self, size: Size) -> bool:
        """Whether the features are taken as they are."""
        return size.first_examples <= KERNEL_EXAMPLES

    def _directions(self, kernel: tuple[str, ...], size: Size) -> int | None:
        """What `directions: auto` means for so many examples; see `directions`."""
        wanted = n_directions(size.n_classes)
        is_short = len(kernel) == 1 and size.lengths.get(kernel[0], wanted + 1) <= wanted
        # Short features of several tables are of unit length alone.
        is_scaled_by_table = len(kernel) > 1 and not self.is_unit
        return None if is_short or self._is_few(size) or is_scaled_by_table else wanted

    def n_numbers(self, work: Work) -> int:
        """Numbers of a feature vector that a fit is made on."""
        n = max(1, work.dim)
        return min(n, self.directions) if isinstance(self.directions, int) else n

    @property
    def features(self) -> tuple[str, ...]:
        """The feature tables that a fit is made on."""
        return (self.short,) if isinstance(self.directions, int) else self.kernel or NTK

    @property
    def is_unit(self) -> bool:
        """Whether feature vectors are scaled to unit length."""
        return self.normalize is not False

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and their short form, and labels."""
        short = self.features if isinstance(self.directions, int) else ()
        return (*(self.kernel or NTK), *short, "label")

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Short features of the kernel."""
        fields = {"normalize": self.is_unit, "dim": self.directions}
        return {self.short: {"kernel": list(self.kernel or NTK), **fields}}

    @property
    def outside_key(self) -> frozenset[str]:
        """The directions, which the key of the features that are read says."""
        return frozenset({"directions", "short"})


@dataclass(frozen=True)
class GameFields(FeatureFields):
    """The fields that define the game: which regression is fitted on a coalition, which utility."""

    engine: Engine = "auto"
    """`prefix_cholesky` holds the kernel of all examples, `least_squares` matrices of the features;
    `auto` takes the first for up to 5,000 examples."""
    precision: Precision = "auto"
    """Of `least_squares`: `auto` is float32 where the ridge is at least 0.01, for accuracy 1."""
    utilities: tuple[Utility, ...] = ("accuracy", "cross_entropy")
    """Utilities of a coalition; values of all of them are computed from the same coalitions. For
    corpora without classes, such as completions: [loss], with kernel: [gradient]."""
    temperature: float = 1.0
    """Divides the outputs before the softmax of `cross_entropy`. The paper feeds them raw: 1."""
    target: Literal["one", "loss"] = "one"
    """Of the utility loss: what the regression on the gradients predicts for an example."""

    by_query: ClassVar[bool] = False
    """Whether the utility of a coalition is one number per query instead of their mean."""

    def engine_for(self, n_examples: int) -> Literal["prefix_cholesky", "least_squares"]:
        """The engine for a game of `n_examples` players: `engine`, or what `auto` chooses."""
        if self.engine == "auto":
            return "prefix_cholesky" if n_examples <= KERNEL_EXAMPLES else "least_squares"
        return self.engine

    def how(self, n_examples: int) -> str:
        """The engine for a game of `n_examples` players and why, for `Cost.note`."""
        is_dense = self.engine_for(n_examples) == "prefix_cholesky"
        name = "prefix Cholesky" if is_dense else "recursive least squares"
        if self.engine != "auto":
            return f"{name}: as `engine` says"
        return f"{name}: {'at most' if is_dense else 'more than'} {KERNEL_EXAMPLES:,} examples"

    def is_linear(self, n_classes: int) -> bool:
        """Whether utilities are linear in the outputs, so that one mean query stands for all."""
        return self.utilities == ("loss",) or (self.utilities == ("margin",) and n_classes == 2)

    def n_judged(self, work: Work) -> int:
        """Numbers that the regression on one coalition predicts: queries x outputs per query."""
        if self.is_linear(work.n_classes) and not self.by_query:
            return 1
        return max(1, work.n_queries * (1 if work.n_classes <= 2 else work.n_classes))

    def check_game(self) -> None:
        """Refuses fields that define no game.

        Raises:
            ConfigError: a field is empty, negative, or not a number that can be used.
        """
        check_ridge(self.ridge)
        check_utilities(self.utilities, self.temperature)

    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("regression", "completion"), "`kernel: [gradient], utilities: [loss]`"
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of corpora whose examples can be valued; those without classes by `loss` alone."""
        if self.utilities == ("loss",):
            return ("classification", "regression", "completion")
        return ("classification",)

    def _kernel(self, size: Size) -> tuple[str, ...]:
        """The feature tables for so many examples, where none are named."""
        return NTK if self.utilities == ("loss",) else default_kernel(size)

    def _is_few(self, size: Size) -> bool:
        """Whether the game is played on the features as they are."""
        return super()._is_few(size) or self.engine == "prefix_cholesky"

    @property
    def is_unit(self) -> bool:
        """Whether feature vectors are scaled to unit length."""
        return self.normalize if self.normalize is not None else self.utilities != ("loss",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and their short form, labels, with `target: loss` examples' losses."""
        return (*super().reads, *(("diagnostics",) if self.target == "loss" else ()))
