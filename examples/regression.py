"""Regression with learned noise: fit, intervals, one online update per row, coverage."""

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import bayesmlp as bm

x, y = load_diabetes(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
half = len(x_train) // 2

model = bm.BayesianMLP(
    bm.MLP(hidden=(20,), activation="tanh"), bm.Gaussian(), prior=bm.NormalPrior(scale=0.7), structure=bm.Full()
)
model.fit(x_train[:half], y_train[:half], method=bm.Laplace())


def report(name: str) -> None:
    """Root mean squared error, mean log density and coverage of the 90% interval on held-out rows."""
    answer = model.predict(x_test)
    low, high = answer.interval(0.9)
    covered = np.mean((low <= y_test) & (y_test <= high))
    error = np.sqrt(np.mean((answer.mean - y_test) ** 2))
    epistemic = np.sqrt(answer.epistemic_variance).mean()
    print(
        f"{name:18s} RMSE {error:6.2f}  log density {answer.log_prob(y_test).mean():.3f}  "
        f"90% interval holds {covered:.2f}  epistemic sd {epistemic:.1f}"
    )


report(f"fit on {half}")
for row, target in zip(x_train[half:], y_train[half:], strict=True):
    model.update(row[None], [target])
report(f"after {len(x_train) - half} updates")
