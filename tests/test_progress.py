"""The progress bar of a fit: where it shows, and that the user's own function is still called."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

import bayesmlp as bm
from bayesmlp import progress
from bayesmlp.inference.errors import InvalidInput


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("wanted", [None, False])
def test_there_is_no_bar_away_from_a_terminal(wanted: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    heard: list[tuple[Any, ...]] = []
    with progress.fit_progress(wanted, lambda *what: heard.append(what)) as report:
        assert report is not None
        report(0, 10, 0.5, note="acceptance 0.9")
        report(1, 10, 0.4)
    assert heard == [(0, 10, 0.5), (1, 10, 0.4)]
    with progress.fit_progress(wanted) as report:
        assert report is None


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (3600.0, False)])
def test_on_a_terminal_it_shows_after_a_while(patience: float, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", patience)
    seen: list[tuple[int, int, float]] = []
    with progress.fit_progress(None, lambda *epoch: seen.append(epoch)) as report:
        assert report is not None
        for epoch in range(3):
            report(epoch, 3, 0.5)
    assert seen == [(0, 3, 0.5), (1, 3, 0.5), (2, 3, 0.5)]
    assert ("objective 0.5" in terminal.getvalue()) is shown


def test_a_bar_that_was_asked_for_shows_in_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="torch")
    x = np.linspace(-1, 1, 8)[:, None]
    seen: list[int] = []
    method = bm.Laplace(bm.TrainingOptions(epochs=4))
    model.fit(x, x[:, 0], method=method, progress=True, on_epoch=lambda epoch, *_: seen.append(epoch))
    assert seen == [0, 1, 2, 3]
    assert "4/4" in error.getvalue()


@pytest.mark.parametrize("verbose", [False, True])
def test_a_verbose_estimator_shows_it(verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    bm.BayesianMLPRegressor((3,), epochs=2, engine="torch", verbose=verbose).fit([[0.0], [1.0]], [0.0, 1.0])
    assert ("2/2" in error.getvalue()) is verbose


def test_the_bar_is_taken_down_when_the_fit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="torch")
    with pytest.raises(KeyboardInterrupt):
        model.fit([[0.0]], [0.0], progress=True, on_epoch=fail)
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


def test_anything_else_is_refused() -> None:
    with pytest.raises(InvalidInput, match="progress must be True, False or None, got 'yes'"):
        bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="torch").fit([[0.0]], [0.0], progress="yes")
