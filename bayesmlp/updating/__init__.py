"""The parts of an updater, each in a file of its own; :mod:`bayesmlp.updater` puts them together."""
