"""Several kinds of feedback on one network: which outputs each observes, and how items are compared.

A kind is an observation model of some of the network's outputs. It sees the network through a :class:`View`, so that
its likelihood, the filter step and the structures are what they are for a single kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine
from .errors import InvalidInput
from .factors import Factor, SharedFactors
from .likelihoods import BradleyTerry, Categorical, Likelihood
from .network import Directions, Network, Weights
from .priors import NormalPrior
from .structures import Structure

__all__ = ["Choice", "Kind", "Place", "View", "view_of"]


@dataclass(frozen=True)
class Choice:
    """Chosen among those that were shown: p(i) = exp(u_i) / Σ_shown exp(u), of one utility u (McFadden 1974).

    A row holds the inputs of all items, one after the other; the target is the place of the chosen one, from 0.
    """

    num_outputs = 1


@dataclass(frozen=True)
class Kind:
    """One kind of feedback.

    Args:
        likelihood: the observation model; ``BradleyTerry`` and :class:`Choice` compare items by an output, the utility.
        outputs: indices of the network's outputs that it observes; None for the first ones.

    Raises:
        InvalidInput: not an observation model, or not as many outputs as it takes.
    """

    likelihood: Likelihood | Choice
    outputs: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood | Choice):
            raise InvalidInput(f"Kind.likelihood must be a likelihood or Choice(), got {self.likelihood!r}")
        size = self.likelihood.num_outputs
        given = range(size) if self.outputs is None else self.outputs
        outputs: tuple[int, ...] = (given,) if isinstance(given, int) else tuple(given)
        valid = all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in outputs)
        if not valid or len(set(outputs)) != len(outputs) or len(outputs) != size:
            raise InvalidInput(f"Kind.outputs must name {size} different outputs for {self.likelihood}, got {outputs}")
        object.__setattr__(self, "outputs", outputs)

    @property
    def columns(self) -> tuple[int, ...]:
        """The outputs, one by one."""
        assert isinstance(self.outputs, tuple)
        return self.outputs

    @property
    def compares_items(self) -> bool:
        """Whether a row holds several items."""
        return isinstance(self.likelihood, BradleyTerry | Choice)

    def items_of(self, width: int, num_inputs: int) -> int:
        """How many items a row of ``width`` numbers holds.

        Raises:
            InvalidInput: not a number that the kind takes.
        """
        items, rest = divmod(width, num_inputs)
        if isinstance(self.likelihood, BradleyTerry):
            expected, fits = f"two items of {num_inputs} inputs", items == 2
        elif isinstance(self.likelihood, Choice):
            expected, fits = f"at least two items of {num_inputs} inputs", items >= 2
        else:
            expected, fits = f"{num_inputs} inputs", items == 1
        if rest or not fits:
            raise InvalidInput(f"x must hold {expected} in each row, got {width} numbers")
        return items

    @property
    def stateful(self) -> Likelihood:
        """What holds the kind's learned state, whatever the number of items."""
        return self.model_of(2)

    def model_of(self, items: int) -> Likelihood:
        """The observation model of rows of so many items."""
        return Categorical(items) if isinstance(self.likelihood, Choice) else self.likelihood


@dataclass(frozen=True)
class Place:
    """Where one kind's state stands among those of all kinds.

    The weights' posterior is held at the first kind's dispersion φ₁. A kind of dispersion φ sees their unit-dispersion
    covariance φ₁/φ times as large.

    Attributes:
        index: of the kind.
        likelihood: of the kind.
        first: likelihood of the first kind.
    """

    index: int
    likelihood: Likelihood
    first: Likelihood

    def state(self, states: tuple[Any, ...]) -> Any:
        """The kind's own."""
        return states[self.index]

    def replaced(self, states: tuple[Any, ...], state: Any) -> tuple[Any, ...]:
        """All states, with another one of this kind."""
        return (*states[: self.index], state, *states[self.index + 1 :])

    def relative_dispersion(self, states: tuple[Any, ...]) -> Any:
        """φ₁/φ; None where neither is learned."""
        of_weights, own = self.first.dispersion(states[0]), self.likelihood.dispersion(self.state(states))
        if self.index == 0 or not (hasattr(of_weights, "shape") or hasattr(own, "shape")):
            return None
        return of_weights / own


@dataclass(frozen=True)
class View(Network):
    """Some outputs of a network, or one output of several items side by side.

    Args:
        network: of which.
        num_outputs: that it has.
        outputs: the ones that are seen; a single one where there are several items.
        items: how many inputs of the network a row holds.
        difference: whether the output is that of the first item minus that of the second.
    """

    network: Network
    num_outputs: int
    outputs: tuple[int, ...]
    items: int = 1
    difference: bool = False

    # -- what the network is --------------------------------------------------------------------------------------
    @property
    def engine_name(self) -> str | None:  # type: ignore[override]
        return self.network.engine_name

    @property
    def standardize_by_default(self) -> bool:  # type: ignore[override]
        return self.network.standardize_by_default

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        return self.network.input_shape

    @property
    def num_tokens(self) -> int | None:
        return self.network.num_tokens

    @property
    def num_layers(self) -> int:
        return self.network.num_layers

    @property
    def layer_methods(self) -> tuple[str | None, ...]:
        return self.network.layer_methods

    def shapes(self, num_inputs: int, num_outputs: int) -> tuple[tuple[int, ...], ...]:
        """Of the whole network."""
        return self.network.shapes(num_inputs, self.num_outputs)

    def initialise(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """Of the whole network."""
        return self.network.initialise(num_inputs, self.num_outputs, seed)

    def restart(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """Of the whole network."""
        return self.network.restart(num_inputs, self.num_outputs, seed)

    def prior_precision(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> tuple[np.ndarray, ...]:
        """Of the whole network."""
        return self.network.prior_precision(prior, num_inputs, self.num_outputs)

    def check_prior(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> None:
        """Of the whole network."""
        self.network.check_prior(prior, num_inputs, self.num_outputs)

    def default_structure(self) -> Structure:
        return self.network.default_structure()

    def resolve(self, structure: Structure) -> Structure:
        return self.network.resolve(structure)

    # -- what is seen of it ---------------------------------------------------------------------------------------
    def _selector(self, engine: Engine, like: Array) -> Float[Array, "K_all K"]:
        return engine.constant(np.eye(self.num_outputs)[:, list(self.outputs)], like)

    def _contrast(self, engine: Engine, like: Array) -> Float[Array, "S K"]:
        return engine.constant(np.array([[1.0], [-1.0]]) if self.difference else np.eye(self.items), like)

    def _each(self, engine: Engine, x: Float[Array, "N S*I"]) -> Float[Array, "N*S I"]:
        return x if self.items == 1 else engine.xp.reshape(x, (x.shape[0] * self.items, -1))

    def _seen(self, engine: Engine, outputs: Float[Array, "*B N*S K_all"]) -> Float[Array, "*B N K"]:
        seen = outputs @ self._selector(engine, outputs)
        if self.items == 1:
            return seen
        utilities = engine.xp.reshape(seen, (*seen.shape[:-2], -1, self.items))
        return utilities @ self._contrast(engine, outputs)

    def apply(self, engine: Engine, weights: Weights, x: Float[Array, "N S*I"]) -> Float[Array, "*B N K"]:
        return self._seen(engine, self.network.apply(engine, weights, self._each(engine, x)))

    def noise_shapes(self, num_rows: int, weights: Weights) -> tuple[tuple[int, ...], ...]:
        return self.network.noise_shapes(num_rows, weights)

    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        variances: Sequence[Array | None],
        x: Float[Array, "N I"],
        noise: Sequence[Array | None],
    ) -> Float[Array, "N K"]:
        """See :meth:`~.network.Network.apply_with_noise`; raises :class:`InvalidInput` for several items."""
        if self.items > 1:
            raise InvalidInput("weights with noise of their own are for kinds of feedback on single items")
        return self._seen(engine, self.network.apply_with_noise(engine, weights, variances, x, noise))

    def factors(
        self,
        engine: Engine,
        weights: Weights,
        x: Float[Array, "N S*I"],
        directions: Directions | None = None,
        needed: Sequence[bool] | None = None,
    ) -> tuple[Float[Array, "N K"], tuple[Any, ...]]:
        """See :meth:`~.network.Network.factors`; what several items bring is one sum over them."""

        def selected(outputs: Array) -> Array:
            selector = self._selector(engine, outputs)
            chosen = selector if directions is None or self.items > 1 else selector @ directions(outputs @ selector)
            return engine.xp.broadcast_to(chosen, (outputs.shape[0], *chosen.shape[-2:]))

        outputs, factors = self.network.factors(engine, weights, self._each(engine, x), selected, needed)
        seen = self._seen(engine, outputs)
        if self.items == 1:
            return seen, factors
        joined = tuple(None if factor is None else self._joined(engine, factor) for factor in factors)
        if directions is not None:
            chosen = directions(seen)
            joined = tuple(None if factor is None else factor.left_multiply(chosen) for factor in joined)
        return seen, joined

    def _joined(self, engine: Engine, factor: Factor) -> SharedFactors:
        """Of N·S items with one output each, as positions of N rows with the outputs that the contrast makes."""
        xp = engine.xp
        shared = isinstance(factor, SharedFactors)
        inputs = factor.inputs if shared else factor.inputs[:, None]
        rows = factor.rows if shared else factor.rows[:, :, None]
        positions, width = inputs.shape[1], rows.shape[3]
        each = xp.reshape(rows, (-1, 1, self.items, positions, width))
        contrast = self._contrast(engine, rows).mT[None, :, :, None, None]
        joined = xp.reshape(each * contrast, (each.shape[0], -1, self.items * positions, width))
        return SharedFactors(xp.reshape(inputs, (-1, self.items * positions, inputs.shape[2])), joined)


def view_of(network: Network, kind: Kind, num_outputs: int, items: int = 1) -> Network:
    """The network as a kind sees it; the network itself where that is all of it."""
    if items == 1 and kind.columns == tuple(range(num_outputs)):
        return network
    return View(network, num_outputs, kind.columns, items, isinstance(kind.likelihood, BradleyTerry))
