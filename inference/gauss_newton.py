"""Curvature of a whole data set: the sum over rows of Jᵀ L Lᵀ J."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .engines.base import Array, Engine, map_arrays
from .likelihoods.base import Likelihood
from .network import MLP
from .structures.base import Structure, chunk_rows

__all__ = ["curvature_of"]


def curvature_of(
    engine: Engine, network: MLP, likelihood: Likelihood, structure: Structure, layers: Sequence[bool]
) -> Callable[[Any, Array, np.ndarray, Any], Any]:
    """The sum over all rows of their generalised Gauss-Newton precision (Martens 2020, section 8).

    Returns ``add(state, x, weight, likelihood_state)``, which adds it to the precision of a structure's state, at whose
    mean the network is linearised; ``x`` are inputs (N, I), ``weight`` that of each row (N,) on the host. It is
    compiled once, for the posteriors of as many networks as need it.

    Args:
        engine: of the arrays.
        network: the network.
        likelihood: whose Fisher information is taken, at unit dispersion.
        structure: the form of the posterior.
        layers: for each layer, whether it takes part; the others' weights are held fixed.
    """

    def add(state: Any, rows: Array, row_weight: Array, likelihood_state: Any) -> Any:
        outputs, factors = network.factors(engine, structure.mean(state), rows)
        kept = [f if takes_part else f._replace(rows=0 * f.rows) for f, takes_part in zip(factors, layers, strict=True)]
        given = map_arrays(lambda array: engine.xp.astype(array, outputs.dtype), likelihood_state)
        root = engine.xp.sqrt(row_weight)[:, None, None]
        return structure.add_precision(engine, state, kept, root * likelihood.fisher_factor(engine, outputs, given))

    step = engine.jit(add)
    size = chunk_rows(likelihood.num_outputs)

    def add_all(state: Any, x: Array, weight: np.ndarray, likelihood_state: Any) -> Any:
        for start in range(0, x.shape[0], size):
            chunk, chunk_weight = pad_rows(engine, size, x[start : start + size], weight[start : start + size])
            state = step(state, chunk, chunk_weight, likelihood_state)
        return state

    return add_all


def pad_rows(engine: Engine, size: int, x: Array, weight: np.ndarray) -> tuple[Array, Array]:
    """A chunk padded to ``size`` rows by its first row at weight 0, so that compiled steps keep one shape."""
    missing = size - x.shape[0]
    padded = np.concatenate([weight, np.zeros(missing)])
    with engine.scope():
        if missing:
            filler = engine.xp.broadcast_to(x[:1], (missing, x.shape[1]))
            x = engine.xp.concat([x, filler], axis=0)
        return x, engine.asarray(padded)
