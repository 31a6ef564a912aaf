"""Classification beside the usual alternatives: MNIST against a deep ensemble, tables against trees, a GP and an SVM.

    python benchmarks/classification.py DATA mnist             # DATA holds mnist/, fashion_mnist/, classification/
    python benchmarks/classification.py DATA tables
    python benchmarks/classification.py DATA --quick           # both, small
    python benchmarks/classification.py DATA mnist --engine jax:gpu --width 1200

On MNIST both sides are multi-layer perceptrons of one size, without augmentation, trained on the same 60,000 images;
the AUROC is that of telling MNIST's test images from Fashion-MNIST's. Tables: mean over stratified folds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import bayesmlp as bm
from bayesmlp.metrics import accuracy, expected_calibration_error, negative_log_likelihood

PIXEL_SCALE = 85.0  # the root mean square of MNIST's pixels; black stays 0, so that pixels never lit say nothing
GP_ROWS = 1000  # its cost is cubic in the rows, for each class
Probabilities = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


# -- MNIST -----------------------------------------------------------------------------------------------------------
def read_images(folder: Path, part: str) -> np.ndarray:
    """Images as rows of unit mean square."""
    raw = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / PIXEL_SCALE


def read_labels(folder: Path, part: str) -> np.ndarray:
    raw = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=8).astype(int)


def variational(network: bm.MLP, epochs: int, engine: str) -> tuple[bm.BayesianMLP, Any]:
    model = bm.BayesianMLP(
        network,
        bm.Categorical(10),
        prior=bm.NormalPrior(scale=10.0),
        structure=bm.Diagonal(),
        engine=engine,
        standardize=False,
    )
    training = bm.TrainingOptions(epochs=epochs, batch_size=128, learning_rate=2e-3)
    method = bm.Variational(
        training, initial_deviation=1.0, initial_curvature=0.05, optimizer=bm.Adam(deviation_rate=0.1)
    )
    return model, method


def deep_ensemble(network: bm.MLP, epochs: int, engine: str) -> tuple[bm.BayesianMLP, Any]:
    model = bm.BayesianMLP(
        network,
        bm.Categorical(10),
        prior=bm.NormalPrior(scale=10.0),
        structure=bm.Point(),
        engine=engine,
        standardize=False,
    )
    training = bm.TrainingOptions(epochs=epochs, batch_size=128, learning_rate=1e-3)
    return model, bm.Ensemble(bm.Laplace(training), members=5)


def mnist(data: Path, engine: str, quick: bool, console: Console, width: int) -> None:
    train, digits, fashion = data / "mnist", data / "mnist", data / "fashion_mnist"
    x, y = read_images(train, "train"), read_labels(train, "train")
    test_x, test_y, other = read_images(digits, "t10k"), read_labels(digits, "t10k"), read_images(fashion, "t10k")
    if quick:
        x, y, test_x, test_y, other = x[:5000], y[:5000], test_x[:1000], test_y[:1000], other[:1000]
    network = bm.MLP((100, 100) if quick else (width, width))
    clock, unit = (time.perf_counter, "s") if ":" in engine else (time.process_time, "s of processor")
    table = Table("", "error %", "NLL", "ECE (10 bins)", "AUROC entropy", "AUROC mutual inf.", f"fit, {unit}")
    rows = (
        ("variational", variational, 3 if quick else 24, "samples"),
        ("deep ensemble of 5", deep_ensemble, 2 if quick else 10, "mean"),
    )
    for name, build, epochs, prediction in rows:
        model, method = build(network, epochs, engine)
        start = clock()
        model.fit(x, y, method=method)
        seconds = clock() - start
        inside, outside = (
            model.predict(images, method=prediction, num_samples=10 if quick else 50) for images in (test_x, other)
        )
        novel = np.repeat([0, 1], [len(test_x), len(other)])
        scores = (
            roc_auc_score(novel, np.concatenate([getattr(part, measure) for part in (inside, outside)]))
            for measure in ("entropy", "mutual_information")
        )
        p = inside.probabilities
        table.add_row(
            name,
            f"{100 * (1 - accuracy(p, test_y)):.2f}",
            f"{negative_log_likelihood(p, test_y):.4f}",
            f"{expected_calibration_error(p, test_y):.4f}",
            *(f"{score:.3f}" for score in scores),
            f"{seconds:.0f}",
        )
    console.print(f"MNIST, {network.hidden}, {len(x):,} images", table)


# -- tables ----------------------------------------------------------------------------------------------------------
def read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, categories as indicators and missing numbers as the column's mean, and labels 0, 1, ..."""
    with np.load(path) as file:
        x, categorical = file["X"].astype(np.float64), file["categorical"]
        names = list(map(str, file["feature_names"]))
        codes = json.loads(str(file["categories_json"])) if "categories_json" in file else {}
        labels = np.unique(file["y"], return_inverse=True)[1]
    columns = []
    for column, name, flag in zip(x.T, names, categorical, strict=True):
        if flag:
            columns.append(column[:, None] == np.arange(len(codes[name])))
        else:
            columns.append(np.where(np.isnan(column), np.nanmean(column), column)[:, None])
    return np.concatenate(columns, axis=1).astype(np.float64), labels


def ours(x: np.ndarray, y: np.ndarray, test: np.ndarray, engine: str) -> np.ndarray:
    model = bm.BayesianMLP(
        bm.MLP((64, 64)), bm.Categorical(int(y.max()) + 1), structure=bm.Kronecker(), engine=engine
    )  # fmt: skip
    return model.fit(x, y, method=bm.Stacking()).predict(test).probabilities


def boosting(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    return HistGradientBoostingClassifier(early_stopping=True, random_state=0).fit(x, y).predict_proba(test)


def gaussian_process(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    kernel = ConstantKernel(10.0) * RBF(np.sqrt(x.shape[1]))
    kept = np.random.default_rng(0).permutation(len(x))[:GP_ROWS]
    model = make_pipeline(StandardScaler(), GaussianProcessClassifier(kernel, random_state=0))
    return model.fit(x[kept], y[kept]).predict_proba(test)


def support_vectors(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """With Platt's probabilities, fitted by cross-validation."""
    model = make_pipeline(StandardScaler(), CalibratedClassifierCV(SVC(C=10.0), ensemble=False))
    return model.fit(x, y).predict_proba(test)


def tables(data: Path, engine: str, quick: bool, console: Console, sets: list[str] | None = None) -> None:
    methods: dict[str, Probabilities] = {
        "ours": lambda x, y, test: ours(x, y, test, engine),
        "boosting": boosting,
        f"GP, {GP_ROWS} rows": gaussian_process,
        "SVM, RBF": support_vectors,
    }
    table = Table("accuracy / NLL / ECE", "rows x columns", *methods)
    paths = sorted((data / "classification").glob("*.npz"))
    chosen = sets or (["sonar", "vehicle"] if quick else [path.stem for path in paths])
    for path in (path for path in paths if path.stem in chosen):
        x, y = read_table(path)
        folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, y))[: 1 if quick else 5]
        cells = []
        for method in methods.values():
            scores = []
            for train, test in folds:
                p = np.asarray(method(x[train], y[train], x[test]), np.float64)
                p = np.clip(p, 1e-12, None) / np.clip(p, 1e-12, None).sum(1, keepdims=True)
                scores.append([f(p, y[test]) for f in (accuracy, negative_log_likelihood, expected_calibration_error)])
            cells.append(" / ".join(f"{value:.3f}" for value in np.mean(scores, axis=0)))
        table.add_row(path.stem, f"{x.shape[0]:,} x {x.shape[1]}", *cells)
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("part", nargs="?", choices=["mnist", "tables"], help="both if left out")
    parser.add_argument("--quick", action="store_true", help="few rows and epochs")
    parser.add_argument("--sets", nargs="*", help="of the tables; all if left out")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--width", type=int, default=800, help="of the two hidden layers for MNIST")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    console = Console(width=160)
    if options.part in (None, "mnist"):
        mnist(options.data, options.engine, options.quick, console, options.width)
    if options.part in (None, "tables"):
        tables(options.data, options.engine, options.quick, console, options.sets)


if __name__ == "__main__":
    main()
