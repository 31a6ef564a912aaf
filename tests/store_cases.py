"""A small classification stream and stores that hold a model for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import bayesmlp as bm
from bayesmlp.inference.structures import Structure

NUM_INPUTS = 4


def stream(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and one of three classes that depends on them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, NUM_INPUTS))
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)


def small_model(engine: str = "numpy", structure: Structure | None = None, dtype: str = "float32") -> bm.BayesianMLP:
    """A model that knows its prior only."""
    model = bm.BayesianMLP(
        bm.MLP((8,), "tanh"),
        bm.Categorical(3),
        structure=structure or bm.LastLayer(hidden=bm.LowRank(3)),
        engine=engine,
        dtype=dtype,
        standardize=False,
    )
    model.start_from_prior(NUM_INPUTS)
    return model


def published(folder: Path, engine: str = "numpy", name: str = "m", **options: Any) -> bm.PosteriorStore:
    """A store with :func:`small_model` in it."""
    store = bm.open_store(folder / "store.db")
    store.publish(name, small_model(engine, **options))
    return store
