"""What a model would be under other settings, and what changed between two of its versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .inference.dynamics import Dynamics
from .inference.engines import Engine
from .inference.errors import InvalidInput
from .inference.influence import InverseMultiquadric
from .inference.output_space import OutputStep
from .model import BayesianMLP
from .predictive import Predictive
from .replay import fold_on, line_of, load
from .stepper import Stepper
from .store.store import PosteriorStore
from .validation import check_inputs

__all__ = ["Difference", "diff", "replay_with"]


def replay_with(
    store: PosteriorStore,
    name: str,
    *,
    dynamics: Dynamics | None = None,
    step: OutputStep | None = None,
    influence: InverseMultiquadric | None = None,
    engine: str | Engine | None = None,
    network: Any = None,
    version: int | None = None,
) -> BayesianMLP:
    """What the model would be had it learned its events under other settings; nothing is stored.

    The live events since the model was published are folded again, from the posterior it was published with, without
    consolidations. What was decided of an event when it came (its granted weight, its quarantine) stands.

    Args:
        store: where the model is.
        name: of the model.
        dynamics: in place of its own; None for its own.
        step: likewise.
        influence: likewise.
        engine: to fold on.
        network: for a model whose network is the user's own module, see :func:`bayesmlp.load`.
        version: whose events; None for the newest.

    Raises:
        UnknownModel: no such model or version.
        InvalidInput: the model was published with hypotheses over its dynamics, which can't be exchanged; or a merge
            by posteriors or a pull is on the way.
        Purged: payloads of events were erased.
    """
    log = store.log(name)
    fold = line_of(log, version)
    if mixed := [record.offset for record in fold.line if record.is_mixed]:
        raise InvalidInput(
            f"model {name!r} can't be replayed under other settings: version {mixed[0]} mixed in another posterior"
        )
    with store.read() as connection:
        snapshot = store.snapshots.read(connection, log.model_id, fold.line[0].offset)
    published = BayesianMLP.from_parts(snapshot.spec, snapshot.arrays, engine, network)
    stepper = Stepper(published.with_settings(dynamics=dynamics, step=step, influence=influence))
    fold_on(stepper, log, fold.line)
    return stepper.model


@dataclass(frozen=True)
class Difference:
    """What changed between two posteriors of one model.

    Attributes:
        old: predictions of the old one on the probe set.
        new: of the new one.
        change: the largest change of a predicted mean or class probability, (N,).
        kl_divergence: of the new predictive distribution from the old one, in nats, (N,): of class probabilities, or of
            the normal distributions with the predictives' means and variances, the outputs taken one by one.
        weight_shift: for each layer, the largest change of a weight's mean in its old standard deviations; None for a
            mixture, or where no weight of the layer is uncertain.
    """

    old: Predictive
    new: Predictive
    change: np.ndarray
    kl_divergence: np.ndarray
    weight_shift: tuple[float | None, ...] | None

    def largest(self, count: int = 10) -> np.ndarray:
        """Rows of the probe set that changed most, most first."""
        return np.argsort(-self.change, kind="stable")[:count]

    def __str__(self) -> str:
        rows = ", ".join(f"{row} ({self.change[row]:.3g})" for row in self.largest(5))
        shifts = ", ".join("-" if shift is None else f"{shift:.3g}" for shift in self.weight_shift or ())
        return (
            f"{len(self.change)} probes: change at most {self.change.max():.3g}, on average {self.change.mean():.3g}; "
            f"KL divergence {self.kl_divergence.mean():.3g} nats on average, at most {self.kl_divergence.max():.3g}\n"
            f"largest changes at rows {rows}\n"
            f"weights moved by at most, in standard deviations, layer by layer: {shifts}"
        )


def diff(
    store: PosteriorStore,
    name: str,
    old: int,
    new: int | None = None,
    *,
    probe: Any,
    engine: str | Engine | None = None,
    network: Any = None,
) -> Difference:
    """What changed between two versions of a model.

    Args:
        store: where the model is.
        name: of the model.
        old: a version.
        new: another; None for the newest.
        probe: inputs to compare the predictions on, (N, inputs).
        engine: to answer on.
        network: see :func:`bayesmlp.load`.

    Raises:
        UnknownModel: no such model or version.
        InvalidInput: a bad probe set.
    """
    before = load(store, name, engine=engine, network=network, version=old)
    x = check_inputs(probe, before.num_inputs, "probe", before.network)
    if len(x) == 0:
        raise InvalidInput("probe must have at least one row")
    return difference(before, load(store, name, engine=engine, network=network, version=new), x)


def difference(old: BayesianMLP, new: BayesianMLP, probe: np.ndarray) -> Difference:
    """What changed between two models, see :class:`Difference`."""
    before, after = old.predict(probe), new.predict(probe)
    p, q = _probabilities(after), _probabilities(before)
    if p is not None and q is not None:
        tiny = np.finfo(np.float64).tiny
        kl = np.sum(p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny))), axis=1)
        moved = np.abs(p - q)
    else:
        ratio = after.variance / before.variance
        each = 0.5 * (ratio - 1 - np.log(ratio) + (after.mean - before.mean) ** 2 / before.variance)
        kl = each.reshape(len(probe), -1).sum(axis=1)
        moved = np.abs(after.mean - before.mean)
    return Difference(before, after, moved.reshape(len(probe), -1).max(axis=1), kl, _weight_shift(old, new))


def _probabilities(answer: Predictive) -> np.ndarray | None:
    """Of classes or levels; None where y is a number."""
    try:
        return answer.probabilities
    except InvalidInput:
        return None


def _weight_shift(old: BayesianMLP, new: BayesianMLP) -> tuple[float | None, ...] | None:
    means, others, variances = old.mean_weights(), new.mean_weights(), old.weight_variances()
    if any(a.shape != b.shape or a.ndim > 2 for a, b in zip(means, others, strict=True)):
        return None
    shifts: list[float | None] = []
    for mean, other, variance in zip(means, others, variances, strict=True):
        uncertain = variance > 0
        moved = np.abs(other - mean)[uncertain] / np.sqrt(variance[uncertain])
        shifts.append(float(moved.max()) if moved.size else None)
    return tuple(shifts)
