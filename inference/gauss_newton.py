"""Curvature of a whole data set: the sum over rows of Jᵀ L Lᵀ J."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood
from .network import MLP
from .structures.base import Structure, chunk_rows

__all__ = ["CURVATURES", "add_curvature"]

CURVATURES = ("ggn", "empirical_fisher")


def add_curvature(
    engine: Engine,
    network: MLP,
    likelihood: Likelihood,
    structure: Structure,
    state: Any,
    data: tuple[Array, Array],
    weight: np.ndarray,
    layers: Sequence[bool],
    curvature: str = "ggn",
    dispersion: float = 1.0,
) -> Any:
    """Add the curvature of every row at the state's mean.

    ``"ggn"``: the generalised Gauss-Newton matrix Σ Jᵀ F J with F the Fisher information of the outputs (Martens 2020,
    section 8). ``"empirical_fisher"``: Σ Jᵀ s sᵀ J with s the row's own score, which is cheaper and in general another
    matrix (Kunstner, Balles and Hennig 2019).

    Args:
        engine: of the arrays.
        network: the network, linearised at the state's mean.
        likelihood: whose Fisher information is taken, at unit dispersion.
        structure: the form of the posterior.
        state: whose precision is added to.
        data: inputs (N, I), and targets as the likelihood prepared them.
        weight: of each row (N,), on the host.
        layers: for each layer, whether it takes part; the others' weights are held fixed.
        curvature: ``"ggn"`` or ``"empirical_fisher"``.
        dispersion: φ; a score's square is in its units.
    """
    step, settle = _compiled(engine, network, likelihood, structure, tuple(layers), curvature)
    scale = engine.asarray(dispersion**-0.5)
    num_rows = int(weight.shape[0])
    size = min(chunk_rows(likelihood.num_outputs, structure.chunk_columns), num_rows)
    for start in range(0, num_rows, size):
        rows = slice(start, start + size)
        state = step(state, scale, *pad_rows(engine, size, [array[rows] for array in data], weight[rows]))
    return settle(state)


@lru_cache(maxsize=8)
def _compiled(
    engine: Engine,
    network: MLP,
    likelihood: Likelihood,
    structure: Structure,
    layers: tuple[bool, ...],
    curvature: str,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The step that adds a chunk, and what follows the last one; kept, so that a refit does not compile anew."""
    needed = structure.uses_factors(network.num_layers)

    def add(state: Any, scale: Array, rows: Array, targets: Array, row_weight: Array) -> Any:
        def directions(outputs: Array) -> Array:
            root = engine.xp.sqrt(row_weight)[:, None, None]
            if curvature == "ggn":
                return root * likelihood.fisher_factor(engine, outputs)
            return scale * root * likelihood.unit_score(engine, outputs, targets)[:, :, None]

        _, factors = network.factors(engine, structure.mean(state), rows, directions, needed)
        kept = [
            factor if factor is None or takes_part else factor._replace(rows=0 * factor.rows)
            for factor, takes_part in zip(factors, layers, strict=True)
        ]
        return structure.accumulate(engine, state, kept, None)

    return engine.jit(add), engine.jit(lambda state: structure.settle(engine, state))


def pad_rows(engine: Engine, size: int, data: Sequence[Array], weight: np.ndarray) -> tuple[Array, ...]:
    """A chunk padded to ``size`` rows by its first row at weight 0, so that compiled steps keep one shape."""
    missing = size - len(weight)
    padded = np.concatenate([weight, np.zeros(missing)])
    with engine.scope():
        if missing:
            xp = engine.xp
            data = [xp.concat([a, xp.broadcast_to(a[:1], (missing, *a.shape[1:]))], axis=0) for a in data]
        return (*data, engine.asarray(padded))
