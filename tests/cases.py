"""Small problems that several test files share: networks, structures, likelihoods, data and random posteriors."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import bayesmlp as bm
from bayesmlp.inference.engines import Engine
from bayesmlp.inference.likelihoods import LevelState, Likelihood, NoiseState, ScaleState, Thresholds
from bayesmlp.inference.structures import BufferedLowRank, Structure

Shapes = Sequence[tuple[int, int]]

NUM_INPUTS = 2
NETWORK = bm.MLP(hidden=(4, 3), activation="tanh")
"""Three layers, so that every layer can have a structure of its own; about 40 weights, so that dense is quick."""

LINEAR = bm.MLP(hidden=())

BLOCKS = bm.Blocks(((bm.LowRank(2), (0,)), (bm.Diagonal(), (1,)), (bm.Full(), (2,))))

STRUCTURES: dict[str, Structure] = {
    "diagonal": bm.Diagonal(),
    "full": bm.Full(),
    "low_rank": bm.LowRank(3),
    "buffered": bm.LowRank(3, buffer=5),
    "kronecker": bm.Kronecker(),
    "last_full": bm.LastLayer(bm.Full(), bm.Diagonal()),
    "last_full_low_rank": bm.LastLayer(bm.Full(), bm.LowRank(2)),
    "blocks": BLOCKS,
}

LIKELIHOODS: dict[str, Likelihood] = {
    "gaussian": bm.Gaussian(),
    "gaussian_known": bm.Gaussian(num_outputs=2, noise_variance=0.3),
    "categorical": bm.Categorical(3),
    "bernoulli": bm.Bernoulli(),
    "heteroscedastic": bm.HeteroscedasticGaussian(),
    "student_t": bm.StudentT(),
    "poisson": bm.Poisson(),
    "ordinal": bm.Ordinal(4),
}

FRAMEWORKS = ("numpy", "torch", "jax")
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def needs(framework: str) -> Any:
    """A mark that skips where a framework is not installed, and says how to install it."""
    missing = importlib.util.find_spec(framework) is None
    return pytest.mark.skipif(missing, reason=f"{framework} is not installed: pip install 'bayesmlp[{framework}]'")


def on(*frameworks: str) -> list[Any]:
    """Test parameters, one for each framework."""
    return [pytest.param(name, marks=needs(name)) for name in frameworks]


def shapes_of(likelihood: Likelihood, network: bm.MLP = NETWORK) -> Shapes:
    """Shapes of a network's weights for these cases' inputs."""
    return network.shapes(NUM_INPUTS, likelihood.num_outputs)


def make_inputs(rows: int, seed: int) -> np.ndarray:
    """Standard normal inputs."""
    return np.random.default_rng(seed).standard_normal((rows, NUM_INPUTS))


def make_targets(likelihood: Likelihood, x: np.ndarray, seed: int) -> np.ndarray:
    """Targets that depend on the inputs, with noise."""
    rng = np.random.default_rng(seed)
    size = likelihood.num_outputs
    signal = np.sin(x @ rng.standard_normal((NUM_INPUTS, size))) + 0.3 * rng.standard_normal((len(x), size))
    if isinstance(likelihood, bm.Categorical):
        return signal.argmax(axis=1)
    if isinstance(likelihood, bm.Bernoulli):
        return (signal[:, 0] > 0).astype(np.int64)
    if isinstance(likelihood, bm.Poisson):
        return rng.poisson(np.exp(signal[:, 0]))
    if isinstance(likelihood, bm.Ordinal):
        return np.digitize(signal[:, 0], np.linspace(-0.5, 0.5, likelihood.num_levels - 1))
    signal = signal[:, : likelihood.num_targets]
    return signal[:, 0] if signal.shape[1] == 1 else signal


def make_likelihood_state(likelihood: Likelihood, engine: Engine) -> Any:
    """What the likelihood may have learned from a few events."""
    if isinstance(likelihood, bm.Gaussian) and likelihood.learns_noise:
        return NoiseState(engine.asarray(np.float64(2.5), "float64"), engine.asarray(np.float64(0.8), "float64"))
    if isinstance(likelihood, bm.HeteroscedasticGaussian):
        return LevelState(engine.asarray(np.float64(0.3), "float64"))
    if isinstance(likelihood, bm.StudentT) and likelihood.scale is None:
        return ScaleState(engine.asarray(np.float64(0.4), "float64"))
    if isinstance(likelihood, bm.Ordinal):
        return Thresholds(engine.asarray(np.linspace(-1.0, 1.5, likelihood.num_levels - 1), "float64"))
    return ()


def random_arrays(structure: Structure, shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """A random posterior as the arrays of ``Structure.from_arrays``, drawn without any of the library's own steps.

    A low-rank posterior uses two of its columns; the others are 0, as they are early in a stream.
    """
    rng = np.random.default_rng(seed)
    means = {f"mean.{i}": 0.7 * rng.standard_normal(shape) for i, shape in enumerate(shapes)}
    if isinstance(structure, bm.Diagonal):
        return means | {f"precision.{i}": np.exp(rng.standard_normal(shape)) for i, shape in enumerate(shapes)}
    if isinstance(structure, bm.LowRank):
        used = np.arange(structure.rank)[:, None, None] < 2
        diagonals = {f"diagonal.{i}": np.exp(rng.standard_normal(shape)) for i, shape in enumerate(shapes)}
        columns = {
            f"columns.{i}": used * rng.standard_normal((structure.rank, *shape)) for i, shape in enumerate(shapes)
        }
        return means | diagonals | columns
    if isinstance(structure, BufferedLowRank):
        return random_buffered(structure, shapes, seed)
    if isinstance(structure, bm.Kronecker):
        return means | random_kronecker(shapes, rng)
    if isinstance(structure, bm.Full):
        size = sum(rows * columns for rows, columns in shapes)
        root = np.diag(np.exp(0.3 * rng.standard_normal(size))) + 0.4 * rng.standard_normal((size, size)) / size**0.5
        return means | {"covariance_root": root}
    assert isinstance(structure, bm.Blocks)
    return {
        f"{index}.{name}": array
        for index, (part, layers) in enumerate(structure.parts)
        for name, array in random_arrays(part, [shapes[layer] for layer in layers], seed + index + 1).items()
    }


def random_buffered(structure: BufferedLowRank, shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Of which one row waits, in one direction, so that a fold of rank 3 drops nothing."""
    rng = np.random.default_rng([seed, 1])
    arrays, places, outputs = random_arrays(structure.of, shapes, seed), structure.capacity, shapes[-1][1]
    inputs, rows = [], []
    for size, width in shapes:
        inputs.append(np.concatenate([np.zeros((places - 1, size)), rng.standard_normal((1, size))]))
        rows.append(np.zeros((places, outputs, width)))
        rows[-1][-1, 0] = rng.standard_normal(width)
    waiting = np.concatenate(
        [np.einsum("bi,bko->bkio", a, d).reshape(places * outputs, -1) for a, d in zip(inputs, rows, strict=True)],
        axis=1,
    )
    columns = np.concatenate(
        [arrays[f"columns.{i}"].reshape(structure.of.rank, -1) for i in range(len(shapes))], axis=1
    )
    directions = np.concatenate([columns, waiting])
    diagonal = np.concatenate([arrays[f"diagonal.{i}"].reshape(-1) for i in range(len(shapes))])
    arrays |= {f"inputs.{i}": array for i, array in enumerate(inputs)}
    arrays |= {f"rows.{i}": array for i, array in enumerate(rows)}
    root = np.linalg.cholesky(np.eye(len(directions)) + directions / diagonal @ directions.T)
    return arrays | {"root": root, "waiting": np.array(1.0)}


def arrays_for(likelihood: Likelihood, structure: Structure, shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """As :func:`random_arrays`; twenty times as precise for a likelihood whose mode is ill-conditioned otherwise.

    Means and variances of a few rows have their joint mode where the means fit and the variances vanish, if only the
    posterior allows it.
    """
    arrays = random_arrays(structure, shapes, seed)
    if not isinstance(likelihood, bm.HeteroscedasticGaussian):
        return arrays
    if isinstance(structure, BufferedLowRank):
        return arrays | {
            name: array * 20.0 ** {"diagonal": 1.0, "columns": 0.5, "rows": 0.5}.get(name.split(".")[0], 0.0)
            for name, array in arrays.items()
        }
    powers = {"mean": 0.0, "precision": 1.0, "diagonal": 1.0, "columns": 0.5, "covariance_root": -0.5}
    if isinstance(structure, bm.Kronecker):  # whose precisions are those within its bases
        powers = {"mean": 0.0, "precision": 0.0, "input_basis": -0.25, "output_basis": -0.25}
        powers |= {"input_sum": 0.0, "output_sum": 0.0, "folded": 0.0, "pending": 0.0}
    return {
        name: array * 20.0 ** next(power for field, power in powers.items() if field in name.split("."))
        for name, array in arrays.items()
    }


def random_kronecker(shapes: Shapes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random bases and eigenvalues, and sums that they are not yet those of."""
    arrays = {"folded": np.array(4.0), "pending": np.array(1.0)}
    for i, shape in enumerate(shapes):
        arrays[f"precision.{i}"] = 1 + np.exp(rng.standard_normal(shape))
        for side, size in zip(("input", "output"), shape, strict=True):
            scale = np.exp(0.5 * rng.standard_normal((size, 1)))
            arrays[f"{side}_basis.{i}"] = scale * np.linalg.qr(rng.standard_normal((size, size)))[0]
            root = rng.standard_normal((size, size))
            arrays[f"{side}_sum.{i}"] = root @ root.T
    return arrays


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest expected magnitude."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.max(np.abs(got - expected), initial=0.0) / max(1e-30, np.max(np.abs(expected), initial=0.0)))
