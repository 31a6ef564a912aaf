"""One posterior, either framework: stored by one, read and learned on by the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_cases import published, small_model, stream

import bayesmlp as bm

torch = pytest.importorskip("torch", reason="pip install 'bayesmlp[torch]' to enable")
jax = pytest.importorskip("jax", reason="pip install 'bayesmlp[jax]' to enable")

STRUCTURES = {
    "diagonal": bm.Diagonal(),
    "full": bm.Full(),
    "low rank": bm.LowRank(4),
    "kronecker": bm.Kronecker(),
    "last layer": bm.LastLayer(),
    "low rank and last layer": bm.LastLayer(hidden=bm.LowRank(4)),
}


def difference(one: bm.BayesianMLP, other: bm.BayesianMLP, x: np.ndarray) -> float:
    return float(np.abs(one.predict(x).probabilities - other.predict(x).probabilities).max())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("writer", "reader"), [("torch", "jax"), ("jax", "torch")])
def test_stored_by_one_read_and_learned_on_by_the_other(
    tmp_path: Path, writer: str, reader: str, structure: str
) -> None:
    x, y = stream(300)
    store = published(tmp_path, writer, structure=STRUCTURES[structure])
    with bm.OnlineUpdater(store, "m", engine=writer) as updater:
        updater.observe_many(x[:100], y[:100])
    here, there = (bm.load(store, "m", engine=name) for name in (writer, reader))
    assert difference(here, there, x[200:]) <= 1e-5
    for i in range(100, 200):
        for model in (here, there):
            model.update(x[i : i + 1], y[i : i + 1])
    assert difference(here, there, x[200:]) <= 1e-4


def test_a_handover_is_recorded_and_keeps_the_posterior(tmp_path: Path) -> None:
    x, y = stream(60)
    store = published(tmp_path, "torch")
    with bm.OnlineUpdater(store, "m", engine="torch") as updater:
        updater.observe_many(x[:30], y[:30])
        before = updater.model.predict(x).probabilities
    with bm.OnlineUpdater(store, "m", engine="jax") as updater:
        assert [entry.kind for entry in updater.history()][-1] == "handover"
        np.testing.assert_allclose(updater.model.predict(x).probabilities, before, atol=1e-5)
        updater.observe_many(x[30:], y[30:], event_ids=[f"j{i}" for i in range(30)])
        learned = updater.digest()
    with bm.OnlineUpdater(store, "m", engine="jax") as updater:
        assert updater.digest() == learned
        updater.retract([f"j{i}" for i in range(30)])
        np.testing.assert_allclose(updater.model.predict(x).probabilities, before, atol=1e-5)


def test_a_torch_tensor_and_a_jax_array_are_as_good_as_numpy() -> None:
    x, y = stream(20)
    model = small_model("torch")
    model.update(torch.tensor(x, requires_grad=True), torch.tensor(y))
    other = small_model("jax")
    other.update(jax.numpy.asarray(x, dtype="float32"), jax.numpy.asarray(y))
    assert difference(model, other, x) <= 1e-5
    assert isinstance(model.predict(torch.tensor(x)).mean, np.ndarray)
