"""Dense references in float64, written apart from the library: no layer factors, no engines, no structures.

Weights are one vector, the matrices of the layers flattened by rows, first layer first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg, special, stats

import bayesmlp as bm
from bayesmlp.inference.likelihoods import Likelihood
from bayesmlp.inference.likelihoods.heteroscedastic_gaussian import LOG_VARIANCE_BOUNDS
from bayesmlp.inference.likelihoods.poisson import LOG_RATE_BOUNDS
from bayesmlp.inference.structures import BufferedLowRank, Structure

Shapes = Sequence[tuple[int, int]]


def flatten(layers: Sequence[np.ndarray]) -> np.ndarray:
    """The matrices of all layers as one vector."""
    return np.concatenate([np.asarray(layer, np.float64).reshape(-1) for layer in layers])


def split(flat: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
    """The inverse of :func:`flatten`; also takes complex vectors."""
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


# -- networks ---------------------------------------------------------------------------------------------------------
ACTIVATIONS: dict[str, Any] = {
    "relu": lambda z: np.where(z.real > 0, z, 0),
    "tanh": np.tanh,
    "gelu": lambda z: 0.5 * z * (1 + special.erf(z / np.sqrt(2))),
    "silu": lambda z: z / (1 + np.exp(-z)),
}


def outputs(activation: str, layers: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """The network, for real or complex weights."""
    for index, matrix in enumerate(layers):
        x = x @ matrix[:-1] + matrix[-1]
        if index < len(layers) - 1:
            x = ACTIVATIONS[activation](x)
    return x


def jacobian(activation: str, layers: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Derivatives of the outputs with respect to every weight, (N, K, P).

    By complex steps: f'(θ) = Im f(θ + ih)/h has no cancellation, so it is exact to rounding (Squire and Trapp 1998).
    """
    shapes, flat, step = [layer.shape for layer in layers], flatten(layers), 1e-40
    columns = []
    for index in range(flat.size):
        moved = flat.astype(np.complex128)
        moved[index] += 1j * step
        columns.append(outputs(activation, split(moved, shapes), x).imag / step)
    return np.stack(columns, axis=-1)


# -- structures -------------------------------------------------------------------------------------------------------
def weight_indices(shapes: Shapes, layers: Sequence[int]) -> np.ndarray:
    """Positions of some layers' weights in the flat vector."""
    numbers = split(np.arange(sum(rows * columns for rows, columns in shapes)), shapes)
    return np.concatenate([numbers[layer].reshape(-1) for layer in layers])


def own_arrays(arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """The arrays of one block."""
    return {name.removeprefix(f"{index}."): a for name, a in arrays.items() if name.startswith(f"{index}.")}


def layers_of(field: str, arrays: Mapping[str, np.ndarray], num_layers: int) -> list[np.ndarray]:
    """A field that holds one array for each layer."""
    return [np.asarray(arrays[f"{field}.{i}"], np.float64) for i in range(num_layers)]


def mean(structure: Structure, arrays: Mapping[str, np.ndarray], shapes: Shapes) -> np.ndarray:
    """The posterior mean from a structure's stored arrays."""
    if not isinstance(structure, bm.Blocks):
        return flatten(layers_of("mean", arrays, len(shapes)))
    joined = np.full(sum(rows * columns for rows, columns in shapes), np.nan)
    for index, (part, layers) in enumerate(structure.parts):
        own = mean(part, own_arrays(arrays, index), [shapes[layer] for layer in layers])
        joined[weight_indices(shapes, layers)] = own
    return joined


def precision(structure: Structure, arrays: Mapping[str, np.ndarray], shapes: Shapes) -> np.ndarray:
    """The precision matrix that a structure's stored arrays stand for."""
    if isinstance(structure, bm.Diagonal):
        return np.diag(flatten(layers_of("precision", arrays, len(shapes))))
    if isinstance(structure, bm.LowRank):
        columns = low_rank_columns(arrays, shapes)
        return np.diag(flatten(layers_of("diagonal", arrays, len(shapes)))) + columns @ columns.T
    if isinstance(structure, BufferedLowRank):
        waiting = waiting_rows(arrays, shapes)
        return precision(structure.of, arrays, shapes) + waiting.T @ waiting
    if isinstance(structure, bm.Kronecker):
        return linalg.block_diag(*(kronecker_precision(arrays, layer) for layer in range(len(shapes))))
    if isinstance(structure, bm.Full):
        inverse_root = np.linalg.inv(np.asarray(arrays["covariance_root"], np.float64))
        return inverse_root.T @ inverse_root
    assert isinstance(structure, bm.Blocks)
    size = sum(rows * columns for rows, columns in shapes)
    joined = np.zeros((size, size))
    for index, (part, layers) in enumerate(structure.parts):
        where = weight_indices(shapes, layers)
        own = precision(part, own_arrays(arrays, index), [shapes[layer] for layer in layers])
        joined[np.ix_(where, where)] = own
    return joined


def low_rank_columns(arrays: Mapping[str, np.ndarray], shapes: Shapes) -> np.ndarray:
    """W of a low-rank posterior, (P, R)."""
    layers = layers_of("columns", arrays, len(shapes))
    return np.concatenate([layer.reshape(len(layer), -1) for layer in layers], axis=1).T


def waiting_rows(arrays: Mapping[str, np.ndarray], shapes: Shapes) -> np.ndarray:
    """LᵀJ of the rows that wait in a buffer, (B K, P)."""
    pairs = zip(layers_of("inputs", arrays, len(shapes)), layers_of("rows", arrays, len(shapes)), strict=True)
    jacobians = [np.einsum("bi,bko->bkio", inputs, rows) for inputs, rows in pairs]
    return np.concatenate([j.reshape(j.shape[0] * j.shape[1], -1) for j in jacobians], axis=1)


def kronecker_precision(arrays: Mapping[str, np.ndarray], layer: int) -> np.ndarray:
    """Of one layer's weights B Z Cᵀ, with independent Z."""
    own = {name: np.asarray(arrays[f"{name}.{layer}"], np.float64) for name in ("input_basis", "output_basis")}
    to_basis = np.kron(*(np.linalg.inv(basis) for basis in own.values()))
    return to_basis.T @ (np.asarray(arrays[f"precision.{layer}"], np.float64).reshape(-1, 1) * to_basis)


def kronecker_prior(arrays: Mapping[str, np.ndarray], layer: int) -> np.ndarray:
    """u vᵀ of one layer: the precision of its weights where nothing was learned."""
    u, v = (1 / (np.asarray(arrays[f"{side}_basis.{layer}"]) ** 2).sum(1) for side in ("input", "output"))
    return np.outer(u, v)


def kronecker_sums(arrays: Mapping[str, np.ndarray], layer: int, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A layer's sums after ``added`` curvature (P, P): they gain its partial traces."""
    a, g = (np.asarray(arrays[f"{side}_sum.{layer}"], np.float64) for side in ("input", "output"))
    tensor = added.reshape(len(a), len(g), len(a), len(g))
    return a + np.einsum("iojo->ij", tensor), g + np.einsum("ioip->op", tensor)


# -- likelihoods, at unit dispersion ----------------------------------------------------------------------------------
def bounded(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Values brought smoothly between bounds, and the derivative."""
    inside = low + np.logaddexp(0, values - low) - np.logaddexp(0, values - high)
    return inside, special.expit(values - low) - special.expit(values - high)


def level_probabilities(f: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each level and its derivative, (N, L)."""
    ends = np.concatenate([[-np.inf], thresholds, [np.inf]]) - f
    slope = special.expit(ends) * special.expit(-ends)
    return np.diff(special.expit(ends), axis=1), -np.diff(slope, axis=1)


def log_prob(likelihood: Likelihood, f: np.ndarray, y: np.ndarray, state: Any = ()) -> np.ndarray:
    """log p(y | outputs), (N,); y as the likelihood prepared it."""
    if isinstance(likelihood, bm.Categorical):
        return special.log_softmax(f, axis=-1)[np.arange(len(f)), y]
    if isinstance(likelihood, bm.Bernoulli):
        return (y * special.log_expit(f) + (1 - y) * special.log_expit(-f)).sum(-1)
    if isinstance(likelihood, bm.HeteroscedasticGaussian):
        mean, log_variance = np.split(f, 2, axis=1)
        deviation = np.exp(0.5 * bounded(log_variance + state.log_variance, *LOG_VARIANCE_BOUNDS)[0])
        return stats.norm.logpdf(y, mean, deviation).sum(-1)
    if isinstance(likelihood, bm.StudentT):
        shape, freedom = student_scale(likelihood, state) ** 2 * np.eye(f.shape[1]), likelihood.degrees_of_freedom
        rows = zip(f, y, strict=True)
        return np.array([stats.multivariate_t.logpdf(target, row, shape, df=freedom) for row, target in rows])
    if isinstance(likelihood, bm.Poisson):
        return stats.poisson.logpmf(y, np.exp(bounded(f, *LOG_RATE_BOUNDS)[0])).sum(-1)
    if isinstance(likelihood, bm.Ordinal):
        return np.log(level_probabilities(f, state.thresholds)[0][np.arange(len(f)), y])
    assert isinstance(likelihood, bm.Gaussian)
    variance = likelihood.noise_variance or 1.0
    return (-0.5 * (y - f) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum(-1)


def student_scale(likelihood: bm.StudentT, state: Any) -> float:
    """The scale, known or learned."""
    return float(state.scale) if likelihood.scale is None else likelihood.scale


def score_and_fisher(
    likelihood: Likelihood, f: np.ndarray, y: np.ndarray, state: Any = ()
) -> tuple[np.ndarray, np.ndarray]:
    """∂log p/∂outputs (N, K), and the expectation of -∂²log p/∂outputs² (N, K, K)."""
    identity = np.eye(f.shape[1])
    if isinstance(likelihood, bm.Categorical):
        p = special.softmax(f, axis=-1)
        return identity[y] - p, p[:, :, None] * identity - p[:, :, None] * p[:, None, :]
    if isinstance(likelihood, bm.Bernoulli):
        p = special.expit(f)
        return y - p, (p * special.expit(-f))[:, :, None] * identity
    if isinstance(likelihood, bm.HeteroscedasticGaussian):
        mean, log_variance = np.split(f, 2, axis=1)
        log_variance, slope = bounded(log_variance + state.log_variance, *LOG_VARIANCE_BOUNDS)
        precision = np.exp(-log_variance)
        score = np.concatenate([(y - mean) * precision, 0.5 * ((y - mean) ** 2 * precision - 1) * slope], axis=1)
        return score, np.concatenate([precision, 0.5 * slope**2], axis=1)[:, :, None] * identity
    if isinstance(likelihood, bm.StudentT):
        together, square = likelihood.degrees_of_freedom + f.shape[1], student_scale(likelihood, state) ** 2
        weight = together / (likelihood.degrees_of_freedom * square + ((y - f) ** 2).sum(1, keepdims=True))
        fisher = together / (together + 2) / square * identity
        return (y - f) * weight, np.broadcast_to(fisher, (len(f), *identity.shape))
    if isinstance(likelihood, bm.Poisson):
        log_rate, slope = bounded(f, *LOG_RATE_BOUNDS)
        return (y - np.exp(log_rate)) * slope, (np.exp(log_rate) * slope**2)[:, :, None]
    if isinstance(likelihood, bm.Ordinal):
        p, slope = level_probabilities(f, state.thresholds)
        return (slope / p)[np.arange(len(f)), y][:, None], (slope**2 / p).sum(1)[:, None, None]
    assert isinstance(likelihood, bm.Gaussian)
    variance = likelihood.noise_variance or 1.0
    return (y - f) / variance, np.broadcast_to(identity / variance, (len(f), *identity.shape))


# -- Gaussians --------------------------------------------------------------------------------------------------------
def linearised_posterior(
    likelihood: Likelihood,
    f: np.ndarray,
    jac: np.ndarray,
    prior_precision: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    state: Any = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Step from the mean to the mode of Σ w log p(y | f + J δ) - ½ δᵀΛδ, and Λ + Jᵀ F J there.

    Fisher's scoring on the weights, with halved steps until the objective rises as it promised; the last step of
    relative size 1e-13 leaves an error of rounding. Quadratic where the likelihood is canonical, else it takes long.
    """
    step = np.zeros(len(prior_precision))

    def objective(delta: np.ndarray) -> float:
        return float(weight @ log_prob(likelihood, f + jac @ delta, y, state) - 0.5 * delta @ prior_precision @ delta)

    for _ in range(5000):
        score, fisher = score_and_fisher(likelihood, f + jac @ step, y, state)
        gradient = np.einsum("nkp,nk,n->p", jac, score, weight) - prior_precision @ step
        hessian = prior_precision + np.einsum("nkp,nkl,nlq,n->pq", jac, fisher, jac, weight)
        direction = linalg.solve(hessian, gradient, assume_a="pos")
        if np.max(np.abs(direction)) < 1e-13 * (1 + np.max(np.abs(step))):
            return step, hessian
        length = 1.0
        rounding = 1e-12 * (1 + abs(objective(step)))
        while objective(step + length * direction) < objective(step) + 0.25 * length * gradient @ direction - rounding:
            length /= 2
        step = step + length * direction
    raise AssertionError("the reference itself did not converge")


def gaussian_kl(
    new_mean: np.ndarray, new_precision: np.ndarray, old_mean: np.ndarray, old_precision: np.ndarray
) -> float:
    """KL divergence of N(new_mean, new_precision⁻¹) from N(old_mean, old_precision⁻¹)."""
    difference = new_mean - old_mean
    log_ratio = np.linalg.slogdet(new_precision)[1] - np.linalg.slogdet(old_precision)[1]
    trace = np.trace(linalg.solve(new_precision, old_precision, assume_a="pos"))
    return float(0.5 * (log_ratio - len(difference) + trace + difference @ old_precision @ difference))
