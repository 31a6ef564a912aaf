"""A model as a program of NumPyro or Pyro."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .inference.errors import InvalidInput, MissingDependency
from .inference.network import MLP
from .inference.sampling.program import Program, probabilistic_program
from .scaling import Scaling

if TYPE_CHECKING:
    from .model import BayesianMLP

__all__ = ["Program", "program_of"]


def program_of(
    model: BayesianMLP, framework: str, language: str, num_inputs: int | None, scaling: Scaling | None
) -> Program:
    """The model in a probabilistic language; see :meth:`BayesianMLP.to_numpyro`.

    Args:
        model: whose network, prior and likelihood are meant.
        framework: that the language runs on.
        language: ``"numpyro"`` or ``"pyro"``.
        num_inputs: for a model that has seen no data.
        scaling: of the data that the program will be given.

    Raises:
        InvalidInput: another network than an MLP, or another engine.
        MissingDependency: the language is not installed.
    """
    if not isinstance(model.network, MLP) or model.kinds:
        raise InvalidInput(f"network must be an MLP of one kind of feedback for {language}, got {model.network!r}")
    if not model.engine.name.startswith(framework):
        raise InvalidInput(f"{language} runs on {framework}: use to_engine({framework!r}) first")
    try:
        modules = importlib.import_module(language), importlib.import_module(f"{language}.distributions")
    except ImportError as error:
        raise MissingDependency(language, framework) from error
    size = num_inputs or model.num_inputs
    units = scaling or model.known_scaling or Scaling.identity(size, model.likelihood.num_targets)
    likelihood = model.likelihood.in_units_of(units.target_scale)
    precision = model.prior.precision(model.network.shapes(size, likelihood.num_outputs))
    return probabilistic_program(*modules, model.engine, model.network, likelihood, precision)
