"""Variational layers and Laplace layers in one network.

The network is trained once, on E_q(v)[-log p(y | v, θ)] + KL(q(v) ‖ p(v)) - log p(θ) for variational weights v and
point weights θ; then the Laplace layers take the Gauss-Newton curvature of all rows at (E[v], θ*).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .assembly import LayerMethod
from .errors import InvalidInput
from .steps import Optimiser
from .training import TrainingOptions
from .variational import Variational

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
    optimiser: Optimiser = field(init=False)
    initial_curvature: float = field(init=False)

    def __post_init__(self) -> None:
        for name in ("hidden", "last"):
            if not hasattr(getattr(self, name), "training"):
                raise InvalidInput(f"PerLayer.{name} must be Variational() or Laplace(), got {getattr(self, name)!r}")
        if self.hidden.training != self.last.training:
            raise InvalidInput(
                "PerLayer trains one network once: give hidden and last the same training, "
                f"got {self.hidden.training} and {self.last.training}"
            )
        variational = [part for part in (self.hidden, self.last) if isinstance(part, Variational)] or [Variational()]
        for name in ("optimiser", "initial_curvature"):
            first, last = getattr(variational[0], name), getattr(variational[-1], name)
            if first != last:
                raise InvalidInput(
                    f"PerLayer trains one network once: hidden and last differ in {name}, {first}, {last}"
                )
            object.__setattr__(self, name, first)
        object.__setattr__(self, "training", self.hidden.training)

    def deviations(self, num_layers: int) -> list[float | None]:
        """Those of ``hidden``, and of ``last`` for the last layer."""
        parts = [self.hidden] * (num_layers - 1) + [self.last]
        return [getattr(part, "initial_deviation", None) for part in parts]
