"""Tasks one after the other, each image seen once: permuted and split MNIST.

    python benchmarks/continual.py DATA                # DATA holds mnist/
    python benchmarks/continual.py DATA --quick        # few images and tasks

Permuted: ten tasks, each a permutation of the pixels, one head of ten classes for all; the mean of the accuracies on
all tasks after the last. Split: five tasks of two digits; with a mask of the task's two classes on events and
answers, and without. Nothing is told of the tasks' borders, except where memory is filled. The coreset of a task
(Nguyen et al. 2018, "Variational continual learning") is held out of the stream and learned before answering, by a
copy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from classification import read_images, read_labels
from rich.console import Console
from rich.table import Table

import bayesmlp as bm

HIDDEN = (100, 100)
PRIOR = bm.NormalPrior(4.0)
STRUCTURES: dict[str, bm.Diagonal | bm.LowRank] = {"Diagonal": bm.Diagonal(), "LowRank(10)": bm.LowRank(10)}
PLANS = ("permuted, one head", "split, masked", "split, one head")
BATCH = 8  # rows of one Bayes step
STORED = 200  # images that each task may keep


class Task(NamedTuple):
    """Images and labels to learn and to test on, and the classes that there are, (10,)."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: np.ndarray


def permuted(data: list[np.ndarray], count: int) -> Iterator[Task]:
    x, y, test_x, test_y = data
    for task in range(count):
        order = np.arange(784) if task == 0 else np.random.default_rng(task).permutation(784)
        yield Task(x[:, order], y, test_x[:, order], test_y, np.ones(10, dtype=bool))


def split(data: list[np.ndarray]) -> Iterator[Task]:
    x, y, test_x, test_y = data
    for first in range(0, 10, 2):
        classes = np.isin(np.arange(10), (first, first + 1))
        mine, tested = classes[y], classes[test_y]
        yield Task(x[mine], y[mine], test_x[tested], test_y[tested], classes)


def masked(task: Task, rows: int, use: bool) -> dict[str, Any]:
    return {"output_mask": np.tile(task.classes, (rows, 1))} if use else {}


def accuracy_on(model: bm.BayesianMLP, task: Task, use_mask: bool) -> float:
    p = model.predict(task.test_x, **masked(task, len(task.test_x), use_mask)).probabilities
    return float(np.mean(np.argmax(p, axis=1) == task.test_y))


def learn(model: bm.BayesianMLP, task: Task, rows: np.ndarray, use_mask: bool) -> None:
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        model.update(task.x[chosen], task.y[chosen], **masked(task, len(chosen), use_mask))


def run(tasks: list[Task], structure: Any, engine: str, use_mask: bool) -> tuple[float, float, float]:
    """Mean accuracy after the last task, without and with the coresets; seconds."""
    model = bm.BayesianMLP(
        bm.MLP(HIDDEN), bm.Categorical(10), prior=PRIOR, structure=structure, engine=engine, standardize=False
    )
    cores: list[np.ndarray] = []
    started = time.perf_counter()
    for index, task in enumerate(tasks):
        order = np.random.default_rng(index).permutation(len(task.x))
        cores.append(order[:STORED])
        learn(model, task, order[STORED:], use_mask)
    seconds = time.perf_counter() - started
    without = np.mean([accuracy_on(model, task, use_mask) for task in tasks])
    reminded = model.to_engine(model.engine)
    for task, core in zip(tasks, cores, strict=True):
        learn(reminded, task, core, use_mask)
    return float(without), float(np.mean([accuracy_on(reminded, task, use_mask) for task in tasks])), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="5,000 images, 3 tasks")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--structures", nargs="*", default=list(STRUCTURES), choices=list(STRUCTURES))
    parser.add_argument("--plans", nargs="*", default=PLANS, choices=PLANS)
    options = parser.parse_args()
    folder = options.data / "mnist"
    data = [read(folder, part) for part in ("train", "t10k") for read in (read_images, read_labels)]
    if options.quick:
        data = [part[:5000] for part in data]
    plans: dict[str, tuple[Callable[[], Iterator[Task]], bool]] = {
        PLANS[0]: (lambda: permuted(data, 3 if options.quick else 10), False),
        PLANS[1]: (lambda: split(data), True),
        PLANS[2]: (lambda: split(data), False),
    }
    table = Table("tasks", "structure", "accuracy", f"with {STORED} stored per task", "seconds")
    for plan in options.plans:
        tasks, use_mask = plans[plan]
        for name in options.structures:
            without, reminded, seconds = run(list(tasks()), STRUCTURES[name], options.engine, use_mask)
            table.add_row(plan, name, f"{without:.4f}", f"{reminded:.4f}", f"{seconds:.0f}")
            Console(width=120).print(table)


if __name__ == "__main__":
    main()
