"""Several kinds of feedback on one network: exact answers, and the way through updater and log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
from cases import NUM_INPUTS, STRUCTURES, make_inputs, on
from scipy import optimize, special

import bayesmlp as bm
from bayesmlp.inference.engines import get_engine
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.kinds import View

FEEDBACK: dict[str, Any] = {
    "label": bm.Categorical(3),
    "rating": bm.Kind(bm.Ordinal(4), outputs=3),
    "preference": bm.Kind(bm.BradleyTerry(), outputs=(3,)),
    "choice": bm.Kind(bm.Choice(), outputs=(3,)),
    "thumbs": bm.Kind(bm.Bernoulli(), outputs=(4,)),
    "value": bm.Kind(bm.Gaussian(), outputs=(5,)),
}
NETWORK = bm.MLP((4,), "tanh")


def hearing(framework: str = "numpy", *, feedback: Any = None, **options: Any) -> bm.BayesianMLP:
    model = bm.BayesianMLP(NETWORK, feedback=feedback or FEEDBACK, engine=framework, dtype="float64", **options)
    model.start_from_prior(NUM_INPUTS)
    return model


# -- views ------------------------------------------------------------------------------------------------------------
VIEWS = {
    "outputs": View(NETWORK, 3, (2, 0)),
    "pair": View(NETWORK, 3, (1,), 2, True),
    "items": View(NETWORK, 3, (1,), 4),
}


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
@pytest.mark.parametrize("name", [*VIEWS])
def test_factors_of_a_view_are_its_jacobian(name: str, framework: str) -> None:
    view, engine = VIEWS[name], get_engine(framework, "float64")
    weights = view.initialise(NUM_INPUTS, 0, seed=1)
    x = np.concatenate([make_inputs(3, seed=i) for i in range(view.items)], axis=1)
    host = get_engine("numpy", "float64")
    with engine.scope():
        own = tuple(engine.asarray(w) for w in weights)
        outputs, factors = view.factors(engine, own, engine.asarray(x))
        got = [engine.to_numpy(factor.dense(engine)) for factor in factors]
    np.testing.assert_allclose(engine.to_numpy(outputs), view.apply(host, weights, x), rtol=1e-12)
    whole = NETWORK.apply(host, weights, x.reshape(-1, NUM_INPUTS))
    if name == "outputs":
        np.testing.assert_allclose(engine.to_numpy(outputs), whole[:, [2, 0]], rtol=1e-12)
    elif name == "pair":
        np.testing.assert_allclose(engine.to_numpy(outputs)[:, 0], whole[::2, 1] - whole[1::2, 1], rtol=1e-12)
    for layer, jacobian in enumerate(got):
        for place in np.ndindex(weights[layer].shape):
            moved = [w.copy() for w in weights]
            moved[layer][place] += 1e-6
            slope = (view.apply(host, tuple(moved), x) - view.apply(host, weights, x)) / 1e-6
            column = np.ravel_multi_index(place, weights[layer].shape)
            np.testing.assert_allclose(jacobian[:, :, column], slope, atol=1e-4)


# -- exact answers ----------------------------------------------------------------------------------------------------
def linear(feedback: Any, framework: str = "numpy") -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP(()),
        feedback=feedback,
        structure=bm.Full(),
        step=bm.LaplaceStep(),
        engine=framework,
        dtype="float64",
    )
    model.start_from_prior(NUM_INPUTS)
    return model


def gaussian_of(model: bm.BayesianMLP, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a linear model's weights, in the users' units."""
    arrays = model.to_arrays()
    shapes = bm.MLP(()).shapes(NUM_INPUTS, num_outputs)
    root = arrays["weights.covariance_root"]
    phi = float(model.likelihood.dispersion(model.posterior.likelihood[0]))
    return dense.flatten([arrays["weights.mean.0"]]) if shapes else root[0], root @ root.T * phi


def test_two_gaussian_kinds_of_known_noise_are_one_regression() -> None:
    """Of unlike precision on unlike outputs: exact ridge regression for each."""
    kinds = {
        "coarse": bm.Kind(bm.Gaussian(noise_variance=2.0), (0,)),
        "fine": bm.Kind(bm.Gaussian(noise_variance=0.1), (0,)),
    }
    model = linear(kinds)
    mean, covariance = gaussian_of(model, 1)
    x, y = make_inputs(6, seed=0), make_inputs(6, seed=1)[:, 0]
    model.update(x[:3], y[:3])
    model.update(x[3:], y[3:], kind="fine")
    rows = np.concatenate([x, np.ones((6, 1))], axis=1)
    precision = np.diag(np.repeat([1 / 2.0, 1 / 0.1], 3))
    expected = np.linalg.inv(np.linalg.inv(covariance) + rows.T @ precision @ rows)
    got_mean, got = gaussian_of(model, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    target = np.linalg.solve(covariance, mean) + rows.T @ precision @ y
    np.testing.assert_allclose(got_mean, expected @ target, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_a_kind_beside_learned_noise_sees_the_weights_in_their_own_units(framework: str) -> None:
    """A yes on the utility of a regression: mode and curvature of prior and logistic likelihood, in true units."""
    kinds = {"value": bm.Gaussian(prior_shape=2.0, prior_rate=5.0), "thumbs": bm.Kind(bm.Bernoulli(), (0,))}
    model = linear(kinds, framework)
    x = make_inputs(1, seed=0)
    mean, covariance = gaussian_of(model, 1)
    row = np.concatenate([x[0], [1.0]])
    info = model.update(x, [1], kind="thumbs")
    spread = row @ covariance @ row
    location = row @ mean

    def negative(u: float) -> float:
        return float(0.5 * (u - location) ** 2 / spread - np.log(special.expit(u)))

    mode = optimize.minimize_scalar(negative, options={"xtol": 1e-12}).x
    got_mean, got = gaussian_of(model, 1)
    np.testing.assert_allclose(row @ got_mean, mode, rtol=1e-6)
    p = special.expit(mode)
    np.testing.assert_allclose(row @ got @ row, 1 / (1 / spread + p * (1 - p)), rtol=1e-6)
    nodes = np.linspace(-12, 12, 20001)
    density = np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
    predictive = np.trapezoid(density * special.expit(location + np.sqrt(spread) * nodes), nodes)
    assert info.log_predictive == pytest.approx(np.log(predictive), rel=1e-6)
    np.testing.assert_allclose(
        linear(kinds, framework).predict(x, kind="thumbs").probabilities[:, 1], predictive, rtol=1e-6
    )
    assert info.information == pytest.approx(
        0.5 * (np.log(spread / (row @ got @ row)) - 1 + (row @ got @ row + (mode - location) ** 2) / spread), rel=1e-5
    )


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_a_preference_is_the_pairwise_networks_step(framework: str) -> None:
    """The same posterior as a model whose network takes pairs."""
    kinds = {"thumbs": bm.Bernoulli(), "preference": bm.BradleyTerry()}
    pair = make_inputs(2, seed=1).reshape(1, -1)
    structures = (bm.Full(), bm.Diagonal(), bm.LowRank(3), bm.LastLayer())
    for structure in structures if framework == "numpy" else structures[2:3]:
        single = bm.BayesianMLP(NETWORK, feedback=kinds, structure=structure, engine=framework, dtype="float64")
        single.start_from_prior(NUM_INPUTS)
        pairwise = bm.BayesianMLP(
            bm.PairwiseMLP((4,), "tanh"), bm.BradleyTerry(), structure=structure, engine=framework, dtype="float64"
        )
        pairwise.start_from_prior(2 * NUM_INPUTS)
        infos = single.update(pair, [1], kind="preference"), pairwise.update(pair, [1])
        np.testing.assert_allclose(infos[0].log_predictive, infos[1].log_predictive, rtol=1e-9)
        for got, expected in zip(single.mean_weights(), pairwise.mean_weights(), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
        for got, expected in zip(single.weight_variances(), pairwise.weight_variances(), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_choice_is_the_mode_of_the_multinomial_logit() -> None:
    kinds = {"thumbs": bm.Bernoulli(), "choice": bm.Choice()}
    model = linear(kinds)
    mean, covariance = gaussian_of(model, 1)
    shown = make_inputs(4, seed=2)
    model.update(shown.reshape(1, -1), [2], kind="choice")
    rows = np.concatenate([shown, np.ones((4, 1))], axis=1)
    precision = np.linalg.inv(covariance)

    def negative(weights: np.ndarray) -> float:
        utility = rows @ weights
        return float(0.5 * (weights - mean) @ precision @ (weights - mean) - utility[2] + special.logsumexp(utility))

    mode = optimize.minimize(negative, mean, tol=1e-12).x
    got_mean, got = gaussian_of(model, 1)
    np.testing.assert_allclose(got_mean, mode, atol=1e-5)
    p = special.softmax(rows @ got_mean)
    expected = np.linalg.inv(precision + rows.T @ (np.diag(p) - np.outer(p, p)) @ rows)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


def test_two_shown_is_a_preference() -> None:
    kinds = {"thumbs": bm.Bernoulli(), "choice": bm.Choice(), "preference": bm.BradleyTerry()}
    one, other = linear(kinds), linear(kinds)
    pair = make_inputs(2, seed=2).reshape(1, -1)
    one.update(pair, [0], kind="choice")
    other.update(pair, [1], kind="preference")
    np.testing.assert_allclose(gaussian_of(one, 1)[0], gaussian_of(other, 1)[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gaussian_of(one, 1)[1], gaussian_of(other, 1)[1], rtol=1e-9, atol=1e-12)


def test_the_first_kind_alone_is_the_model_of_its_likelihood() -> None:
    x, y = make_inputs(3, seed=0), [0, 2, 1]
    plain = bm.BayesianMLP(NETWORK, bm.Categorical(3), engine="numpy", dtype="float64")
    kinds = bm.BayesianMLP(
        NETWORK, feedback={"label": bm.Categorical(3), "thumbs": bm.Bernoulli()}, engine="numpy", dtype="float64"
    )
    assert plain.update(x, y) == kinds.update(x, y, kind="label")
    np.testing.assert_array_equal(plain.predict(x).probabilities, kinds.predict(x).probabilities)


def test_a_kind_leaves_outputs_that_it_does_not_observe_alone() -> None:
    """With independent last-layer weights."""
    model = hearing(structure=bm.LastLayer(last=bm.Diagonal(), hidden=bm.Point()))
    before = model.mean_weights()[-1].copy()
    for kind, y, column in (("rating", [3], 3), ("thumbs", [1], 4), ("value", [0.7], 5)):
        model.update(make_inputs(1, seed=0), y, kind=kind)
        after = model.mean_weights()[-1].copy()
        changed = np.flatnonzero((after != before).any(axis=0))
        assert changed.tolist() == [column], kind
        before = after


# -- every structure, fits, mixtures ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*STRUCTURES, "mixture"])
def test_every_structure_hears_every_kind(name: str) -> None:
    structure: Any = bm.Mixture(bm.Diagonal(), 2) if name == "mixture" else STRUCTURES[name]
    structure = bm.LastLayer(bm.Full(), bm.Kronecker()) if name == "blocks" else structure
    model = hearing(structure=structure)
    x = make_inputs(8, seed=0)
    for kind, rows, y in (
        ("rating", x[:2], [0, 3]),
        ("preference", x[:2].reshape(1, -1), [1]),
        ("choice", x[:6].reshape(2, -1), [2, 0]),
        ("thumbs", x[:3], [1, 0, 1]),
        ("value", x[:2], [0.3, -2.0]),
        ("label", x[:2], [2, 0]),
    ):
        predicted = model.predict(rows, kind=kind).log_prob(y).sum()
        info = model.update(rows, y, kind=kind)
        if name != "mixture" and len(rows) == 1:
            assert info.log_predictive == pytest.approx(predicted, rel=1e-8)
        assert info.information > 0
        again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "numpy")
        for key, array in model.to_arrays().items():
            np.testing.assert_array_equal(array, again.to_arrays()[key])


def test_learned_noise_of_a_kind_is_part_of_the_posterior() -> None:
    model = hearing()
    before = model.to_arrays()
    model.update(make_inputs(1, seed=0), [3.0], kind="value")
    after = model.to_arrays()
    assert after["likelihood.value.0"] == before["likelihood.value.0"] + 0.5
    assert after["likelihood.value.1"] > before["likelihood.value.1"]


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_a_fit_is_of_the_first_kind_and_the_others_go_on_from_it(framework: str) -> None:
    x = make_inputs(30, seed=0)
    model = bm.BayesianMLP(NETWORK, feedback=FEEDBACK, engine=framework)
    method = bm.Laplace(bm.TrainingOptions(epochs=5))
    model.fit(x, (x[:, 0] > 0).astype(int), method=method)
    assert model.predict(x).probabilities.shape == (30, 3)
    assert model.update(x[:1], [3], kind="rating").information > 0
    assert model.predict(x[:4].reshape(2, -1), kind="preference").probabilities.shape == (2, 2)


# -- the updater ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_every_kind_is_kept_and_replayed_to_the_same_digest(tmp_path: Path, framework: str) -> None:
    x = make_inputs(9, seed=0)
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("m", hearing(framework))
        with bm.OnlineUpdater(store, "m", engine=framework) as updater:
            updater.observe(x[0], 2, event_id="label", kind="label")
            updater.observe(x[0], 2, event_id="plain", propensity=0.25)
            updater.observe(x[1], 3, event_id="rating", kind="rating", weight=0.5, source="anna", time=12.5)
            updater.observe_batch(x[:3], [1, 0, 1], event_id="thumbs", kind="thumbs")
            updater.observe_many(x[:2], [0.1, 0.2], event_ids=["v0", "v1"], kind="value")
            updater.prefer(better=x[2], worse=x[3], event_id="pair", source="bob", weight=2.0)
            updater.choose(shown=x[4:8], chosen=1, propensity=0.2, event_id="choice", time=3.0)
            answer = updater.predict(x[8], kind="rating")
            assert answer.prediction_id is not None
            updater.feedback(answer.prediction_id, 1, kind="rating")
            assert updater.choose(shown=x[4:8], chosen=1, propensity=0.2, event_id="choice", time=3.0).repeated
            with pytest.raises(bm.errors.ConflictingEvent):
                updater.choose(shown=x[4:8], chosen=2, propensity=0.2, event_id="choice", time=3.0)
            digest, version = updater.digest(), updater.version
            updater.prefer(better=x[3], worse=x[2], event_id="wrong", source="carl")
            assert updater.digest() != digest
            updater.retract(source="carl")
            assert updater.digest() == digest
        loaded = bm.load(store, "m", engine=framework, version=version)
        direct = hearing(framework)
        for rows, y, options in (
            (x[:1], [2], {}),
            (x[:1], [2], {}),
            (x[1:2], [3], {"kind": "rating", "weight": [0.5]}),
            (x[:3], [1, 0, 1], {"kind": "thumbs"}),
            (x[:1], [0.1], {"kind": "value"}),
            (x[1:2], [0.2], {"kind": "value"}),
            (x[2:4].reshape(1, -1), [1], {"kind": "preference", "weight": [2.0]}),
            (x[4:8].reshape(1, -1), [1], {"kind": "choice"}),
            (x[8:], [1], {"kind": "rating"}),
        ):
            direct.update(rows, y, **options)
        for name, array in direct.to_arrays().items():
            np.testing.assert_allclose(loaded.to_arrays()[name], array, rtol=1e-9, atol=1e-12)


def test_kinds_are_checked_by_name(tmp_path: Path) -> None:
    x = make_inputs(4, seed=0)
    for arguments, message in (
        ({}, "either a likelihood or feedback"),
        ({"likelihood": bm.Bernoulli(), "feedback": FEEDBACK}, "either a likelihood or feedback"),
        ({"feedback": {}}, "feedback must map names to observation models"),
        ({"feedback": {"a b": bm.Bernoulli()}}, "names that are identifiers, got 'a b'"),
        ({"feedback": {"a": 3}}, r"feedback\['a'\] must be a likelihood, a Choice\(\) or a Kind"),
        ({"feedback": {"a": bm.Choice()}}, "the first kind of feedback must be of single items"),
    ):
        with pytest.raises(InvalidInput, match=message):
            bm.BayesianMLP(NETWORK, engine="numpy", **arguments)
    with pytest.raises(InvalidInput, match=r"Kind\.outputs must name 3 different outputs"):
        bm.Kind(bm.Categorical(3), (0, 1))
    with pytest.raises(InvalidInput, match=r"Kind\.likelihood must be a likelihood"):
        bm.Kind(3)
    model = hearing()
    for kind, rows, y, message in (
        ("stars", x[:1], [1], "kind must be one that the model hears .label, rating, .*, got 'stars'"),
        ("rating", x[:1], [9], "y must be a level from 0 to 3, got 9"),
        ("preference", x[:1], [1], "x must hold two items of 2 inputs in each row, got 2 numbers"),
        ("choice", x[:2].reshape(1, -1), [2], "y must be a class from 0 to 1, got 2"),
        ("choice", x[:1], [0], "x must hold at least two items of 2 inputs"),
    ):
        with pytest.raises(InvalidInput, match=message):
            model.update(rows, y, kind=kind)
        with pytest.raises(InvalidInput, match=message):
            published(tmp_path).observe(rows, y, kind=kind)
    updater = published(tmp_path)
    for call, message in (
        (lambda: updater.prefer(better=x[0], worse=x[1], kind="rating"), "kind must name one BradleyTerry"),
        (lambda: updater.prefer(better=x[0, :1], worse=x[1]), "better must have shape"),
        (lambda: updater.prefer(better=x[:2], worse=x[1]), "better must be one item, got 2 rows"),
        (lambda: updater.prefer(better=x[0], worse=x[:3]), "worse must be one item, got 3 rows"),
        (lambda: updater.choose(shown=x[:1], chosen=0), "shown must be at least two items"),
        (lambda: updater.choose(shown=x, chosen=4), "chosen must be a place among those shown, from 0 to 3, got 4"),
        (lambda: updater.choose(shown=x, chosen=-1), "chosen must be a place .* got -1"),
        (lambda: updater.choose(shown=x, chosen=True), "chosen must be a place .* got True"),
        (lambda: updater.choose(shown=x, chosen=0, propensity=0.0), "propensity must be a probability above 0"),
    ):
        with pytest.raises(InvalidInput, match=message):
            call()


_UPDATERS: dict[Path, bm.OnlineUpdater] = {}


def published(folder: Path) -> bm.OnlineUpdater:
    """An updater of a model with all kinds."""
    if folder not in _UPDATERS:
        store = bm.open_store(folder / "store.db")
        store.publish("m", hearing())
        _UPDATERS[folder] = bm.OnlineUpdater(store, "m", engine="numpy")
    return _UPDATERS[folder]
