"""Tasks one after the other: permuted and split MNIST.

    python benchmarks/continual.py DATA                # DATA holds mnist/
    python benchmarks/continual.py DATA --quick        # few images and tasks

Permuted: ten tasks, each a permutation of the pixels, one head of ten classes for all; the mean of the accuracies on
all tasks after the last. Split: five tasks of two digits; with a mask of the task's two classes on events and
answers, and without. Three ways to learn:

    one pass        each image once, nothing stored, nothing told of the tasks' borders
    memory          the same, with a memory of at most 200 images of each source; a task is a source
    consolidated    the same, and at the end of each task its images are learned again at once, around the posterior
                    from before it, and with the memory of the earlier tasks; put in place if it predicts better
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
STRUCTURES: dict[str, bm.Diagonal | bm.Kronecker | bm.LowRank] = {
    "Kronecker": bm.Kronecker(),
    "Diagonal": bm.Diagonal(),
    "LowRank(10)": bm.LowRank(10),
}
PLANS = ("permuted, one head", "split, masked", "split, one head")
BATCH = 8  # rows of one Bayes step
STORED = 200  # images that each task may keep
METHOD = bm.Consolidate(bm.TrainingOptions(epochs=4, batch_size=256, learning_rate=2e-3))
STRENGTH = 2.5  # of what is stored, for the share of the posterior's own pull that a consolidation gives up
NEWEST = 200  # images of each task that decide whether a consolidation is put in place
WAYS = ("one pass", "memory", "consolidated")


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


def learn(model: bm.BayesianMLP, task: Task, rows: np.ndarray, use_mask: bool, source: str) -> None:
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        model.update(task.x[chosen], task.y[chosen], source=source, **masked(task, len(chosen), use_mask))


def consolidate(
    model: bm.BayesianMLP, base: bm.BayesianMLP, task: Task, rows: np.ndarray, use_mask: bool, source: str
) -> bool:
    """Whether what was fitted at once was put in place of what was learned one after the other."""
    learned, newest = rows[:-NEWEST], rows[-NEWEST:]
    masks = masked(task, len(learned), use_mask)
    if use_mask:
        masks["newest_output_mask"] = masked(task, len(newest), use_mask)["output_mask"]
    data = task.x[learned], task.y[learned]
    newest_data = task.x[newest], task.y[newest]
    return model.consolidate(*data, newest=newest_data, base=base, method=METHOD, source=source, **masks).replaced


def run(
    tasks: list[Task], structure: Any, engine: str, use_mask: bool, way: str, streamed: int | None
) -> tuple[list[float], float]:
    """Accuracy on each task after the last one; seconds."""
    memory = None if way == "one pass" else bm.Memory(STORED * len(tasks), per_source=STORED, strength=STRENGTH)
    model = bm.BayesianMLP(
        bm.MLP(HIDDEN), bm.Categorical(10), prior=PRIOR, structure=structure, engine=engine, standardize=False,
        memory=memory,
    )  # fmt: skip
    model.start_from_prior(784)
    started = time.perf_counter()
    for index, task in enumerate(tasks):
        rows = np.random.default_rng(index).permutation(len(task.x))
        source = f"task {index}"
        if way == "consolidated":
            base = model.duplicate()
            learn(model, task, rows[:-NEWEST][:streamed], use_mask, source)
            replaced = consolidate(model, base, task, rows, use_mask, source)
        else:
            learn(model, task, rows, use_mask, source)
            replaced = False
        marks = ", consolidation put in place" if replaced else ""
        print(f"{way}, task {index + 1}: {accuracy_on(model, task, use_mask):.4f}{marks}", flush=True)
    seconds = time.perf_counter() - started
    accuracies = [accuracy_on(model, task, use_mask) for task in tasks]
    print(f"{way}, in the end:", " ".join(f"{accuracy:.4f}" for accuracy in accuracies), flush=True)
    return accuracies, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="5,000 images, 3 tasks")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--structures", nargs="*", default=list(STRUCTURES), choices=list(STRUCTURES))
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument(
        "--streamed", type=int, help="images of a task that are learned one after the other before all are at once"
    )
    parser.add_argument("--tasks", type=int, default=10, help="number of permutations")
    parser.add_argument("--plans", nargs="*", default=PLANS, choices=PLANS)
    options = parser.parse_args()
    folder = options.data / "mnist"
    data = [read(folder, part) for part in ("train", "t10k") for read in (read_images, read_labels)]
    if options.quick:
        data = [part[:5000] for part in data]
    plans: dict[str, tuple[Callable[[], Iterator[Task]], bool]] = {
        PLANS[0]: (lambda: permuted(data, min(3, options.tasks) if options.quick else options.tasks), False),
        PLANS[1]: (lambda: split(data), True),
        PLANS[2]: (lambda: split(data), False),
    }
    table = Table("tasks", "structure", "learned", "accuracy", "seconds")
    for plan in options.plans:
        tasks, use_mask = plans[plan]
        for name in options.structures:
            for way in options.ways:
                print(f"{plan}, {name}:", flush=True)
                accuracies, seconds = run(
                    list(tasks()), STRUCTURES[name], options.engine, use_mask, way, options.streamed
                )
                table.add_row(plan, name, way, f"{np.mean(accuracies):.4f}", f"{seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
