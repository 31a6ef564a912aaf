"""Variational layers and Laplace layers in one network.

The network is trained once, on E_q(v)[-log p(y | v, θ)] + KL(q(v) ‖ p(v)) - log p(θ) for variational weights v and
point weights θ; then the Laplace layers take the Gauss-Newton curvature of all rows at (E[v], θ*).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .assembly import LayerMethod
from .errors import InvalidInput
from .network import Network
from .steps import Optimizer
from .training import TrainingOptions

__all__ = ["PerLayer"]


@dataclass(frozen=True)
class PerLayer(LayerMethod):
    """One method for the hidden layers, another for the last.

    Args:
        hidden: ``Variational()`` or ``Laplace()``.
        last: ``Variational()`` or ``Laplace()``.

    Raises:
        InvalidInput: another method, or two different trainings: one network is trained once.
    """

    hidden: Any
    last: Any
    training: TrainingOptions = field(init=False)
    optimizer: Optimizer | str = field(init=False)
    initial_curvature: float | None = field(init=False)

    def __post_init__(self) -> None:
        for name in ("hidden", "last"):
            if not hasattr(getattr(self, name), "training"):
                raise InvalidInput(f"PerLayer.{name} must be Variational() or Laplace(), got {getattr(self, name)!r}")
        if self.hidden.training != self.last.training:
            raise InvalidInput(
                "PerLayer trains one network once: give hidden and last the same training, "
                f"got {self.hidden.training} and {self.last.training}"
            )
        parts = (self.hidden, self.last)
        variational = [part for part in parts if getattr(part, "initial_deviation", None) is not None] or parts
        for name in ("optimizer", "initial_curvature"):
            first, last = getattr(variational[0], name), getattr(variational[-1], name)
            if first != last:
                raise InvalidInput(
                    f"PerLayer trains one network once: hidden and last differ in {name}, {first}, {last}"
                )
            object.__setattr__(self, name, first)
        object.__setattr__(self, "training", self.hidden.training)

    def with_training(self, training: TrainingOptions) -> PerLayer:
        return PerLayer(self.hidden.with_training(training), self.last.with_training(training))

    def deviations(self, network: Network) -> list[float | None]:
        """Those of ``hidden``, and of ``last`` for the last Bayesian layer."""
        methods = network.layer_methods
        last = max(index for index, method in enumerate(methods) if method is not None)
        parts = [
            self.last if index == last else self.hidden if method else None for index, method in enumerate(methods)
        ]
        return [getattr(part, "initial_deviation", None) for part in parts]
