"""The demonstration: a network learns digits from a user's corrections, moves between frameworks and unlearns."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .inference.errors import MissingDependency
from .inference.laplace import Laplace
from .inference.likelihoods import Categorical
from .inference.network import MLP
from .inference.per_layer import PerLayer
from .inference.priors import NormalPrior
from .inference.structures import Full, LastLayer, LowRank
from .inference.training import TrainingOptions
from .inference.variational import Variational
from .metrics import accuracy, expected_calibration_error, negative_log_likelihood
from .model import BayesianMLP
from .predictive import Predictive
from .replay import load
from .store import PosteriorStore, open_store
from .updater import OnlineUpdater

__all__ = ["Digits", "build_model", "fit_method", "load_digits_split", "run"]

NUM_FIT, NUM_STREAM, NUM_TEST, NUM_SPAM = 200, 1200, 397, 60


class Digits(NamedTuple):
    """Handwritten digits, 8 × 8 pixels from 0 to 16, shuffled: labelled ones, a stream and a held-out part."""

    fit_x: np.ndarray
    fit_y: np.ndarray
    stream_x: np.ndarray
    stream_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load_digits_split(seed: int) -> Digits:
    """Scikit-learn's digits, stratified and shuffled by a seed.

    Args:
        seed: of the split.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependency("scikit-learn", "sklearn") from error
    x, y = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(x, y, test_size=NUM_TEST, stratify=y, random_state=seed)
    stream_x, fit_x, stream_y, fit_y = train_test_split(x, y, test_size=NUM_FIT, stratify=y, random_state=seed)
    return Digits(fit_x, fit_y, stream_x, stream_y, test_x, test_y)


def scale_pixels(pixels: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 16, centred and brought to about unit variance; a fixed rule, nothing is estimated."""
    return (pixels - 5.0) / 6.0


def build_model(engine: str, seed: int) -> BayesianMLP:
    """64-32-10: low-rank-plus-diagonal hidden layer, full last layer."""
    return BayesianMLP(
        MLP(hidden=(32,), activation="relu"),
        Categorical(10),
        prior=NormalPrior(scale=(6.0, 2.0)),
        structure=LastLayer(last=Full(), hidden=LowRank(rank=20)),
        engine=engine,
        standardize=False,
        seed=seed,
    )


def fit_method() -> PerLayer:
    """Variational hidden layers, a Laplace last layer."""
    training = TrainingOptions(steps=3000)
    return PerLayer(hidden=Variational(training), last=Laplace(training))


def score(answer: Predictive, labels: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, negative log likelihood in nats, expected calibration error."""
    p = answer.probabilities
    return accuracy(p, labels), negative_log_likelihood(p, labels), expected_calibration_error(p, labels)


def run(folder: Path, *, engine: str | None, seed: int, console: Console) -> None:
    """The whole demonstration; pictures and the store go to ``folder``.

    Args:
        folder: made if absent; a store of an earlier run in it is replaced.
        engine: ``"torch"`` or ``"jax"``; None for the first that is installed.
        seed: of the split, the fit and the order of the stream.
        console: to print on.
    """
    installed = [name for name in ("torch", "jax") if importlib.util.find_spec(name)]
    if not installed:
        raise MissingDependency("torch or jax", "torch")
    first = engine or installed[0]
    second = next((name for name in installed if name != first), None)
    digits = load_digits_split(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "feedback.db"
    for stale in folder.glob("feedback.db*"):
        if stale.is_file():
            stale.unlink()
        else:
            shutil.rmtree(stale)
    console.rule(f"[bold]bayesmlp[/bold] on {first}, seed {seed}")
    console.print(f"1. Fit 64-32-10 on {NUM_FIT} labelled digits: variational hidden layer, Laplace last layer.")
    model = build_model(first, seed).fit(scale_pixels(digits.fit_x), digits.fit_y, method=fit_method())
    before = model.predict(scale_pixels(digits.test_x))
    with open_store(path) as store:
        store.publish("digits", model)
        console.print(f"2. Published to {path}. A user corrects it: {NUM_STREAM} digits, one event each.")
        with OnlineUpdater(store, "digits", engine=first) as updater:
            curve = _stream(updater, digits, console)
            after = updater.model.predict(scale_pixels(digits.test_x))
            _before_and_after(console, digits, model, updater.model, before, after)
        _other_framework(console, store, first, second, digits)
        _unlearn(console, store, first, digits, seed)
    _pictures(console, folder, digits, curve, before, after)
    console.print(
        "\n[bold]Next[/bold]\n"
        "  bayesmlp history " + str(path) + " digits      every event and what it did\n"
        "  python -c \"import bayesmlp as bm; print(bm.load('" + str(path) + "', 'digits'))\"\n"
        "  README.md has a ten-line example of your own; examples/ has more"
    )


class Curve(NamedTuple):
    """What the stream looked like, event by event."""

    right: np.ndarray
    surprise: np.ndarray
    information: np.ndarray
    epistemic: np.ndarray


def _stream(updater: OnlineUpdater, digits: Digits, console: Console) -> Curve:
    """Predict, then feedback on the prediction id, for every digit of the stream."""
    right, surprise, information, epistemic = (np.zeros(NUM_STREAM) for _ in range(4))
    columns = (
        TextColumn("   {task.completed}/{task.total}"),
        BarColumn(bar_width=30),
        TextColumn("accuracy {task.fields[accuracy]:.3f}  surprise {task.fields[surprise]:.2f} nats"),
        TextColumn("learned {task.fields[information]:.0f} nats"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("stream", total=NUM_STREAM, accuracy=0.0, surprise=0.0, information=0.0)
        for i, (pixels, label) in enumerate(zip(scale_pixels(digits.stream_x), digits.stream_y, strict=True)):
            answer = updater.predict(pixels)
            receipt = updater.feedback(answer.prediction_id or "", label)
            right[i] = answer.probabilities[0].argmax() == label
            surprise[i], information[i] = receipt.surprise, receipt.information
            epistemic[i] = answer.mutual_information[0]
            recent = slice(max(0, i - 99), i + 1)
            progress.update(
                task,
                advance=1,
                accuracy=right[recent].mean(),
                surprise=surprise[recent].mean(),
                information=information.sum(),
            )
    console.print(
        f"   first 100: accuracy {right[:100].mean():.3f}, surprise {surprise[:100].mean():.2f} nats; "
        f"last 100: {right[-100:].mean():.3f}, {surprise[-100:].mean():.2f}; "
        f"{information.sum():.0f} nats learned in all"
    )
    return Curve(right, surprise, information, epistemic)


def _strangers(digits: Digits, rng: np.random.Generator) -> np.ndarray:
    """Things that are not digits: the pixels of held-out digits, shuffled within each picture."""
    return rng.permuted(digits.test_x, axis=1)


def _before_and_after(
    console: Console, digits: Digits, old: BayesianMLP, new: BayesianMLP, before: Predictive, after: Predictive
) -> None:
    started = time.perf_counter()
    batch = build_model(old.engine.name, old.seed)
    x = scale_pixels(np.concatenate([digits.fit_x, digits.stream_x]))
    batch.fit(x, np.concatenate([digits.fit_y, digits.stream_y]), method=fit_method())
    batch_seconds = time.perf_counter() - started
    strangers = scale_pixels(_strangers(digits, np.random.default_rng(old.seed)))
    table = Table("", "accuracy", "NLL", "NLL at the mean", "calibration error", "epistemic: digits", "not digits")
    rows = (
        (f"before ({NUM_FIT} digits)", old, before),
        (f"after {NUM_STREAM} events", new, after),
        ("batch fit on all 1,400", batch, batch.predict(scale_pixels(digits.test_x))),
    )
    for name, model, answer in rows:
        hits, nll, error = score(answer, digits.test_y)
        at_mean = score(model.predict(scale_pixels(digits.test_x), method="mean"), digits.test_y)
        table.add_row(
            name,
            f"{hits:.3f}",
            f"{nll:.3f}",
            f"{at_mean[1]:.3f}",
            f"{error:.3f}",
            f"{answer.mutual_information.mean():.3f}",
            f"{model.predict(strangers).mutual_information.mean():.3f}",
        )
    console.print(f"3. On {NUM_TEST} held-out digits (NLL and epistemic uncertainty, the mutual information, in nats):")
    console.print(table)
    console.print(f"   (the batch fit took {batch_seconds:.1f} s; the updater never saw a digit twice)")


def _other_framework(console: Console, store: PosteriorStore, first: str, second: str | None, digits: Digits) -> None:
    if second is None:
        console.print(f"4. Only {first} is installed: with the other framework too, it would answer alike here.")
        return
    x = scale_pixels(digits.test_x)
    here, there = (load(store, "digits", engine=name).predict(x).probabilities for name in (first, second))
    console.print(
        f"4. Reopened in {second}: probabilities differ from {first}'s by at most {np.abs(here - there).max():.1e}."
    )


def _unlearn(console: Console, store: PosteriorStore, engine: str, digits: Digits, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(digits.stream_x), NUM_SPAM, replace=False)
    wrong = (digits.stream_y[chosen] + rng.integers(1, 10, NUM_SPAM)) % 10
    x = scale_pixels(digits.test_x)
    with OnlineUpdater(store, "digits", engine=engine) as updater:
        honest = updater.digest()
        clean = score(updater.model.predict(x), digits.test_y)
        updater.observe_many(
            scale_pixels(digits.stream_x[chosen]),
            wrong,
            event_ids=[f"spam-{i}" for i in range(NUM_SPAM)],
            source="spammer",
        )
        harmed = score(updater.model.predict(x), digits.test_y)
        taken = updater.retract(source="spammer")
        healed = score(updater.model.predict(x), digits.test_y)
        same = updater.digest() == honest
    console.print(
        f"5. A spammer sends {NUM_SPAM} wrong labels: accuracy {clean[0]:.3f} → {harmed[0]:.3f}, NLL {clean[1]:.3f} → "
        f"{harmed[1]:.3f}.\n   Retracted ({taken.events} events, one fold of {taken.replayed} records, "
        f"{taken.seconds:.2f} s): accuracy {healed[0]:.3f}, NLL {healed[1]:.3f}; the posterior's digest "
        f"{'equals' if same else 'DIFFERS FROM'} the one before ({honest[:12]}…)."
    )


def _pictures(
    console: Console, folder: Path, digits: Digits, curve: Curve, before: Predictive, after: Predictive
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        console.print("6. No pictures: matplotlib is not installed (pip install 'bayesmlp[plots]').")
        return
    from .plots import demo_figure

    target = folder / "demo.png"
    figure = demo_figure(curve, digits.test_x, digits.test_y, before, after)
    figure.savefig(target, dpi=110)
    console.print(f"6. Pictures: {target}")
