"""The ten lines of the README, in a temporary folder."""

import os
import tempfile

os.chdir(tempfile.mkdtemp())

# --- README ---
import bayesmlp as bm
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x = (x - 5) / 6  # pixels from 0 to 16
model = bm.BayesianMLP(bm.MLP(hidden=(32,)), bm.Categorical(10), prior=bm.NormalPrior(4.0), standardize=False)
model.fit(x[:200], y[:200], method=bm.PerLayer(hidden=bm.Variational(), last=bm.Laplace()))
store = bm.open_store("feedback.db")
store.publish("digits", model)
with bm.OnlineUpdater(store, "digits") as updater:
    answer = updater.predict(x[200])  # answer.probabilities, .entropy, .mutual_information
    print(updater.feedback(answer.prediction_id, y[200]))  # durable and learned when it returns
    updater.observe(x[201], y[201], event_id="e-1")  # sent twice, it is learned once
    updater.retract(["e-1"])  # as if it had never come
print(bm.load(store, "digits", engine="jax").predict(x[202:204]).probabilities.max(1))
