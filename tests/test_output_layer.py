"""The prepared form of a full last layer against the product with a root of all weights' covariance."""

from __future__ import annotations

import numpy as np
import pytest

from bayesmlp.inference.engines import Engine
from bayesmlp.inference.structures.output_layer import OutputLayer, output_layer


def expected(root: np.ndarray, inputs: np.ndarray, num_outputs: int) -> np.ndarray:
    """Covariance (N, K, K) of the outputs of each input."""
    rows = root.reshape(inputs.shape[1], num_outputs, -1)
    rooted = np.einsum("ni,ikc->nkc", inputs, rows)
    return rooted @ rooted.swapaxes(1, 2)


def prepared(engine: Engine, root: np.ndarray, inputs: np.ndarray, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    def answers(root: object, rows: object) -> tuple[object, object]:
        layer: OutputLayer = output_layer(engine, root, (inputs.shape[1], num_outputs))
        return layer.covariance(engine, rows), layer.variance(engine, rows)

    covariance, variance = engine.jit(answers)(engine.asarray(root), engine.asarray(inputs))
    return engine.to_numpy(covariance), engine.to_numpy(variance)


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_covariance_and_variance_are_exact(engine64: Engine, num_outputs: int) -> None:
    """With more inputs than one stripe has, and a root that is not triangular."""
    rng = np.random.default_rng(num_outputs)
    inputs, size = rng.standard_normal((5, 70)), 70 * num_outputs
    root = rng.standard_normal((size, size)) * rng.uniform(0.01, 1, size)[:, None]
    exact = expected(root, inputs, num_outputs)
    covariance, variance = prepared(engine64, root, inputs, num_outputs)
    np.testing.assert_allclose(covariance, exact, rtol=1e-10, atol=1e-12 * np.abs(exact).max())
    np.testing.assert_allclose(variance, np.diagonal(exact, axis1=1, axis2=2), rtol=1e-12)
