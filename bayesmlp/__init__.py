"""Bayesian neural networks that keep learning after they are deployed.

Names are loaded when they are first used: ``import bayesmlp`` loads neither torch nor JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "BayesianMLP": "model",
    "Predictive": "predictive",
    "FunctionSamples": "functions",
    "MLP": "inference.network",
    "PairwiseMLP": "inference.pairwise",
    "NormalPrior": "inference.priors",
    "Gaussian": "inference.likelihoods",
    "HeteroscedasticGaussian": "inference.likelihoods",
    "StudentT": "inference.likelihoods",
    "Categorical": "inference.likelihoods",
    "Bernoulli": "inference.likelihoods",
    "Poisson": "inference.likelihoods",
    "Ordinal": "inference.likelihoods",
    "BradleyTerry": "inference.likelihoods",
    "Diagonal": "inference.structures",
    "Full": "inference.structures",
    "Kronecker": "inference.structures",
    "LowRank": "inference.structures",
    "Point": "inference.structures",
    "Mixture": "inference.structures",
    "EvidenceGrid": "inference.structures",
    "Subnetwork": "inference.structures",
    "Frozen": "inference.structures",
    "Blocks": "inference.structures",
    "LastLayer": "inference.structures",
    "Kind": "inference.kinds",
    "Choice": "inference.kinds",
    "Static": "inference.dynamics",
    "Forgetting": "inference.dynamics",
    "RandomWalk": "inference.dynamics",
    "AdaptiveForgetting": "inference.dynamics",
    "ChangePoint": "inference.dynamics",
    "VariationalStep": "inference.variational_step",
    "LaplaceStep": "inference.laplace_step",
    "KalmanStep": "inference.kalman_step",
    "InverseMultiquadric": "inference.influence",
    "Memory": "inference.memory",
    "Laplace": "inference.laplace",
    "Variational": "inference.variational",
    "StructuredVariational": "inference.structured_variational",
    "PerLayer": "inference.per_layer",
    "Ensemble": "inference.ensemble",
    "Stacking": "inference.stacking",
    "AsMarked": "inference.assembly",
    "NUTS": "inference.sampling.nuts",
    "HMC": "inference.sampling.nuts",
    "MCLMC": "inference.sampling.mclmc",
    "AdjustedMCLMC": "inference.sampling.adjusted",
    "MEADS": "inference.sampling.meads",
    "SGLD": "inference.sampling.stochastic",
    "SGHMC": "inference.sampling.stochastic",
    "Particles": "inference.structures",
    "TrainingOptions": "inference.training",
    "Adam": "inference.steps",
    "IVON": "inference.steps",
    "PosteriorStore": "store",
    "open_store": "store",
    "OnlineUpdater": "updater",
    "Consolidate": "consolidation",
    "Consolidation": "consolidation",
    "Admission": "admission",
    "Quarantined": "admission",
    "Receipt": "receipts",
    "NormalScores": "normal_scores",
    "Prequential": "prequential",
    "load": "replay",
    "replay_with": "comparing",
    "diff": "comparing",
    "Difference": "comparing",
    "SnapshotPolicy": "keeping",
    "Retention": "keeping",
    "Retraction": "receipts",
    "Purge": "receipts",
    "decide": "deciding",
    "Decision": "deciding",
    "acquire": "deciding",
    "Acquisition": "deciding",
    "logged_decisions": "off_policy",
    "LoggedDecisions": "off_policy",
    "off_policy_value": "off_policy",
    "BayesianMLPRegressor": "estimators",
    "BayesianMLPClassifier": "estimators",
    "RiverRegressor": "river",
    "RiverClassifier": "river",
    "diagnostics": "diagnostics",
    "errors": "inference.errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bayesmlp' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOME[name]}", __name__)
    value = module if name in ("diagnostics", "errors") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
