"""Curvature of a whole data set: the sum over rows of Jᵀ L Lᵀ J."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .engines.base import Array, Engine
from .likelihoods.base import Likelihood
from .network import Network
from .structures.base import Structure, chunk_rows

__all__ = ["add_curvature"]


def add_curvature(
    engine: Engine,
    network: Network,
    likelihood: Likelihood,
    structure: Structure,
    state: Any,
    x: Array,
    weight: np.ndarray,
    layers: Sequence[bool],
) -> Any:
    """Add the generalised Gauss-Newton precision of every row at the state's mean (Martens 2020, section 8).

    Args:
        engine: of the arrays.
        network: the network, linearised at the state's mean.
        likelihood: whose Fisher information is taken, at unit dispersion.
        structure: the form of the posterior.
        state: whose precision is added to.
        x: inputs (N, I).
        weight: of each row (N,), on the host.
        layers: for each layer, whether it takes part; the others' weights are held fixed.
    """

    def add(state: Any, rows: Array, row_weight: Array) -> Any:
        outputs, factors = network.factors(engine, structure.mean(state), rows)
        kept = [
            f if f is None or takes_part else f._replace(rows=0 * f.rows)
            for f, takes_part in zip(factors, layers, strict=True)
        ]
        root = engine.xp.sqrt(row_weight)[:, None, None]
        return structure.add_precision(engine, state, kept, root * likelihood.fisher_factor(engine, outputs))

    step = engine.jit(add)
    size = chunk_rows(likelihood.num_outputs)
    for start in range(0, x.shape[0], size):
        chunk, chunk_weight = pad_rows(engine, size, x[start : start + size], weight[start : start + size])
        state = step(state, chunk, chunk_weight)
    return state


def pad_rows(engine: Engine, size: int, x: Array, weight: np.ndarray) -> tuple[Array, Array]:
    """A chunk padded to ``size`` rows by its first row at weight 0, so that compiled steps keep one shape."""
    missing = size - x.shape[0]
    padded = np.concatenate([weight, np.zeros(missing)])
    with engine.scope():
        if missing:
            filler = engine.xp.broadcast_to(x[:1], (missing, x.shape[1]))
            x = engine.xp.concat([x, filler], axis=0)
        return x, engine.asarray(padded)
