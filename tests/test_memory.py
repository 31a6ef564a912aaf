"""Memory: what is kept, what each row stands for, and what rehearsing it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import (
    FRAMEWORKS,
    LIKELIHOODS,
    NETWORK,
    NUM_INPUTS,
    STRUCTURES,
    arrays_for,
    make_inputs,
    make_likelihood_state,
    make_targets,
    on,
    relative_error,
    shapes_of,
)
from dense import jacobian, mean, outputs, precision, split
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import small_model, stream

import bayesmlp as bm
from bayesmlp.inference.assembly import mixture_of
from bayesmlp.inference.engines import get_engine
from bayesmlp.inference.engines.base import take
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.filtering import FilterModel, Posterior
from bayesmlp.inference.likelihoods import Likelihood
from bayesmlp.inference.likelihoods.masked import MaskedTargets, masked
from bayesmlp.inference.memory import MemoryState, NewRows, keep, levelled, source_key
from bayesmlp.inference.remembering import RememberedRows, divergence, outlook, outlook_of, rehearse

HOST = get_engine("numpy", "float64")


# -- the divergence ---------------------------------------------------------------------------------------------------
def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


def test_the_divergence_is_the_kl_of_the_predictions_whatever_y_is() -> None:
    rng = np.random.default_rng(0)
    now, then = rng.standard_normal((2, 6, 3))
    for y in (np.zeros(6, np.int32), np.full(6, 2, np.int32)):
        p, q = softmax(then), softmax(now)
        got = divergence(HOST, bm.Categorical(3), now, then, y, ())
        assert relative_error(got, np.sum(p * np.log(p / q), axis=1)) < 1e-12
    normal = divergence(HOST, bm.Gaussian(3, noise_variance=1.0), now, then, rng.standard_normal((6, 3)), ())
    assert relative_error(normal, 0.5 * np.sum((now - then) ** 2, axis=1)) < 1e-12
    p, q = (1 / (1 + np.exp(-logits[:, :1])) for logits in (then, now))
    yes = divergence(HOST, bm.Bernoulli(), now[:, :1], then[:, :1], np.ones((6, 1)), ())
    assert relative_error(yes, (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))[:, 0]) < 1e-10


def test_the_divergence_of_possible_classes_is_that_of_a_smaller_softmax() -> None:
    now, then = np.random.default_rng(1).standard_normal((2, 4, 3))
    mask = np.tile([True, True, False], (4, 1))
    y = MaskedTargets(np.zeros(4, np.int32), mask)
    got = divergence(HOST, masked(bm.Categorical(3)), now, then, y, ())
    assert relative_error(got, divergence(HOST, bm.Categorical(2), now[:, :2], then[:, :2], y.y, ())) < 1e-12


@pytest.mark.parametrize("likelihood", [bm.StudentT(2), bm.HeteroscedasticGaussian()])
def test_the_divergence_is_bounded_where_tangents_are_crossed(likelihood: Likelihood) -> None:
    rng = np.random.default_rng(3)
    then, y = rng.standard_normal((6, 2)), 3 * rng.standard_normal((6, likelihood.num_targets))
    state = likelihood.initial_state()
    factor = likelihood.fisher_factor(HOST, then, state)
    move = 1e-3 * rng.standard_normal((6, 2))
    second_order = 0.5 * np.sum((factor.swapaxes(1, 2) @ move[:, :, None]) ** 2, axis=(1, 2))
    assert relative_error(divergence(HOST, likelihood, then + move, then, y, state), second_order) < 1e-2
    assert np.all(divergence(HOST, likelihood, then, then, y, state) == 0)
    for scale in (1.0, 10.0, 100.0):
        assert np.all(divergence(HOST, likelihood, then + scale * rng.standard_normal((6, 2)), then, y, state) >= 0)


@pytest.mark.parametrize("likelihood", [bm.StudentT(), bm.HeteroscedasticGaussian()])
@pytest.mark.parametrize("structure", [bm.Full(), bm.Diagonal(), bm.LowRank(5)])
def test_rehearsing_does_not_run_away_where_tangents_are_crossed(likelihood: Likelihood, structure: Any) -> None:
    """Up to step 11 the means of some were at 10⁵ to 10¹⁰."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    y = np.sin(x[:, 0]) + 0.2 * rng.standard_normal(60)
    model = bm.BayesianMLP(
        bm.MLP((20,)), likelihood, structure=structure, memory=bm.Memory(20), engine="numpy", dtype="float64",
        standardize=False,
    )  # fmt: skip
    scores = model.update_each(x, y)
    assert np.max(np.abs(model.predict(x).mean)) < 10
    assert np.mean(scores[-20:]) > -4


def test_leverage_is_the_surprise_that_is_expected() -> None:
    logits = np.random.default_rng(2).standard_normal((5, 3))
    root = np.random.default_rng(3).standard_normal((5, 3, 3))
    covariance = root @ root.transpose(0, 2, 1)
    each = [outlook_of(HOST, bm.Categorical(3), logits, covariance, np.full(5, k, np.int32), ()) for k in range(3)]
    average = sum(softmax(logits)[:, k] * each[k].surprise for k in range(3))
    assert relative_error(average, each[0].leverage) < 1e-12


def test_under_a_bounded_influence_rows_count_as_far_as_they_may() -> None:
    rng = np.random.default_rng(2)
    outputs, root = rng.standard_normal((6, 1)), rng.standard_normal((6, 1, 1))
    covariance, likelihood = root * root, bm.Gaussian(noise_variance=0.3)
    y = outputs + np.array([0.0, 0.5, 1.0, 3.0, 30.0, 300.0])[:, None]
    influence = bm.InverseMultiquadric()
    state = likelihood.initial_state()
    plain = outlook_of(HOST, likelihood, outputs, covariance, y, state)
    bounded = outlook_of(HOST, likelihood, outputs, covariance, y, state, influence)
    own = covariance * likelihood.dispersion(state)
    share = influence.row_factors(HOST, likelihood, outputs, own, y, state).weight
    assert relative_error(bounded.leverage, share * plain.leverage) < 1e-12
    assert relative_error(bounded.surprise[1:], (share**2 * plain.surprise)[1:]) < 1e-12
    assert bounded.surprise[5] < bounded.surprise[4]  # it falls again


@pytest.mark.parametrize("size", [6.0, 50.0])
@pytest.mark.parametrize("noise", [None, 0.1], ids=["learned", "known"])
def test_poison_does_not_fill_a_memory(noise: float | None, size: float) -> None:
    rng = np.random.default_rng(0)
    x, poisoned = rng.standard_normal((400, 2)), rng.random(400) < 0.1
    y = np.sin(x[:, 0]) + 0.3 * rng.standard_normal(400)
    y[poisoned] += 0.3 * size * rng.choice([-1, 1], poisoned.sum())
    model = bm.BayesianMLP(
        bm.MLP((8,)),
        bm.Gaussian() if noise is None else bm.Gaussian(noise_variance=noise),
        structure=bm.Diagonal(),
        influence=bm.InverseMultiquadric(),
        memory=bm.Memory(40),
        engine="numpy",
        standardize=False,
    )
    model.update_each(x, y)
    kept = model.memory_state
    assert kept is not None
    assert np.mean(poisoned[kept.arrival]) <= 0.1


# -- rehearsing -------------------------------------------------------------------------------------------------------
def rehearsed(framework: str, structure: Any, likelihood: Likelihood, drift: float) -> tuple[Any, ...]:
    """A random posterior, before and after it has rehearsed four rows, one of which is padding."""
    engine = get_engine(framework, "float64")
    shapes = shapes_of(likelihood)
    arrays = arrays_for(likelihood, structure, shapes, seed=4)
    x = make_inputs(4, seed=5)
    y = likelihood.prepare(make_targets(likelihood, x, seed=6))
    layers = split(mean(structure, arrays, shapes), shapes)
    now = outputs("tanh", layers, x)
    then = now + drift * np.random.default_rng(7).standard_normal(now.shape)
    weight = np.array([2.0, 0.5, 1.0, 0.0])
    model = FilterModel(NETWORK, likelihood, structure)
    posterior = Posterior(structure.from_arrays(engine, arrays), make_likelihood_state(likelihood, engine))
    rows = RememberedRows(*(engine.as_batch(a) for a in (x, y, then, weight)))
    step = engine.jit(lambda *args: rehearse(engine, model, *args))
    after, seen = step(posterior, rows)
    return arrays, structure.to_arrays(engine, after.weights), layers, (x, y, then, now, weight), engine.fetch(seen)


@pytest.mark.parametrize("framework", on(*FRAMEWORKS))
@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_rehearsing_moves_the_mean_to_the_mode_and_nothing_else(name: str, framework: str) -> None:
    """For normal noise the mode of the linearised model has a closed form."""
    structure = STRUCTURES[name].resolve(3)
    likelihood = LIKELIHOODS["gaussian_known"]
    before, after, layers, (x, _, then, now, weight), seen = rehearsed(framework, structure, likelihood, 1.0)
    shapes = shapes_of(likelihood)
    rows = jacobian("tanh", layers, x).reshape(-1, sum(a * b for a, b in shapes))
    fisher = np.repeat(weight, 2) / 0.3
    dense = precision(structure, before, shapes)
    step = np.linalg.solve(dense + rows.T @ (fisher[:, None] * rows), rows.T @ (fisher * (then - now).reshape(-1)))
    assert relative_error(mean(structure, after, shapes) - mean(structure, before, shapes), step) < 1e-8
    unmoved = [array for array in before if "mean" not in array.split(".")]
    assert unmoved
    assert all(np.array_equal(before[array], after[array]) for array in unmoved)
    assert relative_error(seen.outputs, now) < 1e-10


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_where_nothing_was_forgotten_nothing_moves(name: str) -> None:
    structure = STRUCTURES["diagonal"]
    before, after, *_ = rehearsed("numpy", structure, LIKELIHOODS[name], 0.0)
    assert all(np.allclose(before[array], after[array], rtol=0, atol=1e-12) for array in before)


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "poisson", "ordinal", "heteroscedastic", "student_t"])
def test_rehearsing_brings_predictions_nearer_to_what_they_were(name: str) -> None:
    likelihood, structure = LIKELIHOODS[name], STRUCTURES["full"]
    _, after, _, (x, y, then, now, weight), _ = rehearsed("numpy", structure, likelihood, 1.0)
    shapes = shapes_of(likelihood)
    state = make_likelihood_state(likelihood, HOST)
    moved = outputs("tanh", split(mean(structure, after, shapes), shapes), x)

    def forgotten(seen: np.ndarray) -> float:
        if likelihood.is_concave:
            return float(weight @ divergence(HOST, likelihood, seen, then, y, state))
        factor = likelihood.fisher_factor(HOST, then, state)  # one measure for both, whatever the noise is by now
        return float(weight @ np.sum(np.einsum("nkr,nk->nr", factor, seen - then) ** 2, axis=1))

    assert forgotten(moved) < 0.8 * forgotten(now)


# -- what is kept -----------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_levelled_gives_every_group_as_much_as_it_can(counts: list[int], room: int) -> None:
    kept = levelled(np.array(counts), room)
    assert kept.sum() == min(room, sum(counts))
    assert np.all((kept >= 0) & (kept <= counts))
    short = [k for k, c in zip(kept, counts, strict=True) if k < c]
    assert not short or max(kept) <= min(short) + 1


def offered(rows: int, first: int = 0, classes: int = 3, weight: float = 1.0) -> NewRows:
    """Rows of rising worth, of one class after the other."""
    index = first + np.arange(rows)
    mask = np.ones((rows, 3), bool)
    blank = np.zeros((rows, 3))
    return NewRows(
        index[:, None] * 1.0, index % classes, mask, np.full(rows, weight), blank, np.zeros(rows), index * 1.0
    )


def filled(memory: bm.Memory, *offers: tuple[NewRows, str]) -> MemoryState:
    state = None
    for rows, source in offers:
        state = keep(memory, state, rows, source_key(source))
    assert state is not None
    return state


def test_the_worthiest_rows_are_kept_evenly_over_classes_and_sources() -> None:
    state = filled(bm.Memory(size=12), (offered(60), "a"), (offered(60, 60), "b"))
    assert state.num_rows == 12
    for source, top in (("a", 60), ("b", 120)):
        own = state.x[state.source == source_key(source), 0]
        assert sorted(own) == list(range(top - 6, top))
    assert np.all(np.bincount(state.y) == 4)


def test_a_source_has_its_bound_and_what_is_kept_stands_for_what_was_sent() -> None:
    state = filled(bm.Memory(size=50, per_source=6), (offered(60), "a"), (offered(30, 60, weight=2.0), "b"))
    assert [int(np.sum(state.source == source_key(s))) for s in "ab"] == [6, 6]
    for source, total in (("a", 60.0), ("b", 60.0)):
        assert state.stands_for[state.source == source_key(source)].sum() == pytest.approx(total)


def test_rows_without_weight_are_not_kept() -> None:
    assert filled(bm.Memory(), (offered(5, weight=0.0), "a")).num_rows == 0


def test_all_rows_have_their_turn() -> None:
    state = filled(bm.Memory(size=20), (offered(60), "a"))
    turns = [state._replace(counts=np.array([60, update])).turn(6) for update in range(10)]
    assert all(len(set(turn)) == 6 for turn in turns)
    assert {int(index) for turn in turns for index in turn} == set(range(20))


@pytest.mark.parametrize(
    ("options", "name"),
    [({"size": 0}, "size"), ({"per_source": 0}, "per_source"), ({"rehearsed": -1}, "rehearsed"),
     ({"strength": 0.0}, "strength"), ({"surprise": 1.5}, "surprise")],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidInput, match=f"Memory.{name}"):
        bm.Memory(**options)


# -- models -----------------------------------------------------------------------------------------------------------
def with_memory(engine: str = "numpy", **options: Any) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP((8,), "tanh"), bm.Categorical(3), structure=bm.Diagonal(), engine=engine, standardize=False,
        memory=bm.Memory(**{"size": 12, "rehearsed": 3} | options), dtype="float64",
    )  # fmt: skip
    model.start_from_prior(4)
    return model


def taught(model: bm.BayesianMLP, rows: int = 40) -> bm.BayesianMLP:
    x, y = stream(rows)
    for start in range(0, rows, 5):
        part = slice(start, start + 5)
        model.update(x[part], y[part], source="odd" if start % 2 else "even")
    return model


def test_every_engine_keeps_and_rehearses_the_same() -> None:
    models = [taught(with_memory(framework)) for framework in FRAMEWORKS]
    first = models[0].to_arrays()
    assert first["memory.x"].shape == (12, 4)
    for other in models[1:]:
        arrays = other.to_arrays()
        assert arrays.keys() == first.keys()
        assert all(np.allclose(arrays[name], first[name], rtol=1e-7, atol=1e-9) for name in first)


def test_a_model_takes_its_memory_along() -> None:
    model = taught(with_memory())
    copy = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "numpy")
    assert copy.memory == model.memory
    x, y = stream(5, seed=9)
    for one in (model, copy):
        one.update(x, y)
    first, second = model.to_arrays(), copy.to_arrays()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_update_each_is_one_update_after_the_other() -> None:
    (x, y), one, other = stream(12), with_memory(), with_memory()
    one.update_each(x, y, source="a")
    for row in range(12):
        other.update(x[row : row + 1], y[row : row + 1], source="a")
    first, second = one.to_arrays(), other.to_arrays()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_masks_are_remembered() -> None:
    model, (x, _) = with_memory(size=6), stream(10)
    model.update(x, np.zeros(10, int), output_mask=np.array([True, True, False]))
    assert model.memory_state is not None
    assert not model.memory_state.mask[:, 2].any()
    model.update(x, np.zeros(10, int), output_mask=np.array([True, False, True]))
    assert model.memory_state.num_rows == 6


def test_a_fit_fills_the_memory() -> None:
    pytest.importorskip("torch")
    x, y = stream(60)
    model = with_memory("torch").fit(x, y, method=bm.Laplace(bm.TrainingOptions(epochs=2)))
    assert model.memory_state is not None
    assert model.memory_state.stands_for.sum() == pytest.approx(60)


def test_a_failed_update_leaves_the_memory() -> None:
    model = taught(with_memory())
    before = model.memory_state
    with pytest.raises(InvalidInput):
        model.update(np.full((1, 4), np.nan), [0])
    assert model.memory_state is before


def test_hypotheses_have_no_memory() -> None:
    with pytest.raises(
        InvalidInput, match="memory is for static dynamics or one rate of forgetting, not for ChangePoint"
    ):
        bm.BayesianMLP(
            bm.MLP((8,)), bm.Categorical(3), structure=bm.Diagonal(), dynamics=bm.ChangePoint(), memory=bm.Memory(),
            engine="numpy",
        )  # fmt: skip


# -- mixtures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", on(*FRAMEWORKS))
def test_members_rehearse_each_on_its_own(framework: str) -> None:
    engine, likelihood, structure = get_engine(framework, "float64"), LIKELIHOODS["categorical"], STRUCTURES["full"]
    shapes, rng = shapes_of(likelihood), np.random.default_rng(3)
    x = make_inputs(4, seed=5)
    y = likelihood.prepare(make_targets(likelihood, x, seed=6))
    arrays = [arrays_for(likelihood, structure, shapes, seed=seed) for seed in (4, 5, 6)]
    members = [
        Posterior(structure.from_arrays(engine, own), make_likelihood_state(likelihood, engine)) for own in arrays
    ]
    then, weight = rng.standard_normal((4, 3, 3)), np.array([2.0, 0.5, 1.0, 0.0])
    shares = np.array([0.2, 0.5, 0.3])
    model = FilterModel(NETWORK, likelihood, bm.Mixture(structure, 3))
    mixture = mixture_of(engine, members, np.log(shares))
    rows = RememberedRows(*(engine.as_batch(a) for a in (x, y, then, weight)))
    after, seen = engine.jit(lambda *args: rehearse(engine, model, *args))(mixture, rows)
    looked = engine.fetch(engine.jit(lambda *args: outlook(engine, model, *args))(mixture, rows.x, rows.y))
    seen, leverage = engine.fetch(seen), np.zeros(4)
    for index, member in enumerate(members):
        own = rows._replace(outputs=engine.as_batch(then[:, index]))
        alone, looks = engine.jit(lambda *args: rehearse(engine, model.of_one, *args))(member, own)
        expected = structure.to_arrays(engine, alone.weights)
        got = structure.to_arrays(engine, take(after.weights.members, index))
        assert all(relative_error(got[name], expected[name]) < 1e-9 for name in expected)
        assert relative_error(seen.outputs[:, index], engine.fetch(looks).outputs) < 1e-10
        assert relative_error(seen.log_prob[:, index], engine.fetch(looks).log_prob) < 1e-10
        leverage = leverage + shares[index] * engine.fetch(looks).leverage
    assert relative_error(seen.leverage, leverage) < 1e-9
    assert all(relative_error(a, b) < 1e-9 for a, b in zip(looked, seen, strict=True))


def grid_with_memory(engine: str, scales: tuple[float, ...], prune_below: float = -2.0) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP((8,), "tanh"), bm.Categorical(3), structure=bm.EvidenceGrid(bm.Diagonal(), scales, (1.0,), prune_below),
        engine=engine, standardize=False, memory=bm.Memory(size=12, rehearsed=3), dtype="float64",
    )  # fmt: skip
    model.start_from_prior(4)
    return model


def test_a_mixture_of_one_remembers_as_that_one_alone() -> None:
    one, alone = taught(grid_with_memory("numpy", (1.0,))).to_arrays(), taught(with_memory()).to_arrays()
    assert one["memory.outputs"].shape == (12, 1, 3)
    for name, array in alone.items():
        member = one[name if name in one else name.replace("weights.", "weights.members.")]
        assert np.allclose(member.reshape(array.shape), array, rtol=1e-9, atol=1e-12), name


def test_members_that_are_pruned_leave_the_memory_too() -> None:
    models = [taught(grid_with_memory(framework, (0.1, 1.0, 3.0, 30.0)), 120) for framework in FRAMEWORKS]
    first = models[0].to_arrays()
    left = len(first["weights.log_weights"])
    assert left < 4
    assert first["memory.outputs"].shape == (12, left, 3)
    assert first["memory.log_prob"].shape == (12, left)
    for other in models[1:]:
        arrays = other.to_arrays()
        assert all(np.allclose(arrays[name], first[name], rtol=1e-6, atol=1e-8) for name in first)


def test_a_reopened_mixture_has_the_memory_that_it_had(tmp_path: Path) -> None:
    x, y = stream(60)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", grid_with_memory("numpy", (0.1, 1.0, 3.0, 30.0)))
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=25) as updater:
            for row in range(60):
                updater.observe(x[row], y[row], event_id=f"e{row}")
            updater.retract(["e3", "e4"])
            digest = updater.digest()
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            assert updater.digest() == digest


def test_an_ensemble_remembers() -> None:
    pytest.importorskip("torch")
    x, y = stream(60)
    model = with_memory("torch").fit(x, y, method=bm.Ensemble(bm.Laplace(bm.TrainingOptions(epochs=2)), 3))
    assert model.memory_state is not None
    assert model.memory_state.outputs.shape == (12, 3, 3)
    before = model.memory_state.outputs.copy()
    taught(model)
    assert not np.array_equal(model.memory_state.outputs, before)


def test_other_settings_leave_the_memory() -> None:
    model = taught(with_memory())
    for other in (model.with_settings(dynamics=bm.Forgetting(0.99)), model.with_settings(step=bm.LaplaceStep())):
        first, second = model.memory_state, other.memory_state
        assert first is not None
        assert second is not None
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_dynamics_come_before_filters_are_pruned() -> None:
    model = taught(grid_with_memory("numpy", (0.1, 1.0, 3.0, 30.0)), 120)
    with pytest.raises(InvalidInput, match="dynamics must be given while every filter of the grid is there"):
        model.with_settings(dynamics=bm.Forgetting(0.99))


def test_one_pass_with_a_memory_is_nearer_to_a_fit_of_all_rows() -> None:
    """Of a network that is far from linear: the mean of 5 streams, in nats a row."""
    scores: dict[str, list[float]] = {"without": [], "with": []}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-2, 2, (300, 1))
        y = np.sin(3 * x[:, 0]) + 0.05 * rng.standard_normal(300)
        for name, memory in (("without", None), ("with", bm.Memory(60))):
            model = bm.BayesianMLP(
                bm.MLP((30,), "tanh"), bm.Gaussian(noise_window=50), structure=bm.EvidenceGrid(bm.Full(), (1.0, 2.0)),
                engine="numpy", standardize=False, memory=memory, seed=seed,
            )  # fmt: skip
            model.update_each(x[:200], y[:200])
            scores[name].append(float(-np.mean(model.predict(x[200:]).log_prob(y[200:]))))
    assert np.mean(scores["with"]) < np.mean(scores["without"]) - 0.1, scores


def test_a_memory_keeps_what_a_second_task_overwrites() -> None:
    """Two tasks on one network: the same inputs with the labels of the other half of the plane in another corner."""

    def task(centre: float, flip: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((400, NUM_INPUTS))
        return np.column_stack([x, np.full(400, centre)]), (x[:, 0] > 0).astype(int) ^ int(flip)

    accuracies = {}
    for memory in (None, bm.Memory(40)):
        model = bm.BayesianMLP(
            bm.MLP((20, 20)), bm.Categorical(2), structure=bm.Diagonal(), engine="numpy", standardize=False,
            memory=memory,
        )  # fmt: skip
        first, second = task(-1.0, False, 0), task(1.0, True, 1)
        for source, (x, y) in (("first", first), ("second", second)):
            for start in range(0, 400, 10):
                model.update(x[start : start + 10], y[start : start + 10], source=source)
        held = [task(-1.0, False, 2), task(1.0, True, 3)]
        accuracies[memory] = [float(np.mean(model.predict(x).probabilities.argmax(1) == y)) for x, y in held]
    assert min(accuracies[bm.Memory(40)]) > min(accuracies[None]) + 0.02, accuracies
    assert min(accuracies[bm.Memory(40)]) > 0.9, accuracies


# -- in a store -------------------------------------------------------------------------------------------------------
def test_a_retraction_leaves_a_memory_that_never_held_the_event(tmp_path: Path) -> None:
    x, y = stream(40)
    digests = []
    for name, left_out in (("with", ()), ("without", (3, 17))):
        with bm.open_store(tmp_path / "s.db") as store:
            store.publish(name, with_memory())
            with bm.OnlineUpdater(store, name, engine="numpy", snapshot_every=15) as updater:
                for row in range(40):
                    if row not in left_out:
                        updater.observe(x[row], y[row], event_id=f"e{row}", source=f"s{row % 3}")
                if not left_out:
                    updater.retract(["e3", "e17"])
                digests.append(updater.digest())
    assert digests[0] == digests[1]


def test_a_reopened_updater_has_the_memory_that_it_had(tmp_path: Path) -> None:
    x, y = stream(30)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", with_memory())
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=1000) as updater:
            updater.observe_many(x[:20], y[:20], source="a")
            updater.observe_batch(x[20:], y[20:], source="b")
            digest, kept = updater.digest(), updater.model.to_arrays()
            assert set(kept["memory.sources"]) == {source_key("a"), source_key("b")}
            updater._closed = True  # as after a crash: no snapshot is written
            updater._writer.release()
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            assert updater.digest() == digest


def test_a_model_without_a_memory_is_stored_as_before() -> None:
    model = small_model()
    assert "memory" not in model.spec()
    assert not any(name.startswith("memory") for name in model.to_arrays())
