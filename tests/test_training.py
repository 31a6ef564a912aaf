"""The training loop: which rows a step sees, what is held out, what is kept, and what the schedules are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dense
import numpy as np
import pytest
from cases import LINEAR, make_inputs, make_targets, on, relative_error

import bayesmlp as bm
from bayesmlp.inference.engines import get_engine
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.methods import FitProblem
from bayesmlp.inference.objective import Parameters
from bayesmlp.inference.steps import Adam, Optimizer, StepState
from bayesmlp.inference.training import Trained, TrainingOptions, start_parameters, train

pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")

TORCH = get_engine("torch", "float64")
ROWS = 100
NOISE = 0.3


@dataclass(frozen=True)
class Recorder(Optimizer):
    """Adam, and a list of what each of its steps was given and what came out of it."""

    rows: list[np.ndarray] = field(default_factory=list)
    numbers: list[np.ndarray] = field(default_factory=list)
    means: list[np.ndarray] = field(default_factory=list)

    def memory(self, problem: FitProblem, parameters: Parameters, prior: Any, variational: Sequence[bool]) -> Any:
        return Adam().memory(problem, parameters, prior, variational)

    def step(self, problem: FitProblem, variational: Sequence[bool], rows: np.ndarray) -> Any:
        own = Adam().step(problem, variational, rows)
        number = {float(first): index for index, first in enumerate(TORCH.to_numpy(problem.x)[:, 0])}

        def recorded(state: StepState, batch: Sequence[Any], key: Any, numbers: Any) -> Any:
            state, report = own(state, batch, key, numbers)
            self.rows.append(np.vectorize(number.__getitem__)(TORCH.to_numpy(batch[0])[..., 0]))
            self.numbers.append(TORCH.to_numpy(numbers))
            self.means.append(TORCH.to_numpy(state.parameters.mean[0]))
            return state, report

        return recorded


def problem_of(rows: int = ROWS, seed: int = 0) -> FitProblem:
    """A linear model with known noise."""
    likelihood = bm.Gaussian(noise_variance=NOISE)
    x = make_inputs(rows, seed=140)
    return FitProblem(
        engine=TORCH,
        network=LINEAR,
        likelihood=likelihood,
        structure=bm.Diagonal().resolve(1),
        prior=bm.NormalPrior(),
        x=TORCH.asarray(x),
        y=TORCH.asarray(likelihood.prepare(make_targets(likelihood, x, seed=141))),
        weight=np.ones(rows),
        seed=seed,
    )


def run(
    options: TrainingOptions, problem: FitProblem, rows: np.ndarray | None = None, variational: bool = False
) -> tuple[Trained, Recorder]:
    """Training of one network, or of one for each line of the rows, from starts of their own."""
    recorder = Recorder()
    rows = np.arange(len(problem.weight)) if rows is None else rows
    starts = [
        start_parameters(problem, [0.1 if variational else None], seed)
        for seed in range(1 if rows.ndim == 1 else len(rows))
    ]
    precision = TORCH.asarray(problem.prior_precision[0])
    if rows.ndim == 2:
        stacked = TORCH.xp.stack([start.mean[0] for start in starts])
        start, precision = Parameters((stacked,), (), ()), TORCH.xp.stack([precision] * len(rows))
    else:
        start = starts[0]
    return train(problem, start, (precision,), [variational], options, recorder, rows), recorder


def log_probs(problem: FitProblem, mean: np.ndarray) -> np.ndarray:
    """Log p(y | weights) of every row, by hand."""
    x, y = TORCH.to_numpy(problem.x), TORCH.to_numpy(problem.y)
    return dense.log_prob(problem.likelihood, dense.outputs("tanh", [mean], x), y)


# -- rows -------------------------------------------------------------------------------------------------------------
def test_an_epoch_sees_every_row_once_in_a_new_order() -> None:
    _, seen = run(TrainingOptions(epochs=3, batch_size=20), problem_of())
    epochs = np.stack(seen.rows).reshape(3, ROWS)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(ROWS), (3, 1)))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("members", [1, 3])
def test_held_out_rows_never_enter_a_batch(members: int) -> None:
    problem = problem_of()
    rng = np.random.default_rng(142)
    rows = np.stack([rng.permutation(ROWS)[:60] for _ in range(members)])
    rows = rows[0] if members == 1 else rows
    trained, seen = run(TrainingOptions(epochs=40, batch_size=8, validation=0.2), problem, rows)
    assert trained.validation
    batches = np.stack(seen.rows).reshape(-1, members, 8)
    scores = []
    for member, own in enumerate(np.atleast_2d(rows)):
        learned_from = set(batches[:, member].ravel())
        held_out = set(own) - learned_from
        assert learned_from < set(own)
        assert len(held_out) == 12
        last = seen.means[-1] if members == 1 else seen.means[-1][member]
        scores.append(log_probs(problem, last)[sorted(held_out)].mean())
    assert trained.validation[-1][0] == 39
    np.testing.assert_allclose(trained.validation[-1][1], np.mean(scores), rtol=1e-10)


def test_members_learn_from_their_own_rows() -> None:
    """As they would alone, to rounding: all rows in one batch, so that their order does not matter."""
    problem, options = problem_of(), TrainingOptions(epochs=40, batch_size=60, learning_rate=0.05)
    rows = np.stack([np.arange(60), np.arange(40, 100)])
    together, _ = run(options, problem, rows)
    for member, own in enumerate(rows):
        start = start_parameters(problem, [None], member)
        precision = (TORCH.asarray(problem.prior_precision[0]),)
        alone = train(problem.only(own), start, precision, [False], options, Adam(), np.arange(60))
        got, expected = together.parameters.mean[0][member], alone.parameters.mean[0]
        assert relative_error(TORCH.to_numpy(got), TORCH.to_numpy(expected)) < 1e-10


# -- what is kept -----------------------------------------------------------------------------------------------------
WILD = TrainingOptions(epochs=30, batch_size=16, learning_rate=0.5, validation=0.2)
"""So fast that later epochs are not the better ones."""


def test_the_best_epoch_is_kept() -> None:
    trained, seen = run(WILD, problem_of())
    steps = len(seen.means) // 30
    scores = [score for _, score in trained.validation]
    best = int(np.argmax(scores))
    assert [epoch for epoch, _ in trained.validation] == list(range(30))
    assert best < 29
    np.testing.assert_array_equal(TORCH.to_numpy(trained.parameters.mean[0]), seen.means[(best + 1) * steps - 1])


def test_every_member_keeps_its_own_best_epoch() -> None:
    problem = problem_of()
    rows = np.stack([np.random.default_rng(143).permutation(ROWS) for _ in range(4)])
    trained, seen = run(WILD, problem, rows)
    steps = len(seen.means) // 30
    ends = np.stack(seen.means[steps - 1 :: steps])
    epochs = []
    for member, own in enumerate(rows):
        learned_from = np.stack(seen.rows)[:, member].ravel()
        held_out = np.setdiff1d(own, learned_from)
        scores = [log_probs(problem, mean[member])[held_out].mean() for mean in ends]
        epochs.append(int(np.argmax(scores)))
        np.testing.assert_array_equal(TORCH.to_numpy(trained.parameters.mean[0][member]), ends[epochs[-1], member])
    assert len(set(epochs)) > 1


def test_patience_ends_the_training() -> None:
    whole, _ = run(WILD, problem_of())
    scores = [score for _, score in whole.validation]
    patient, _ = run(TrainingOptions(**{**vars(WILD), "patience": 3}), problem_of())
    first = next(e for e in range(3, 30) if max(scores[: e - 2]) >= max(scores[e - 2 : e + 1]))
    assert first < 29
    assert len(patient.history) == first + 1
    assert patient.validation == whole.validation[: first + 1]


def test_rows_that_weigh_nothing_are_not_held_out() -> None:
    """Their score would be 0 at every look, and the first look the best."""
    weight = np.zeros(ROWS)
    weight[:20] = 1.0
    problem = replace(problem_of(), weight=weight)
    rows = np.stack([np.arange(ROWS), np.arange(ROWS)[::-1]])
    trained, seen = run(WILD, problem, rows)
    for member in range(2):
        held_out = np.setdiff1d(np.arange(ROWS), np.stack(seen.rows)[:, member].ravel())
        assert np.isin(np.arange(20, ROWS), held_out, invert=True).all()
    assert len({score for _, score in trained.validation}) > 1
    with pytest.raises(InvalidInput, match=r"TrainingOptions.validation must hold out at least one .* got 0.2 of 1"):
        run(WILD, replace(problem_of(), weight=np.arange(ROWS) == 3.0))


def test_long_trainings_look_a_hundred_times() -> None:
    trained, _ = run(TrainingOptions(epochs=250, batch_size=ROWS, validation=0.1), problem_of())
    epochs = [epoch for epoch, _ in trained.validation]
    assert epochs == [*range(1, 250, 2)]
    assert len(trained.history) == 250


# -- schedules --------------------------------------------------------------------------------------------------------
def test_the_weight_of_the_divergence_rises_over_its_share_of_the_steps() -> None:
    options = TrainingOptions(epochs=4, batch_size=10, kl_warmup=0.5)
    _, seen = run(options, problem_of(), variational=True)
    weights = np.stack(seen.numbers)[:, 1]
    np.testing.assert_allclose(weights, np.minimum(1, np.arange(1, 41) / 20), rtol=1e-12)
    _, plain = run(TrainingOptions(epochs=1, batch_size=10), problem_of(), variational=True)
    np.testing.assert_array_equal(np.stack(plain.numbers)[:, 1], 1.0)


@pytest.mark.parametrize(
    ("rows", "steps", "size"),
    [(20, 75, 20), (200, 3000, 32), (300, 300, 75), (400, 75, 256)],
    ids=["all", "at_least_32", "75_passes", "at_most_256"],
)
def test_the_size_of_a_batch_follows_the_number_of_rows(rows: int, steps: int, size: int) -> None:
    _, seen = run(TrainingOptions(steps=steps), problem_of(rows))
    assert {batch.shape for batch in seen.rows} == {(size,)}
    per_epoch = rows // size
    assert steps <= len(seen.rows) < steps + per_epoch


# -- what a user sees -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_a_row_of_weight_two_is_fitted_as_two(engine: str) -> None:
    """With all rows in a batch; Adam does not mind that the objective is per row."""
    x = make_inputs(40, seed=144)
    y = make_targets(bm.Gaussian(), x, seed=145)
    weight = np.where(np.arange(40) < 10, 2.0, 1.0)
    twice = np.repeat(np.arange(40), weight.astype(int))
    models = []
    for rows, own in ((np.arange(40), weight), (twice, None)):
        method = bm.Laplace(TrainingOptions(epochs=60, batch_size=len(rows), learning_rate=0.02))
        model = bm.BayesianMLP(
            bm.MLP((4,)), bm.Gaussian(), structure=bm.Full(), engine=engine, dtype="float64", standardize=False
        )
        models.append(model.fit(x[rows], y[rows], method=method, weight=own))
    weighted, repeated = (model.to_arrays() for model in models)
    for name, array in repeated.items():
        assert relative_error(weighted[name], array) < 1e-5, name
