"""A Bayesian MLP as a scikit-learn estimator: pipeline, grid search, then learning on from a stream."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer

import bayesmlp as bm

x, y = load_breast_cancer(return_X_y=True, as_frame=True)
y = y.map({0: "malignant", 1: "benign"})
x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
x_fit, x_stream, y_fit, y_stream = train_test_split(x, y, train_size=100, random_state=0)

pipeline = make_pipeline(
    PowerTransformer(), bm.BayesianMLPClassifier(hidden_layer_sizes=(20,), epochs=60, random_state=0)
)
scales = {"bayesianmlpclassifier__prior_scale": [0.5, 1.0, 2.0]}
search = GridSearchCV(pipeline, scales, scoring="neg_log_loss", cv=3).fit(x_fit, y_fit)
print(f"grid search on {len(x_fit)} patients: {search.best_params_}")

transform, classifier = search.best_estimator_


def report(name: str) -> None:
    """Accuracy, negative log likelihood and the model's doubt on held-out patients."""
    inputs = transform.transform(x_test)
    answer = classifier.predictive(inputs)
    nll = log_loss(y_test, classifier.predict_proba(inputs), labels=classifier.classes_)
    print(
        f"{name:20s} accuracy {classifier.score(inputs, y_test):.3f}  NLL {nll:.3f} nats  "
        f"mutual information {np.mean(answer.mutual_information):.4f} nats"
    )


report(f"fit on {len(x_fit)}")
inputs = transform.transform(x_stream)
for i in range(len(inputs)):
    classifier.partial_fit(inputs[i : i + 1], y_stream.iloc[i : i + 1])
report(f"after {len(inputs)} updates")

model = bm.RiverRegressor(warm_up=20)
rng = np.random.default_rng(0)
error = []
for hour in range(200):
    features = {"hour": hour % 24, "temperature": 15 + 5 * rng.standard_normal()}
    bikes = 50 + 20 * np.sin(2 * np.pi * features["hour"] / 24) + 2 * features["temperature"] + rng.standard_normal()
    error.append(abs(model.predict_one(features) - bikes))
    model.learn_one(features, bikes)
print(f"River's interface: mean absolute error {np.mean(error[:20]):.1f} in 20 hours, {np.mean(error[180:]):.1f} later")
