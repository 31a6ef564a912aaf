"""The parts of a model, each in a file of its own; :mod:`bayesmlp.model` puts them together."""
