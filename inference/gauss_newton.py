"""Curvature of a whole data set, added to the precision of a structure's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .engines.base import Array, Engine, map_arrays
from .likelihoods.base import Likelihood
from .network import Network
from .structures.base import Structure, chunk_rows

__all__ = ["CURVATURES", "curvature_of"]

CURVATURES = ("ggn", "empirical_fisher")


def curvature_of(
    engine: Engine,
    network: Network,
    likelihood: Likelihood,
    structure: Structure,
    layers: Sequence[bool],
    curvature: str = "ggn",
) -> Callable[[Any, tuple[Array, Array], np.ndarray, Any], Any]:
    """The sum over all rows of their curvature.

    ``"ggn"``: the generalised Gauss-Newton matrix Σ Jᵀ F J with F the Fisher information of the outputs (Martens 2020,
    section 8). ``"empirical_fisher"``: Σ Jᵀ s sᵀ J with s the row's own score, which is cheaper and in general another
    matrix (Kunstner, Balles and Hennig 2019).

    Returns ``add(state, data, weight, likelihood_state)``, which adds it to the precision of a state of
    :meth:`Structure.begin`, at whose mean the network is linearised; ``data`` are inputs (N, I) and targets as the
    likelihood prepared them, ``weight`` that of each row (N,) on the host. It is compiled once, for as many networks as
    need it.

    Args:
        engine: of the arrays.
        network: the network.
        likelihood: whose Fisher information is taken, at unit dispersion.
        structure: the form of the posterior.
        layers: for each layer, whether it takes part; the others' weights are held fixed.
        curvature: ``"ggn"`` or ``"empirical_fisher"``.
    """
    needed = structure.uses_factors(network.num_layers)

    def add(state: Any, data: tuple[Array, Array], first: Array, row_weight: Array, likelihood_state: Any) -> Any:
        rows, targets = (engine.slice_rows(array, first, row_weight.shape[0]) for array in data)

        def directions(outputs: Array) -> Array:
            given = map_arrays(lambda array: engine.xp.astype(array, outputs.dtype), likelihood_state)
            root = engine.xp.sqrt(row_weight)[:, None, None]
            if curvature == "ggn":
                return root * likelihood.fisher_factor(engine, outputs, given)
            score = likelihood.unit_score(engine, outputs, targets, given)[:, :, None]
            return root * score / likelihood.dispersion(given) ** 0.5  # a score's square is in units of φ

        _, factors = network.factors(engine, structure.mean(state), rows, directions, needed)
        kept = [
            factor if factor is None or takes_part else factor._replace(rows=0 * factor.rows)
            for factor, takes_part in zip(factors, layers, strict=True)
        ]
        return structure.accumulate(engine, state, kept, None)

    step = engine.jit(add)
    settle = engine.jit(lambda state: structure.settle(engine, state))

    def add_all(state: Any, data: tuple[Array, Array], weight: np.ndarray, likelihood_state: Any) -> Any:
        num_rows = len(weight)
        size = min(chunk_rows(likelihood.num_outputs, structure.chunk_columns), num_rows)
        for start in range(0, num_rows, size):  # the last chunk reaches back, where its rows have weight 0
            first = min(start, num_rows - size)
            own = np.where(np.arange(first, first + size) < start, 0.0, weight[first : first + size])
            state = step(state, data, engine.asarray(first, "int32"), engine.asarray(own), likelihood_state)
        return settle(state)

    return add_all
