"""A network of your own in flax nnx, with layers of two kinds: made Bayesian, stored, taught online, reloaded."""

import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

import bayesmlp as bm
import bayesmlp.layers.flax as bayesian

x, y = load_digits(return_X_y=True)
x = (x / 16).reshape(-1, 8, 8)  # eight rows of eight pixels


class RowMixer(nnx.Module):
    """Your own code: every row of an image goes through one dense layer; what comes out is classified."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rows = bayesian.LaplaceLinear(8, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(48, rngs=rngs)
        self.hidden = bayesian.VariationalLinear(48, 32, rngs=rngs)
        self.head = bayesian.LaplaceLinear(32, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        features = nnx.gelu(self.rows(images)).reshape(len(images), -1)
        return self.head(nnx.gelu(self.hidden(self.norm(features))))


network = bayesian.bayesianize(RowMixer(nnx.Rngs(0)), input_shape=(8, 8))
model = bm.BayesianMLP(network, bm.Categorical(10), prior=bm.NormalPrior(4.0))
model.fit(x[:300], y[:300], method=bm.AsMarked(bm.TrainingOptions(steps=800)))


def report(name: str, answering: bm.BayesianMLP) -> None:
    """Accuracy and mean log density of the labels on images that were never learned."""
    answer = answering.predict(x[1300:])
    hits = np.mean(answer.probabilities.argmax(1) == y[1300:])
    print(f"{name:28s} accuracy {hits:.3f}  log density {answer.log_prob(y[1300:]).mean():.3f}")


report("fitted on 300 images", model)
path = Path(tempfile.mkdtemp()) / "store.db"
with bm.open_store(path) as store:
    store.publish("digits", model)
    with bm.OnlineUpdater(store, "digits", network=RowMixer(nnx.Rngs(1))) as updater:
        updater.observe_many(x[300:1300], y[300:1300])
        report("after 1,000 more, one by one", updater.model)
report("reloaded", bm.load(path, "digits", network=RowMixer(nnx.Rngs(2))))
