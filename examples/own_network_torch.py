"""A convolutional network of your own in PyTorch: made Bayesian in two lines, stored, taught online, reloaded."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import bayesmlp as bm
import bayesmlp.layers.torch as bayesian

x, y = load_digits(return_X_y=True)
x = (x / 16).reshape(-1, 1, 8, 8)  # images of 8 by 8 pixels


def build() -> nn.Module:
    """Your own code."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


torch.manual_seed(0)
network = bayesian.bayesianize(build(), input_shape=(1, 8, 8), layers="last")
model = bm.BayesianMLP(network, bm.Categorical(10), prior=bm.NormalPrior(6.0))
model.fit(x[:300], y[:300], method=bm.Laplace(bm.TrainingOptions(steps=600)))


def report(name: str, answering: bm.BayesianMLP) -> None:
    """Accuracy and mean log density of the labels on images that were never learned."""
    answer = answering.predict(x[1300:])
    hits = np.mean(answer.probabilities.argmax(1) == y[1300:])
    print(f"{name:28s} accuracy {hits:.3f}  log density {answer.log_prob(y[1300:]).mean():.3f}")


report("fitted on 300 images", model)
path = Path(tempfile.mkdtemp()) / "store.db"
with bm.open_store(path) as store:
    store.publish("digits", model)
    with bm.OnlineUpdater(store, "digits", network=build()) as updater:
        updater.observe_many(x[300:1300], y[300:1300])
        report("after 1,000 more, one by one", updater.model)
report("reloaded", bm.load(path, "digits", network=build()))
