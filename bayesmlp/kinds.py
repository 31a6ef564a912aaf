"""The kinds of feedback that a model hears, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .inference.errors import InvalidInput
from .inference.kinds import Choice, Kind
from .inference.likelihoods import Likelihood
from .inference.network import Network
from .scaling import Scaling
from .validation import check_inputs

__all__ = ["check_items", "comparing_kind", "observed_kind", "resolve_kinds", "scaled_items"]


def resolve_kinds(
    network: Network, likelihood: Likelihood | None, feedback: Mapping[str, Any] | None
) -> tuple[dict[str, Kind], Any]:
    """The kinds by name, none for a model of one likelihood; and the likelihood of the first.

    Raises:
        InvalidInput: both or neither were given, or a kind that can't be.
    """
    if (likelihood is None) == (feedback is None):
        raise InvalidInput("BayesianMLP takes either a likelihood or feedback={...}")
    if feedback is None:
        return {}, likelihood
    if not isinstance(feedback, Mapping) or not feedback:
        raise InvalidInput(f"feedback must map names to observation models, got {feedback!r}")
    kinds = {}
    for name, value in feedback.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidInput(f"feedback must have names that are identifiers, got {name!r}")
        if not isinstance(value, Kind | Likelihood | Choice):
            raise InvalidInput(f"feedback[{name!r}] must be a likelihood, a Choice() or a Kind, got {value!r}")
        kinds[name] = value if isinstance(value, Kind) else Kind(value)
    if network.inputs_per_row != 1:
        raise InvalidInput(f"feedback is for networks of single items, not for {network!r}")
    name, first = next(iter(kinds.items()))
    if first.compares_items:
        raise InvalidInput(f"the first kind of feedback must be of single items, got {name!r}: {first.likelihood}")
    return kinds, first.likelihood


def observed_kind(kinds: Mapping[str, Kind], name: str | None) -> Kind | None:
    """The kind of that name; None for the first, or the only one.

    Raises:
        InvalidInput: the model does not hear such feedback.
    """
    if name is None:
        return None
    if not isinstance(name, str) or name not in kinds:
        heard = ", ".join(kinds) or "one, which has no name"
        raise InvalidInput(f"kind must be one that the model hears ({heard}), got {name!r}")
    return None if name == next(iter(kinds)) else kinds[name]


def comparing_kind(kinds: Mapping[str, Kind], likelihood: type, name: str | None) -> str:
    """The name of the one kind that compares items in this way; the given name where it is one.

    Raises:
        InvalidInput: none or several do, or the one that is named does not.
    """
    found = [known for known, kind in kinds.items() if isinstance(kind.likelihood, likelihood)]
    if name is not None:
        found = [known for known in found if known == name]
    if len(found) != 1:
        heard = ", ".join(kinds) or "one, which has no name"
        raise InvalidInput(
            f"kind must name one {likelihood.__name__} among what the model hears ({heard}), got {name!r}"
        )
    return found[0]


def check_items(x: Any, kind: Kind | None, num_inputs: int, argument: str, network: Network) -> np.ndarray:
    """Inputs as float64, (rows, inputs); for a kind that compares items, theirs one after the other.

    Raises:
        InvalidInput: names the argument, what was expected and what came.
    """
    if kind is None or not kind.compares_items:
        return check_inputs(x, num_inputs, argument, network, whole=True)
    inputs = check_inputs(x, None, argument)
    kind.items_of(inputs.shape[1], num_inputs)
    return inputs


def scaled_items(scaling: Scaling, x: np.ndarray, argument: str = "X") -> np.ndarray:
    """Scaled inputs, of each of the items that a row holds."""
    return scaling.inputs(x.reshape(-1, len(scaling.input_mean)), argument).reshape(x.shape)
