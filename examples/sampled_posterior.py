"""A posterior by sampling, published, reopened in the other framework, and learning on from feedback."""

import tempfile
from pathlib import Path

from sklearn.datasets import load_digits

import bayesmlp as bm

x, y = load_digits(return_X_y=True)
x = (x - 5) / 6
model = bm.BayesianMLP(bm.MLP((16,), "tanh"), bm.Categorical(10), engine="torch", standardize=False)
model.fit(x[:150], y[:150], method=bm.MCLMC(num_warmup=200, num_samples=25, climb=200))
before = model.predict(x[1000:])
print(f"sampled from 150 digits: log density {before.log_prob(y[1000:]).mean():.3f}")
print(f"largest R-hat of a logit {model.fit_details['rhat'].max():.2f}, {len(before.log_weights)} networks")

with tempfile.TemporaryDirectory() as folder, bm.open_store(Path(folder) / "feedback.db") as store:
    store.publish("digits", model)
    with bm.OnlineUpdater(store, "digits", engine="jax") as updater:
        for row in range(150, 250):
            updater.observe(x[row], y[row])
        after = updater.predict(x[1000:])
print(f"after 100 more, one by one, on JAX: log density {after.log_prob(y[1000:]).mean():.3f}")
