"""An interrupted fit goes on to the result that it would have had, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import make_inputs, make_targets, on

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.methods import Method

ROWS = 60
OPTIONS = bm.TrainingOptions(epochs=8, batch_size=20, learning_rate=0.05)
HELD_OUT = bm.TrainingOptions(epochs=8, batch_size=12, learning_rate=0.3, validation=0.2, patience=6)
METHODS: dict[str, tuple[Method, int]] = {
    "variational": (bm.Variational(OPTIONS), 5),
    "ivon": (bm.Variational(OPTIONS, optimizer=bm.IVON()), 5),
    "held_out_members": (bm.Ensemble(bm.Laplace(HELD_OUT), 2), 5),
    "rounds": (bm.Laplace(OPTIONS, marginal_likelihood="during"), 5),
    "stacking": (bm.Stacking(bm.Laplace(OPTIONS), scales=(1.0, 3.0), members=2, folds=2), 5),
}
"""Methods, and after how many reported epochs they are interrupted."""


class Interrupted(Exception):
    pass


def fit(method: Method, engine: str = "torch", *, stop: int | None = None, seed: int = 3, **options: Any) -> Any:
    """A fit that is interrupted once it has reported so many epochs."""
    seen: list[int] = []

    def on_epoch(epoch: int, epochs: int, objective: float) -> None:
        seen.append(epoch)
        if len(seen) == stop:
            raise Interrupted

    x = make_inputs(ROWS, seed=160)
    model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(), structure=bm.Diagonal(), engine=engine, seed=seed)
    model.fit(x, make_targets(model.likelihood, x, seed=161), method=method, on_epoch=on_epoch, **options)
    return model, seen


def assert_goes_on(name: str, engine: str, path: Path) -> None:
    method, stop = METHODS[name]
    expected, all_epochs = fit(method, engine)
    with pytest.raises(Interrupted):
        fit(method, engine, stop=stop, checkpoint=path, checkpoint_seconds=0)
    assert path.exists()
    model, seen = fit(method, engine, checkpoint=path)
    assert seen == all_epochs[stop:]
    for key, array in expected.to_arrays().items():
        np.testing.assert_array_equal(model.to_arrays()[key], array, err_msg=key)
    assert model.history == expected.history
    assert model.fit_details.get("validation") == expected.fit_details.get("validation")
    assert not list(path.parent.iterdir()), "a fit that has ended leaves nothing"


@pytest.mark.parametrize("engine", on("torch"))
@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_fit_goes_on(name: str, engine: str, tmp_path: Path) -> None:
    assert_goes_on(name, engine, tmp_path / "fit")


@pytest.mark.parametrize("engine", on("jax"))
def test_an_interrupted_fit_goes_on_in_jax(engine: str, tmp_path: Path) -> None:
    assert_goes_on("variational", engine, tmp_path / "fit")


@pytest.mark.parametrize("engine", on("torch"))
def test_it_may_be_interrupted_again_and_again(engine: str, tmp_path: Path) -> None:
    method = bm.Variational(OPTIONS)
    expected, _ = fit(method, engine)
    for _ in range(7):
        with pytest.raises(Interrupted):
            fit(method, engine, stop=1, checkpoint=tmp_path / "fit", checkpoint_seconds=0)
    model, seen = fit(method, engine, checkpoint=tmp_path / "fit")
    assert seen == [7]
    np.testing.assert_array_equal(model.mean_weights()[0], expected.mean_weights()[0])


@pytest.mark.parametrize("engine", on("torch"))
def test_what_is_no_checkpoint_of_this_fit_is_refused(engine: str, tmp_path: Path) -> None:
    path, method = tmp_path / "fit", bm.Variational(OPTIONS)
    with pytest.raises(Interrupted):
        fit(method, engine, stop=2, checkpoint=path, checkpoint_seconds=0)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="is of another fit"):
        fit(bm.Variational(HELD_OUT), engine, checkpoint=path)
    with pytest.raises(InvalidInput, match="is of another fit"):
        fit(method, engine, seed=4, checkpoint=path)
    with pytest.raises(InvalidInput, match="checkpoint_seconds must be a number of at least 0, got -1"):
        fit(method, engine, checkpoint=path, checkpoint_seconds=-1)
    assert path.read_bytes() == before
    path.write_text("something else")
    with pytest.raises(InvalidInput, match="checkpoint must be a file that fit has written"):
        fit(method, engine, checkpoint=path)


@pytest.mark.parametrize("engine", on("torch"))
def test_it_is_written_no_more_often_than_asked(engine: str, tmp_path: Path) -> None:
    """Within half a minute nothing of an unfinished training is."""
    with pytest.raises(Interrupted):
        fit(bm.Variational(OPTIONS), engine, stop=3, checkpoint=tmp_path / "fit")
    assert not list(tmp_path.iterdir())
