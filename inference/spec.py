"""Descriptions as JSON: the frozen dataclasses of this package, there and back.

A description (network, likelihood, prior, structure, dynamics) becomes ``{"type": name, field: value, ...}``. Only the
types listed here are ever built from a file. A network of the user's own code is only described: whoever loads it
brings the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .dynamics import AdaptiveForgetting, ChangePoint, Forgetting, RandomWalk, Static
from .errors import InvalidInput
from .influence import InverseMultiquadric
from .kalman_step import KalmanStep
from .kinds import Choice, Kind
from .laplace_step import LaplaceStep
from .likelihoods import (
    Bernoulli,
    BradleyTerry,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Ordinal,
    Poisson,
    StudentT,
)
from .memory import Memory
from .network import MLP, Network
from .pairwise import PairwiseMLP
from .priors import NormalPrior
from .structures import Blocks, Diagonal, Frozen, Full, Kronecker, LowRank, Mixture, Particles, Point, Subnetwork
from .variational_step import VariationalStep

__all__ = ["EXTERNAL", "from_spec", "to_spec"]

EXTERNAL = "module"
"""The type of a network whose code is the user's."""

_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        MLP, PairwiseMLP, NormalPrior, Gaussian, HeteroscedasticGaussian, StudentT, Categorical, Bernoulli, Poisson,
        Ordinal, BradleyTerry, Static, Forgetting, RandomWalk, AdaptiveForgetting, ChangePoint, Diagonal, Full,
        Kronecker, LowRank, Point, Subnetwork, Blocks, Mixture, Particles, KalmanStep, LaplaceStep, VariationalStep,
        InverseMultiquadric, Kind, Choice, Memory, Frozen,
    )
}  # fmt: skip


def to_spec(value: Any) -> Any:
    """A description as plain JSON values.

    A field with ``{"added": True}`` in its metadata is left out while it has its default: descriptions from before it,
    and their digests, stay what they were.

    Raises:
        InvalidInput: a type that can not be stored.
    """
    if dataclasses.is_dataclass(value) and type(value).__name__ in _TYPES:
        told = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if not field.metadata.get("added") or getattr(value, field.name) != field.default
        }
        return {"type": type(value).__name__, **{name: to_spec(part) for name, part in told.items()}}
    if isinstance(value, Network) and (described := value.description()) is not None:
        return {"type": EXTERNAL, **described}
    if isinstance(value, tuple | list):
        return [to_spec(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidInput(f"a {type(value).__name__} can not be stored; the stored types are {', '.join(_TYPES)}")


def from_spec(spec: Any) -> Any:
    """The description that :func:`to_spec` wrote.

    Raises:
        InvalidInput: an unknown type, as a newer version may have written.
    """
    if isinstance(spec, Mapping):
        fields = dict(spec)
        name = fields.pop("type", None)
        if name == EXTERNAL:
            raise InvalidInput(
                f"the network is a module of your own, {fields['class']} on {fields['framework']}, and only its "
                "weights are stored: build it as before and pass it as network="
            )
        if name not in _TYPES:
            raise InvalidInput(f"unknown type {name!r} in a stored description; this version knows {', '.join(_TYPES)}")
        return _TYPES[name](**{key: from_spec(value) for key, value in fields.items()})
    if isinstance(spec, list):
        return tuple(from_spec(item) for item in spec)
    return spec
