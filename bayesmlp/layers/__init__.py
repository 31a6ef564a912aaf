"""Bayesian dense layers in networks of the user's own: :mod:`.torch` for PyTorch modules, :mod:`.flax` for flax nnx."""
