"""A source turns out to be bad: take back everything it sent, and prove it."""

import tempfile
from pathlib import Path

import numpy as np

import bayesmlp as bm

rng = np.random.default_rng(0)
x = rng.standard_normal((300, 2))
y = (x[:, 0] * x[:, 1] > 0).astype(int)

model = bm.BayesianMLP(bm.MLP(hidden=(20,), activation="tanh"), bm.Bernoulli(), structure=bm.Full())
model.start_from_prior(num_inputs=2)
with bm.open_store(Path(tempfile.mkdtemp()) / "store.db") as store:
    store.publish("xor", model)
    store.publish("xor-honest", model)
    with bm.OnlineUpdater(store, "xor") as updater, bm.OnlineUpdater(store, "xor-honest") as honest:
        for i in range(200):
            lies = i % 4 == 3
            updater.observe(x[i], 1 - y[i] if lies else y[i], source="liar" if lies else "user")
            if not lies:
                honest.observe(x[i], y[i])
        for name in ("with the liar", "after retraction"):
            hits = np.mean(updater.predict(x[200:]).probabilities.argmax(1) == y[200:])
            print(f"{name:17s} accuracy {hits:.2f}")
            if name == "with the liar":
                print(updater.retract(source="liar"))
        print("the posterior is the one of a stream without the liar:", updater.digest() == honest.digest())
