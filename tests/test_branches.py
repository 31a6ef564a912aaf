"""Branches: posteriors over a shared one, merged into it again and brought up to date with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import STRUCTURES, make_inputs, make_targets
from sqlalchemy import func, select
from store_cases import Places, small_model, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.inference.structures import Structure
from bayesmlp.scaling import Scaling
from bayesmlp.store.database import blobs, parts
from bayesmlp.store.digest import posterior_digest
from bayesmlp.store.writer import Writer

WORKERS = [f"m/{i}" for i in range(4)]


def linear_model(structure: Structure, noise_variance: float | None, inputs: int = 3) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP(()),
        bm.Gaussian(noise_variance=noise_variance),
        structure=structure,
        engine="numpy",
        dtype="float64",
        standardize=False,
    )
    model.start_from_prior(inputs)
    return model


def linear_stream(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.8], [0, 0, 1]])
    return x, 100 + x @ [1.0, -2.0, 0.5] + 0.3 * rng.standard_normal(rows)


def learned(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray) -> bm.BayesianMLP:
    for a, b in zip(x, y, strict=True):
        model.update(a[None], [b])
    return model


def observe(store: bm.PosteriorStore, name: str, x: Any, y: Any, ids: Sequence[str] | None = None) -> None:
    with bm.OnlineUpdater(store, name, engine=bm.load(store, name, engine="numpy").engine) as updater:
        updater.observe_many(x, y, event_ids=ids)


def covariance(model: bm.BayesianMLP) -> np.ndarray:
    """Of the weights of a linear model, by what it predicts at unit inputs."""
    size = model.num_inputs
    points = np.concatenate([np.zeros((1, size)), np.eye(size)])
    return model.joint_outputs(points).covariance


def digest_of(store: bm.PosteriorStore, name: str, version: int | None = None) -> str:
    model = bm.load(store, name, engine="numpy", version=version)
    return posterior_digest(model.spec(), model.to_arrays())


def assert_same_posterior(model: bm.BayesianMLP, other: bm.BayesianMLP, tolerance: float) -> None:
    for mine, theirs in zip(model.mean_weights(), other.mean_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(covariance(model), covariance(other), atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(model.posterior.likelihood, other.posterior.likelihood, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=tolerance)


# -- exactness --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise_variance", [0.09, None], ids=["known noise", "learned noise"])
@pytest.mark.parametrize("structure", [bm.Full(), bm.LowRank(4)], ids=str)
def test_four_workers_of_a_linear_model_merge_to_the_single_stream(
    places: Places, structure: Structure, noise_variance: float | None
) -> None:
    x, y = linear_stream(140)
    store = places.open()
    store.publish("m", linear_model(structure, noise_variance))
    observe(store, "m", x[:20], y[:20])
    store.branch("m", WORKERS)
    for i, name in enumerate(WORKERS):
        observe(store, name, x[20 + 25 * i : 45 + 25 * i], y[20 + 25 * i : 45 + 25 * i])
    observe(store, "m", x[120:], y[120:])
    version = store.merge("m", WORKERS)
    single = learned(linear_model(structure, noise_variance), x, y)
    assert_same_posterior(bm.load(store, "m", engine="numpy"), single, 1e-8)
    assert store.history("m")[-1].kind == "merge"
    assert store.history("m")[-1].version == version
    assert store.verify() == []


def test_a_diagonal_posterior_merges_to_the_sum_of_its_precisions(tmp_path: Path) -> None:
    x, y = linear_stream(60)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", linear_model(bm.Diagonal(), 0.09))
    store.branch("m", WORKERS[:2])
    for i, name in enumerate(WORKERS[:2]):
        observe(store, name, x[30 * i : 30 * i + 30], y[30 * i : 30 * i + 30])
    fork, *ends = (bm.load(store, name, engine="numpy").to_arrays() for name in ("m", *WORKERS[:2]))
    store.merge("m", WORKERS[:2], how="delta")
    merged = bm.load(store, "m", engine="numpy").to_arrays()
    precision = ends[0]["weights.precision.0"] + ends[1]["weights.precision.0"] - fork["weights.precision.0"]
    shifted = sum(a["weights.precision.0"] * a["weights.mean.0"] for a in ends)
    shifted = shifted - fork["weights.precision.0"] * fork["weights.mean.0"]
    np.testing.assert_allclose(merged["weights.precision.0"], precision, rtol=1e-12)
    np.testing.assert_allclose(merged["weights.mean.0"], shifted / precision, rtol=1e-10, atol=1e-10)
    single = learned(linear_model(bm.Diagonal(), 0.09), x, y).to_arrays()
    np.testing.assert_allclose(merged["weights.precision.0"], single["weights.precision.0"], rtol=1e-12)


def test_merges_pulls_and_branches_of_branches_end_at_the_single_stream(places: Places) -> None:
    x, y = linear_stream(120)
    store = places.open()
    store.publish("m", linear_model(bm.Full(), None))

    def take(name: str, start: int) -> None:
        observe(store, name, x[start : start + 10], y[start : start + 10])

    store.branch("m", "m/a")
    take("m/a", 0)
    store.branch("m/a", "m/a/b")
    take("m/a/b", 10)
    take("m", 20)
    store.merge("m", ["m/a"])
    take("m/a", 30)
    store.merge("m/a", ["m/a/b"])
    take("m", 40)
    store.pull("m/a")  # the parent has the first ten of it already
    expected = learned(linear_model(bm.Full(), None), x[:50], y[:50])
    assert_same_posterior(bm.load(store, "m/a", engine="numpy"), expected, 1e-8)
    take("m/a", 50)
    store.pull("m/a/b")
    take("m/a/b", 60)
    store.merge("m/a", ["m/a/b"])
    store.merge("m", ["m/a"])
    expected = learned(linear_model(bm.Full(), None), x[:70], y[:70])
    assert_same_posterior(bm.load(store, "m", engine="numpy"), expected, 1e-8)
    head = store.history("m")[-1].version
    assert store.merge("m", ["m/a"]) == head  # nothing is merged twice
    assert store.pull("m/a") > 0
    assert store.merge("m", ["m/a"]) == head
    assert store.pull("m/a") == store.history("m/a")[-1].version
    assert store.verify() == []


def test_a_merge_by_replay_is_the_stream_in_order_of_time(places: Places) -> None:
    x, y = linear_stream(40)
    store = places.open()
    store.publish("m", linear_model(bm.Diagonal(), None))
    store.branch("m", WORKERS[:2])
    for i, name in enumerate(WORKERS[:2]):
        with bm.OnlineUpdater(store, name, engine="numpy") as updater:
            for row in range(i, 40, 2):
                updater.observe(x[row], y[row], event_id=f"e{row}", time=1e9 + row, source=f"s{i}", weight=0.5)
    version = store.merge("m", WORKERS[:2], how="replay")
    single = linear_model(bm.Diagonal(), None)
    for a, b in zip(x, y, strict=True):
        single.update(a[None], [b], weight=[0.5])
    model = bm.load(store, "m", engine="numpy")
    assert_same_posterior(model, single, 1e-12)
    history = store.history("m")
    assert [entry.event_id for entry in history[1:4]] == ["m/0:e0", "m/1:e1", "m/0:e2"]
    assert {entry.status for entry in history[1:-1]} == {"applied"}
    assert history[2].source == "s1"
    assert store.merge("m", WORKERS[:2], how="replay") == version
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        before = updater.digest()
        assert updater.version == version
        updater.retract(["m/0:e0"])
    assert digest_of(store, "m") != before


def test_replayed_again_after_a_rollback_each_event_counts_once(tmp_path: Path) -> None:
    x, y = linear_stream(12)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", linear_model(bm.Full(), None))
    store.branch("m", "m/0")
    observe(store, "m/0", x, y)
    store.merge("m", ["m/0"], how="replay")
    once = digest_of(store, "m")
    store.rollback("m", 1)
    store.merge("m", ["m/0"], how="replay")
    assert digest_of(store, "m") == once


def two_of_a_branch(folder: Path) -> tuple[bm.PosteriorStore, np.ndarray, np.ndarray]:
    """A linear model and its branch, which has learned the first two of some rows."""
    x, y = linear_stream(5)
    store = bm.open_store(folder / "store.db")
    store.publish("m", linear_model(bm.Full(), 0.09))
    store.branch("m", "b")
    observe(store, "b", x[:2], y[:2], ["e1", "e2"])
    return store, x, y


def assert_learned(store: bm.PosteriorStore, name: str, x: np.ndarray, y: np.ndarray) -> None:
    expected = learned(linear_model(bm.Full(), 0.09), x, y)
    assert_same_posterior(bm.load(store, name, engine="numpy"), expected, 1e-8)


@pytest.mark.parametrize("kept", [2, 3])
def test_what_was_merged_event_by_event_counts_once_after_a_rollback_into_it(tmp_path: Path, kept: int) -> None:
    store, x, y = two_of_a_branch(tmp_path)
    store.merge("m", ["b"], how="replay")
    store.rollback("m", kept)
    store.merge("m", ["b"])
    assert_learned(store, "m", x[:2], y[:2])
    observe(store, "b", x[2:4], y[2:4], ["e3", "e4"])
    observe(store, "m", x[4:], y[4:])
    store.pull("b")
    assert_learned(store, "b", x, y)
    store.merge("m", ["b"])
    assert_learned(store, "m", x, y)
    assert store.verify() == []


def test_what_was_merged_event_by_event_is_not_merged_by_posteriors_too(tmp_path: Path) -> None:
    store, x, y = two_of_a_branch(tmp_path)
    store.merge("m", ["b"], how="replay")
    store.rollback("m", 3)
    observe(store, "m", x[2:3], y[2:3])
    observe(store, "b", x[3:4], y[3:4])
    for attempt in (lambda: store.merge("m", ["b"], how="delta"), lambda: store.pull("b", how="delta")):
        with pytest.raises(
            errors.InvalidInput, match="'delta' is not for what was merged event by event, as version 2"
        ):
            attempt()
    store.pull("b")
    assert_learned(store, "b", x[:4], y[:4])


def test_merged_again_after_a_rollback_what_was_retracted_stays_out(tmp_path: Path) -> None:
    store, x, y = two_of_a_branch(tmp_path)
    store.merge("m", ["b"], how="replay")
    store.rollback("m", 1)
    store.merge("m", ["b"], how="replay")
    again = [entry.event_id for entry in store.history("m")][5:7]
    assert again == ["b:e1@6", "b:e2@6"]
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.purge(["b:e1@6"])
    store.rollback("m", 1)
    with pytest.raises(errors.InvalidInput, match="how='delta' is not for what the parent has retracted, as version 2"):
        store.merge("m", ["b"], how="delta")
    store.merge("m", ["b"])
    assert_learned(store, "m", x[1:2], y[1:2])
    assert [entry.event_id for entry in store.history("m") if entry.status == "applied"] == ["b:e2@11"]
    assert store.verify() == []


@pytest.mark.parametrize("how", [None, "replay"])
def test_what_the_parent_retracted_stays_in_the_branch_until_it_is_retracted_there(
    tmp_path: Path, how: str | None
) -> None:
    store, x, y = two_of_a_branch(tmp_path)
    store.merge("m", ["b"], how="replay")
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.retract(["b:e1"])
    with pytest.raises(errors.InvalidInput, match="how='delta' is not for what the parent has retracted, as version 2"):
        store.pull("b", how="delta")
    for row in (2, 3):
        store.pull("b", how=how)
        assert_learned(store, "b", x[:row], y[:row])
        assert {entry.status for entry in store.history("b") if entry.event_id} == {"applied"}
        observe(store, "m", x[row : row + 1], y[row : row + 1])
    observe(store, "b", x[4:], y[4:], ["e3"])
    store.merge("m", ["b"], how=how)
    assert_learned(store, "m", x[1:], y[1:])
    with bm.OnlineUpdater(store, "b", engine="numpy") as updater:
        updater.retract(["e1"])
    store.pull("b", how="replay")
    assert_learned(store, "b", x[1:], y[1:])


def test_events_of_branches_whose_names_and_ids_run_together_are_told_apart(tmp_path: Path) -> None:
    x, y = linear_stream(5)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", linear_model(bm.Full(), 0.09))
    store.branch("m", ["a", "a:b"])
    observe(store, "m", x[4:], y[4:], ["a:d"])
    observe(store, "a", x[[0, 1]], y[[0, 1]], ["b:c", "d"])
    observe(store, "a:b", x[[0, 3]], y[[0, 3]], ["c", "x" * 199])
    store.merge("m", ["a", "a:b"], how="replay")
    rows = [4, 0, 1, 0, 3]
    assert_learned(store, "m", x[rows], y[rows])
    ids = {entry.event_id for entry in store.history("m")}
    assert {"a:b:c", "a:b:c@3", "a:d", "a:d@3"} <= ids
    store.rollback("m", 2)
    store.merge("m", ["a"], how="replay")
    assert_learned(store, "m", x[rows[:3]], y[rows[:3]])
    store.merge("m", ["a:b"], how="replay")
    assert_learned(store, "m", x[rows], y[rows])
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.retract([entry.event_id for entry in store.history("m") if entry.status == "applied"][1:])
    assert_learned(store, "m", x[4:], y[4:])
    store.rollback("m", 2)
    store.merge("m", ["a", "a:b"])
    assert_learned(store, "m", x[4:], y[4:])
    assert store.verify() == []


def test_what_merges_of_an_earlier_version_brought_is_known_by_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Writer.append

    def as_before(writer: Writer, new: Sequence[Any], done: Any = None) -> Any:
        """Without what a merge says of its events."""
        without = [{k: v for k, v in one.items() if k != "events"} for one in new[-1].body["branches"]]
        return append(writer, [*new[:-1], new[-1]._replace(body={**new[-1].body, "branches": without})], done)

    store, x, y = two_of_a_branch(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "append", as_before)
        store.merge("m", ["b"], how="replay")
    store.rollback("m", 1)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "append", as_before)
        store.merge("m", ["b"], how="replay")
    store.rollback("m", 6)
    store.merge("m", ["b"])
    assert_learned(store, "m", x[:2], y[:2])
    assert [e.event_id for e in store.history("m") if e.status == "applied"] == ["b:e1@6", "b:e2@10"]


def branched(folder: Path, kinds: dict[str, Any]) -> bm.PosteriorStore:
    """A store with a model of several kinds of feedback, "m", and a branch of it, "b"."""
    model = bm.BayesianMLP(bm.MLP((4,)), feedback=kinds, engine="numpy", standardize=False)
    model.start_from_prior(4)
    store = bm.open_store(folder / "store.db")
    store.publish("m", model)
    store.branch("m", "b")
    return store


@pytest.mark.parametrize(
    ("classes", "inputs", "what"), [(3, 3, "x must have shape"), (2, 4, "y must"), (None, 4, "kind must")]
)
def test_a_merge_of_events_that_the_parent_can_not_learn_stores_nothing(
    tmp_path: Path, classes: int | None, inputs: int, what: str
) -> None:
    x, _ = stream(2)
    store = branched(tmp_path, {"label": bm.Categorical(3), "stars": bm.Kind(bm.Ordinal(3), outputs=3)})
    with bm.OnlineUpdater(store, "b", engine="numpy") as updater:
        updater.observe(x[0], 2, event_id="e1")
        if classes is None:
            updater.observe(x[0], 2, event_id="e2", kind="stars")
    other = bm.BayesianMLP(bm.MLP((4,)), bm.Categorical(classes or 3), engine="numpy", standardize=False)
    other.start_from_prior(inputs)
    version = store.publish("m", other)
    with pytest.raises(errors.InvalidInput, match=rf"event 'b:e\d' can't be learned by 'm' as it is now: {what}"):
        store.merge("m", ["b"], how="replay")
    assert store.history("m")[-1].version == version
    assert digest_of(store, "m")


@pytest.mark.parametrize("how", [None, "delta", "replay"])
@pytest.mark.parametrize("what", ["network", "scaling", "structure"])
def test_a_branch_does_not_take_over_a_parent_of_another_kind(tmp_path: Path, what: str, how: str | None) -> None:
    def model(activation: str = "tanh", unit: float = 1.0, rank: int = 2) -> bm.BayesianMLP:
        network, structure = bm.MLP((4,), activation), bm.LowRank(rank)
        made = bm.BayesianMLP(network, bm.Categorical(3), structure=structure, engine="numpy", standardize=False)
        plain = Scaling.identity(4, 3)
        made.start_from_prior(4, plain._replace(input_scale=unit * plain.input_scale))
        return made

    x, y = stream(2)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", model())
    store.branch("m", "b")
    observe(store, "b", x, y)
    before = store.history("b"), digest_of(store, "b")
    others: dict[str, dict[str, Any]] = {
        "network": {"activation": "relu"}, "scaling": {"unit": 3.0}, "structure": {"rank": 3}
    }  # fmt: skip
    store.publish("m", model(**others[what]))
    with pytest.raises(errors.InvalidInput, match=f"'b' can't go on from 'm', which differs from it in its {what}"):
        store.pull("b", how=how)
    assert (store.history("b"), digest_of(store, "b")) == before
    if what == "scaling":
        with pytest.raises(errors.InvalidInput, match="differs in its scaling: use how='replay'"):
            store.merge("m", ["b"], how="delta")


def test_a_branch_with_a_memory_or_of_the_last_layer_alone_takes_over_its_parent(tmp_path: Path) -> None:
    x, y = stream(9)
    store = bm.open_store(tmp_path / "store.db")
    for name, options in (("memory", {"memory": bm.Memory(20)}), ("last", {"structure": bm.LastLayer()})):
        model = bm.BayesianMLP(bm.MLP((4,)), bm.Categorical(3), engine="numpy", standardize=False, **options)
        model.start_from_prior(4)
        store.publish(name, model)
        store.branch(name, f"{name}/b", learn="last" if name == "last" else "all")
        observe(store, name, x[:4], y[:4])
        observe(store, f"{name}/b", x[4:6], y[4:6])
        store.pull(f"{name}/b", how="replay")
        observe(store, name, x[6:], y[6:])
        store.pull(f"{name}/b", how="replay")
        expected = bm.load(store, name, engine="numpy")
        branch = bm.load(store, f"{name}/b", engine="numpy")
        if name == "memory":
            assert digest_of(store, f"{name}/b") == digest_of_model(learned(expected, x[4:6], y[4:6]))
        else:
            np.testing.assert_array_equal(branch.mean_weights()[0], expected.mean_weights()[0])


def digest_of_model(model: bm.BayesianMLP) -> str:
    return posterior_digest(model.spec(), model.to_arrays())


def test_what_branches_tell_in_every_way_is_merged_by_replay(tmp_path: Path) -> None:
    x, _ = stream(6)
    kinds = {
        "label": bm.Categorical(3),
        "stars": bm.Kind(bm.Ordinal(4), outputs=3),
        "wins": bm.Kind(bm.BradleyTerry(), outputs=3),
    }
    store = branched(tmp_path, kinds)
    with bm.OnlineUpdater(store, "b", engine="numpy") as updater:
        updater.observe(x[0], 2, weight=0.5, time=1e9, propensity=0.25)
        updater.observe(x[1], 1, output_mask=[True, True, False])
        updater.observe_batch(x[2:4], [0, 1], weight=[1.0, 0.0])
        updater.observe(x[4], 3, kind="stars")
        updater.observe(np.concatenate([x[4], x[5]]), 1, kind="wins")
        answer = updater.predict(x[5])
        updater.feedback(str(answer.prediction_id), 1, event_id="f")
        told = [entry.status for entry in updater.history()[1:]]
    store.merge("m", ["b"])
    assert [entry.status for entry in store.history("m")[1:-1]] == told == ["applied"] * 6
    assert digest_of(store, "m") == digest_of(store, "b")
    assert store.verify() == []


# -- positive definite ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
@pytest.mark.parametrize("likelihood", [bm.Gaussian(), bm.Categorical(3)], ids=["gaussian", "categorical"])
def test_any_network_merges_to_a_positive_definite_posterior(
    tmp_path: Path, likelihood: Any, structure: Structure, dtype: str
) -> None:
    rng = np.random.default_rng(5)
    x = make_inputs(90, seed=1) * np.exp(rng.standard_normal((90, 1)))
    y = make_targets(likelihood, x, seed=2)
    model = bm.BayesianMLP(
        bm.MLP((4, 3), "tanh"), likelihood, structure=structure, engine="numpy", dtype=dtype, standardize=False
    )
    model.start_from_prior(2)
    store = bm.open_store(tmp_path / "store.db", durability="normal")
    store.publish("m", model)
    observe(store, "m", x[:10], y[:10])
    store.branch("m", WORKERS)
    for i, name in enumerate(WORKERS):
        observe(store, name, x[10 + 20 * i : 30 + 20 * i], y[10 + 20 * i : 30 + 20 * i])
    before = bm.load(store, "m", engine="numpy")
    store.merge("m", WORKERS, how="delta")
    merged = bm.load(store, "m", engine="numpy")
    variances = np.concatenate([v.ravel() for v in merged.weight_variances()])
    assert np.all(np.isfinite(variances))
    assert np.all(variances > 0)
    structure = merged.filter_model.structure
    with merged.engine.scope():
        gained = structure.log_determinant(merged.engine, merged.posterior.weights)
        gained = gained - structure.log_determinant(merged.engine, before.posterior.weights)
    assert float(gained) > 0
    joint = merged.joint_outputs(x[:6]).covariance
    assert np.linalg.eigvalsh(joint).min() > -1e-4 * np.linalg.eigvalsh(joint).max()
    observe(store, "m", x[:5], y[:5])  # it learns on
    assert {entry.status for entry in store.history("m")[-5:]} == {"applied"}


# -- what is stored ---------------------------------------------------------------------------------------------------
def wide_model(last: Structure | None = None) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP((120, 120), "tanh"),
        bm.Categorical(3),
        structure=bm.LastLayer(last or bm.Diagonal()),
        engine="numpy",
        dtype="float32",
        standardize=False,
    )
    model.start_from_prior(4)
    return model


def stored_bytes(store: bm.PosteriorStore) -> tuple[int, int]:
    """Number of blobs and how many bytes they take in the database."""
    with store.read() as connection:
        count, size = connection.execute(select(func.count(), func.sum(func.length(blobs.c.data)))).one()
        return int(count), int(size or 0)


def test_a_branch_of_the_last_layer_stores_nothing_else(places: Places) -> None:
    x, y = stream(12)
    store = places.open()
    store.publish("m", wide_model())
    before = stored_bytes(store)
    store.branch("m", ["m/0", "m/1"], learn="last")
    assert stored_bytes(store) == before
    observe(store, "m/0", x[:6], y[:6])
    count, size = stored_bytes(store)
    own = bm.load(store, "m/0", engine="numpy").to_arrays()
    parent = bm.load(store, "m", engine="numpy").to_arrays()
    moved = {name for name, array in own.items() if not np.array_equal(array, parent[name])}
    assert moved == {"weights.1.mean.0", "weights.1.precision.0"}
    assert count == before[0] + 1
    assert size - before[1] < 20_000 < parent["weights.0.mean.1"].nbytes
    store.merge("m", ["m/0"], how="delta")
    merged = bm.load(store, "m", engine="numpy").to_arrays()
    assert {name for name, array in merged.items() if not np.array_equal(array, parent[name])} == moved


def test_a_frozen_block_widens_what_the_others_learn_from(tmp_path: Path) -> None:
    """The consider filter, against its dense equations."""
    x, y = linear_stream(1)
    model = bm.BayesianMLP(
        bm.MLP((3,), "tanh"),
        bm.Gaussian(noise_variance=0.2),
        structure=bm.LastLayer(bm.Full(), bm.Diagonal()),
        engine="numpy",
        dtype="float64",
        standardize=False,
    )
    model.start_from_prior(3)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", model)
    store.branch("m", "m/0", learn="last")
    branch = bm.load(store, "m/0", engine="numpy")
    outputs = model.predict(x[:1], method="linearized")
    hidden = np.tanh(np.append(x[0], 1.0) @ model.mean_weights()[0])
    row = np.append(hidden, 1.0)
    (_, prior), mean = model.weight_variances(), model.mean_weights()[1]
    spread = float(outputs.epistemic_variance[0]) + 0.2
    residual = (y[0] - float(outputs.mean[0])) / spread
    branch.update(x[:1], y[:1])
    np.testing.assert_allclose(branch.mean_weights()[1], mean + prior * row[:, None] * residual, rtol=1e-10)
    np.testing.assert_array_equal(branch.mean_weights()[0], model.mean_weights()[0])
    np.testing.assert_array_equal(branch.weight_variances()[0], model.weight_variances()[0])

    expected = np.linalg.inv(np.diag(1 / prior[:, 0]) + np.outer(row, row) / 0.2)
    np.testing.assert_allclose(branch.weight_variances()[1][:, 0], np.diag(expected), rtol=1e-10)


def test_opening_many_branches_reads_the_shared_arrays_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", wide_model())
    store.branch("m", [f"m/{i}" for i in range(5)], learn="last")
    read: list[str] = []
    original: Callable[..., Any] = store.snapshots.blobs.read

    def noted(connection: Any, name: str) -> Any:
        read.append(name)
        return original(connection, name)

    monkeypatch.setattr(store.snapshots.blobs, "read", noted)
    x, y = stream(5)
    for i in range(5):
        with bm.OnlineUpdater(store, f"m/{i}", engine="numpy") as updater:
            updater.observe(x[i], y[i])
    with store.read() as connection:
        large = set(connection.execute(select(parts.c.blob).group_by(parts.c.blob).having(func.count() > 5)).scalars())
    shared = [name for name in read if name in large]
    small = 1  # of the shared blobs, one holds the small arrays: it is read each time
    assert len(shared) <= len(large) - small + 5
    assert len(store.compiled._steps._kept) == 2  # the parent's, on which nothing was learned, and the branches'
    assert store.verify() == []


# -- taking back ------------------------------------------------------------------------------------------------------
def merged_pair(places: Places) -> tuple[bm.PosteriorStore, np.ndarray, np.ndarray]:
    x, y = linear_stream(30)
    store = places.open()
    store.publish("m", linear_model(bm.Full(), None))
    observe(store, "m", x[:10], y[:10], [f"p{i}" for i in range(10)])
    store.branch("m", "m/0")
    observe(store, "m/0", x[10:20], y[10:20], [f"b{i}" for i in range(10)])
    store.merge("m", ["m/0"])
    return store, x, y


def test_a_retraction_before_a_merge_takes_it_out_and_it_is_made_again(places: Places) -> None:
    store, x, y = merged_pair(places)
    observe(store, "m", x[20:], y[20:])
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.retract(["p3"])
    assert [entry.status for entry in store.history("m") if entry.kind == "merge"] == ["retracted"]
    without = [i for i in range(10) if i != 3] + list(range(20, 30))
    expected = learned(linear_model(bm.Full(), None), x[without], y[without])
    assert_same_posterior(bm.load(store, "m", engine="numpy"), expected, 1e-8)
    store.merge("m", ["m/0"])
    without += list(range(10, 20))
    expected = learned(linear_model(bm.Full(), None), x[without], y[without])
    assert_same_posterior(bm.load(store, "m", engine="numpy"), expected, 1e-8)
    assert store.verify() == []


def test_an_event_that_was_merged_is_retracted_once_the_merge_is_taken_out(places: Places) -> None:
    store, x, y = merged_pair(places)
    version = store.history("m")[-1].version
    with bm.OnlineUpdater(store, "m/0", engine="numpy") as updater:
        before = updater.digest()
        with pytest.raises(errors.StoreError, match=rf"into 'm' \(version {version}\).*unmerge\('m', {version}\)"):
            updater.retract(["b3"])
        assert updater.digest() == before
    store.unmerge("m", version)
    assert_same_posterior(
        bm.load(store, "m", engine="numpy"), learned(linear_model(bm.Full(), None), x[:10], y[:10]), 1e-12
    )
    with bm.OnlineUpdater(store, "m/0", engine="numpy") as updater:
        updater.retract(["b3"])
    store.merge("m", ["m/0"])
    kept = [i for i in range(20) if i != 13]
    expected = learned(linear_model(bm.Full(), None), x[kept], y[kept])
    assert_same_posterior(bm.load(store, "m", engine="numpy"), expected, 1e-8)
    assert store.verify() == []
    with pytest.raises(errors.InvalidInput, match=f"version must be of a merge .* got {version}"):
        store.unmerge("m", version)


def test_a_branch_that_went_back_behind_what_was_merged_is_told_so(places: Places) -> None:
    store, x, y = merged_pair(places)
    version = store.history("m")[-1].version
    store.rollback("m/0", 5)
    observe(store, "m/0", x[20:22], y[20:22])
    with pytest.raises(errors.StoreError, match=rf"version {version} of 'm' merged what 'm/0' has since"):
        store.merge("m", ["m/0"])
    store.unmerge("m", version)
    store.merge("m", ["m/0"])
    kept = [*range(14), 20, 21]
    expected = learned(linear_model(bm.Full(), None), x[kept], y[kept])
    assert_same_posterior(bm.load(store, "m", engine="numpy"), expected, 1e-8)


def test_what_was_not_learned_when_it_was_merged_is_retracted_from_the_branch(tmp_path: Path) -> None:
    x, y = linear_stream(4)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", linear_model(bm.Full(), 0.09))
    observe(store, "m", x[:2], y[:2])
    store.branch("m", "b")
    strict = bm.Admission(quarantine_above=50.0)
    with bm.OnlineUpdater(store, "b", engine="numpy", admission=strict) as updater:
        updater.observe(x[2], 1e4, event_id="bad")
        updater.observe(x[2], 2e4, event_id="late")
        updater.observe(x[3], y[3], event_id="ok")
        merged = store.merge("m", ["b"])
        updater.release(["late"])
        with pytest.raises(errors.StoreError, match=rf"'b' was merged into 'm' \(version {merged}\)"):
            updater.retract(["bad", "ok"])
        updater.retract(["bad", "late"])
    store.merge("m", ["b"])
    assert_learned(store, "m", x[[0, 1, 3]], y[[0, 1, 3]])


def test_a_pull_after_a_merge_that_no_longer_counts_is_told_so(tmp_path: Path) -> None:
    store, x, y = merged_pair(Places(tmp_path))
    version = store.history("m")[-1].version
    pulled = store.pull("m/0")
    store.rollback("m", version - 1)
    observe(store, "m/0", x[20:22], y[20:22])
    with pytest.raises(errors.StoreError, match=rf"'m/0' was pulled \(version {pulled}\) after the merge of version"):
        store.merge("m", ["m/0"])
    store.unmerge("m/0", pulled)
    store.merge("m", ["m/0"])
    expected = learned(linear_model(bm.Full(), None), x[:22], y[:22])
    assert_same_posterior(bm.load(store, "m", engine="numpy"), expected, 1e-8)
    store.close()


def test_a_rollback_behind_a_merge_lets_it_be_made_again(places: Places) -> None:
    store, _, _ = merged_pair(places)
    once = digest_of(store, "m")
    store.rollback("m", store.history("m")[-1].version - 1)
    store.merge("m", ["m/0"])
    assert digest_of(store, "m") == once


def test_without_the_snapshot_of_a_merge_there_is_no_posterior(places: Places) -> None:
    """It can't be folded again from the parent's log alone: an older snapshot must not pass for it."""
    store, _, _ = merged_pair(places)
    version = store.history("m")[-1].version
    with places.sql() as connection:
        connection.exec_driver_sql(f'DELETE FROM parts WHERE model_id = 1 AND "offset" = {version}')
        connection.exec_driver_sql(f'DELETE FROM snapshots WHERE model_id = 1 AND "offset" = {version}')
    with pytest.raises(errors.CorruptStore, match=f"the merge at version {version} of model 'm' is not sound"):
        bm.load(store, "m", engine="numpy")


def test_a_failure_between_the_rows_of_a_merge_leaves_nothing(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = linear_stream(10)
    store = places.open()
    store.publish("m", linear_model(bm.Full(), None))
    store.branch("m", "m/0")
    observe(store, "m/0", x, y)
    before, history = digest_of(store, "m"), store.history("m")

    def fail(*_: Any) -> None:
        raise OSError("disk gone")

    with monkeypatch.context() as patched:
        patched.setattr(store.snapshots, "insert", fail)
        patched.setattr(store.snapshots, "insert_for", fail)
        with pytest.raises(OSError, match="disk gone"):
            store.merge("m", ["m/0"])
        with pytest.raises(OSError, match="disk gone"):
            store.branch("m", ["m/1", "m/2"])
    assert digest_of(store, "m") == before
    assert store.history("m") == history
    assert store.names() == ["m", "m/0"]
    store.merge("m", ["m/0"])
    assert store.verify() == []


# -- ways and errors --------------------------------------------------------------------------------------------------
def test_other_dynamics_are_merged_and_pulled_by_replay(tmp_path: Path) -> None:
    x, y = stream(30)
    model = bm.BayesianMLP(
        bm.MLP((4,), "tanh"), bm.Categorical(3), dynamics=bm.Forgetting(0.95), engine="numpy", standardize=False
    )
    model.start_from_prior(4)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", model)
    store.branch("m", "m/0")
    observe(store, "m/0", x[:10], y[:10])
    with pytest.raises(errors.InvalidInput, match="how='delta' is for static dynamics, not for Forgetting"):
        store.merge("m", ["m/0"], how="delta")
    observe(store, "m", x[10:20], y[10:20])
    pulled = store.pull("m/0")
    assert store.history("m/0")[-1].kind == "pull"
    assert store.history("m/0")[-1].version == pulled
    expected = learned(model.to_engine("numpy"), x[[*range(10, 20), *range(10)]], y[[*range(10, 20), *range(10)]])
    assert posterior_digest(expected.spec(), expected.to_arrays()) == digest_of(store, "m/0")
    store.merge("m", ["m/0"])
    assert digest_of(store, "m") == digest_of(store, "m/0")


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_a_branch_goes_on_in_another_framework(tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine, reason=f"pip install 'bayesmlp[{engine}]' to enable")
    x, y = stream(40)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", small_model("numpy"))
    store.branch("m", WORKERS[:2], engine=engine)
    for i, name in enumerate(WORKERS[:2]):
        with bm.OnlineUpdater(store, name, engine=engine if i else "numpy") as updater:
            updater.observe_many(x[20 * i : 20 * i + 20], y[20 * i : 20 * i + 20])
    store.merge("m", WORKERS[:2], how="delta", engine=engine)
    here = bm.load(store, "m", engine="numpy").predict(x).probabilities
    there = bm.load(store, "m", engine=engine).predict(x).probabilities
    np.testing.assert_allclose(here, there, atol=2e-5)
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        assert updater.observe(x[0], y[0]).status == "applied"


def test_bad_input_is_refused_by_name(places: Places) -> None:
    x, y = stream(5)
    store = places.published()
    store.branch("m", "m/0")
    with pytest.raises(errors.UnknownModel, match="no model 'none'"):
        store.branch("none", "none/0")
    with pytest.raises(errors.UnknownModel, match="no version 9"):
        store.branch("m", "m/1", version=9)
    with pytest.raises(errors.InvalidInput, match="name must be new, got 'm/0'"):
        store.branch("m", ["m/1", "m/0"])
    with pytest.raises(errors.InvalidInput, match="several different ones"):
        store.branch("m", ["m/1", "m/1"])
    with pytest.raises(errors.InvalidInput, match="name must be a string of 1 to 200"):
        store.branch("m", "")
    with pytest.raises(errors.InvalidInput, match="learn must be one of all, last, got 'first'"):
        store.branch("m", "m/1", learn="first")
    store.publish("d", small_model(structure=bm.Diagonal()))
    with pytest.raises(errors.InvalidInput, match="a block of its own"):
        store.branch("d", "d/0", learn="last")
    assert store.names() == ["d", "m", "m/0"]
    with pytest.raises(errors.InvalidInput, match="branches must be of 'd', got 'm/0', which is a branch of 'm'"):
        store.merge("d", ["m/0"])
    with pytest.raises(errors.InvalidInput, match="got 'd', which is no branch"):
        store.merge("m", ["d"])
    with pytest.raises(errors.InvalidInput, match="branches must be a list of names, got 'm/0'"):
        store.merge("m", "m/0")
    with pytest.raises(errors.InvalidInput, match="branches must be different ones"):
        store.merge("m", ["m/0", "m/0"])
    with pytest.raises(errors.InvalidInput, match="how must be 'delta', 'replay' or None, got 'sum'"):
        store.merge("m", ["m/0"], how="sum")
    with pytest.raises(errors.InvalidInput, match="name must be of a branch, got 'm'"):
        store.pull("m")
    with bm.OnlineUpdater(store, "m", engine="numpy"), pytest.raises(errors.LeaseHeld):
        store.merge("m", ["m/0"])
    observe(store, "m/0", x, y)
    store.publish("m", small_model(structure=bm.LastLayer(hidden=bm.LowRank(2))))
    with pytest.raises(errors.InvalidInput, match=r"'m/0' can't be merged by .* differs in its structure"):
        store.merge("m", ["m/0"], how="delta")
    assert store.history("m")[-1].kind == "publish"
    store.merge("m", ["m/0"])
    assert [entry.kind for entry in store.history("m")][-6:] == ["event"] * 5 + ["merge"]


def test_a_branch_is_exported_with_what_it_shares(tmp_path: Path) -> None:
    x, y = stream(6)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", wide_model())
    store.branch("m", "m/0", learn="last")
    observe(store, "m/0", x, y)
    store.export("m/0", tmp_path / "branch.db")
    with bm.open_store(tmp_path / "other.db") as other:
        other.import_(tmp_path / "branch.db", name="user")
        assert digest_of(other, "user") == digest_of(store, "m/0")
        with bm.OnlineUpdater(other, "user", engine="numpy") as updater:
            event = next(entry.event_id for entry in updater.history() if entry.event_id)
            updater.retract([event])
        with pytest.raises(errors.UnknownModel, match="no model 'm'"):
            other.pull("user")


def test_an_imported_branch_attaches_to_its_parent_alone(places: Places, tmp_path: Path) -> None:
    x, y = stream(10)
    with places.published() as store:
        observe(store, "m", x[:4], y[:4], ids=list("abcd"))
        store.branch("m", "m/0", version=3)
        for name in ("m", "m/0"):
            store.export(name, tmp_path / name.replace("/", "-"))
    with places.published(name="other") as other:  # another model of that name, as long and by the same ids
        observe(other, "m", x[:4], y[:4], ids=list("abcd"))
        other.import_(tmp_path / "m-0")
        observe(other, "m/0", x[4:], y[4:], ids=[f"e{i}" for i in range(6)])
        digests = [digest_of(other, name) for name in ("m", "m/0")]
        for attach in (lambda: other.merge("m", ["m/0"]), lambda: other.pull("m/0")):
            with pytest.raises(errors.InvalidInput, match="'m/0' is a branch of another model that was called 'm'"):
                attach()
        assert [digest_of(other, name) for name in ("m", "m/0")] == digests
        with bm.OnlineUpdater(other, "m/0", engine="numpy") as updater:
            updater.retract(["e0"])
    with places.open(name="third") as third:
        third.import_(tmp_path / "m")
        third.import_(tmp_path / "m-0")
        observe(third, "m/0", x[4:], y[4:], ids=[f"e{i}" for i in range(6)])
        with bm.OnlineUpdater(third, "m", engine="numpy") as updater:
            updater.purge(["b"])  # what was erased of the parent makes it no other model
        third.pull("m/0")
        third.merge("m", ["m/0"])
        assert [entry.kind for entry in third.history("m")][-7:] == ["event"] * 6 + ["merge"]


def test_what_was_merged_of_another_branch_of_that_name_is_not_taken_for_merged(places: Places, tmp_path: Path) -> None:
    x, y = stream(12)
    with places.published() as store:
        store.branch("m", "m/0")
        observe(store, "m/0", x[:6], y[:6], ids=[f"a{i}" for i in range(6)])
        store.merge("m", ["m/0"])
        store.export("m", tmp_path / "m")
    with places.open(name="other") as other:
        other.import_(tmp_path / "m")
        other.branch("m", "m/0")
        observe(other, "m/0", x[6:], y[6:], ids=[f"b{i}" for i in range(6)])
        other.merge("m", ["m/0"])
        assert [entry.event_id for entry in other.history("m")][-7:-1] == [f"m/0:b{i}" for i in range(6)]
        version = other.history("m")[-1].version
        assert other.merge("m", ["m/0"]) == version


def test_a_window_of_noise_is_merged_by_replay(tmp_path: Path) -> None:
    """What fades in each branch does not add up."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 2)), rng.standard_normal(60)
    model = bm.BayesianMLP(
        bm.MLP(()), bm.Gaussian(noise_window=20), structure=bm.Full(), engine="numpy", standardize=False
    )
    model.start_from_prior(2)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("p", model)
        for index, name in enumerate(("a", "b")):
            store.branch("p", name)
            with bm.OnlineUpdater(store, name, engine="numpy") as updater:
                updater.observe_many(x[30 * index : 30 * index + 30], y[30 * index : 30 * index + 30])
        with pytest.raises(errors.InvalidInput, match="likelihoods that learn from all rows alike"):
            store.merge("p", ["a", "b"], how="delta")
        store.merge("p", ["a", "b"])
        with bm.OnlineUpdater(store, "p", engine="numpy") as updater:
            state = updater.model.posterior.likelihood
            assert float(state.shape) == pytest.approx(10)
            assert updater.observe(x[0], y[0]).status == "applied"
