"""Comparisons of two inputs by one network: the difference of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from .engines.base import Array, Engine
from .errors import InvalidInput
from .factors import LayerFactors, SharedFactors
from .network import ACTIVATIONS, MLP, Weights, dense

__all__ = ["PairwiseMLP"]


@dataclass(frozen=True)
class PairwiseMLP(MLP):
    """f(first) - f(second) for a multi-layer perceptron f, where a row is a pair: both inputs, one after the other.

    A row of a single input gives f itself, the utility; it is known up to a constant only, since no comparison tells of
    the last layer's bias.

    Args:
        hidden: see :class:`~.network.MLP`.
        activation: see :class:`~.network.MLP`.
    """

    inputs_per_row = 2

    def shapes(self, num_inputs: int, num_outputs: int) -> tuple[tuple[int, int], ...]:
        """Shapes of f's weights, for pairs of ``num_inputs`` numbers.

        Raises:
            InvalidInput: an odd number.
        """
        if num_inputs % 2:
            raise InvalidInput(f"X must hold pairs, an even number of columns, got {num_inputs}")
        return super().shapes(num_inputs // 2, num_outputs)

    @property
    def output_layer(self) -> int | None:  # type: ignore[override]
        """None: a pair's outputs come of the last layer at two inputs."""
        return None

    def _halves(self, weights: Weights, x: Float[Array, "*S N 2*I"]) -> tuple[Array, ...]:
        """Both inputs of each pair; x itself if it holds single inputs."""
        width = weights[0].shape[-2] - 1
        return (x,) if x.shape[-1] == width else (x[..., :width], x[..., width:])

    def apply(self, engine: Engine, weights: Weights, x: Float[Array, "*S N I"]) -> Float[Array, "*S N K"]:
        outputs = [super(PairwiseMLP, self).apply(engine, weights, half) for half in self._halves(weights, x)]
        return outputs[0] if len(outputs) == 1 else outputs[0] - outputs[1]

    def pullback(
        self, engine: Engine, weights: Weights, x: Float[Array, "N I"], *, many: bool = True
    ) -> tuple[Float[Array, "*C N K"], Callable[[Array], Weights]]:
        """Of the difference: the difference of both halves' gradients."""
        halves = self._halves(weights, x)
        if len(halves) == 1:
            return super().pullback(engine, weights, x, many=many)
        of_half = super().pullback
        (first, pull_first), (second, pull_second) = (of_half(engine, weights, half, many=many) for half in halves)

        def pull(cotangent: Float[Array, "C N K"]) -> Weights:
            pairs = zip(pull_first(cotangent), pull_second(cotangent), strict=True)
            return tuple(plus - minus for plus, minus in pairs)

        return first - second, pull

    def noise_shapes(self, num_rows: int, weights: Weights) -> tuple[tuple[int, ...], ...]:
        """Shapes of the draws for :meth:`apply_with_noise`: two for each pair and unit."""
        return tuple((2 * num_rows, matrix.shape[-1]) for matrix in weights)

    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        variances: Sequence[Array | None],
        x: Float[Array, "N 2*I"],
        noise: Sequence[Array | None],
    ) -> Float[Array, "N K"]:
        """Outputs for weights drawn anew for every pair, the same for both of its halves.

        The halves' pre-activations are jointly normal: variances a²S² and b²S², covariance ab S².

        Raises:
            InvalidInput: noise that is not of :meth:`noise_shapes`.
        """
        activate = ACTIVATIONS[self.activation]
        first, second = self._halves(weights, x)
        for index, (matrix, variance, draw) in enumerate(zip(weights, variances, noise, strict=True)):
            before = first, second
            first, second = (dense(engine, half, matrix) for half in before)
            if variance is not None:
                moved = _joint_noise(engine, *before, variance, draw)
                first, second = first + moved[0], second + moved[1]
            if index < len(weights) - 1:
                first, second = (activate(engine, half) for half in (first, second))
        return first - second

    def factors(
        self,
        engine: Engine,
        weights: Weights,
        x: Float[Array, "N I"],
        directions: Callable[[Array], Array] | None = None,
        needed: Sequence[bool] | None = None,
    ) -> tuple[Float[Array, "N K"], tuple[Any, ...]]:
        """Outputs, and of every layer the signed pair of its factors: (a_first, D_first), (a_second, -D_second)."""
        halves = self._halves(weights, x)
        if len(halves) == 1:
            return super().factors(engine, weights, x, directions, needed)
        seed = None
        if directions is not None:  # they are of the difference
            chosen = directions(self.apply(engine, weights, x))
            seed = lambda _: chosen  # noqa: E731
        of_half = super().factors
        (first, of_first), (second, of_second) = (of_half(engine, weights, half, seed, needed) for half in halves)
        pairs = zip(of_first, of_second, strict=True)
        joined = tuple(None if plus is None else _signed_pair(engine, plus, minus) for plus, minus in pairs)
        return first - second, joined


def _signed_pair(engine: Engine, plus: LayerFactors, minus: LayerFactors) -> SharedFactors:
    """Factors of the difference: two positions, the second with its sign turned."""
    stack = engine.xp.stack
    return SharedFactors(stack([plus.inputs, minus.inputs], axis=1), stack([plus.rows, -minus.rows], axis=2))


def _joint_noise(engine: Engine, a: Array, b: Array, variance: Array, draw: Array | None) -> tuple[Array, Array]:
    """Noise of both halves' pre-activations, from draws of shape (2 N, O)."""
    xp, rows = engine.xp, a.shape[0]
    if draw is None or draw.shape[0] != 2 * rows:
        raise InvalidInput(f"noise for {rows} pairs must have {2 * rows} rows, see PairwiseMLP.noise_shapes")
    of_a, of_b, of_both = (product @ variance[:-1, :] + variance[-1:, :] for product in (a * a, b * b, a * b))
    root = xp.sqrt(of_a)
    along = of_both / root
    rest = xp.clip(of_b - along * along, 0.0, None) + 1e-12 * of_b  # of equal halves nothing is left but rounding
    return root * draw[:rows], along * draw[:rows] + xp.sqrt(rest) * draw[rows:]
