"""A model as a spec and named arrays, and back: on another engine, in a store, under other settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np

from ..inference.dynamics import Dynamics, Hypotheses
from ..inference.engines import Engine
from ..inference.errors import InvalidInput
from ..inference.filtering import Posterior
from ..inference.influence import InverseMultiquadric
from ..inference.memory import MemoryState
from ..inference.output_space import OutputStep
from ..inference.spec import from_spec, to_spec
from ..inference.structures import Mixture
from ..inference.structures.particles import Particles
from ..layers.conversion import restore_network
from ..scaling import Scaling
from .state import ModelState

__all__ = ["PortableModel"]


class PortableModel(ModelState):
    """A model that moves."""

    def to_engine(self, engine: str | Engine) -> Self:
        """The same model and posterior on another engine or device; this one is left as it is.

        Args:
            engine: a name as for the constructor.
        """
        return type(self).from_parts(self.spec(), self.to_arrays(), engine, self.network)

    def duplicate(self) -> Self:
        """The same model and posterior on the same engine, with what was compiled for it."""
        copy = self.to_engine(self.engine)
        copy._compiled = {name: kept for name, kept in self._compiled.items() if not name.startswith("answering")}
        return copy

    def with_settings(
        self,
        *,
        dynamics: Dynamics | None = None,
        step: OutputStep | None = None,
        influence: InverseMultiquadric | None = None,
    ) -> Self:
        """The same posterior, which learns in another way from here on; None leaves a setting as it is.

        Args:
            dynamics: what happens between events. The posterior as it is now is what they relax to.
            step: of the update.
            influence: of an event.

        Raises:
            InvalidInput: the dynamics are hypotheses, whose posteriors are of no use to others; or new ones for a grid
                of filters whose number has changed, since the priors of those that are left are not kept.
            NotFitted: the model has seen no data.
        """
        if self.particles is not None:  # what learns on is the Gaussian beside them
            projected = self.to_engine(self.engine)
            projected.project()
            return projected.with_settings(dynamics=dynamics, step=step, influence=influence)
        changes = {"dynamics": dynamics, "step": step, "influence": influence}
        spec = self.spec() | {name: to_spec(value) for name, value in changes.items() if value is not None}
        if dynamics is None:
            return type(self).from_parts(spec, self.to_arrays(), self.engine, self.network)
        if isinstance(self.dynamics, Hypotheses):
            raise InvalidInput(f"dynamics can't be put in place of hypotheses, {self.dynamics}")
        scales = self.structure.scales if isinstance(self.structure, Mixture) else None
        if scales and (left := len(self._members()[0])) != len(scales):
            raise InvalidInput(
                f"dynamics must be given while every filter of the grid is there: which of the prior's scales {scales} "
                f"the {left} that there are now began with is not kept"
            )
        other = type(self).from_parts(spec, {}, self.engine, self.network)
        copied = self.to_engine(self.engine)
        other._set(self.num_inputs, self.scaling, other._under_hypotheses(copied.posterior))
        other.newest_time, other.memory_state = self.newest_time, self.memory_state
        return other

    def spec(self) -> dict[str, Any]:
        """Everything about the model that is not an array and not the engine, as JSON values."""
        kinds = [[name, to_spec(kind)] for name, kind in self.kinds.items()]
        return {
            **({"feedback": kinds} if kinds else {}),
            **({} if self.influence is None else {"influence": to_spec(self.influence)}),
            **({} if self.memory is None else {"memory": to_spec(self.memory)}),
            "network": to_spec(self.network),
            "likelihood": to_spec(self.likelihood),
            "prior": to_spec(self._fitted_prior),
            "structure": to_spec(self._form),
            "dynamics": to_spec(self.dynamics),
            "step": to_spec(self.step),
            "relinearizations": self.relinearizations,
            "dtype": self.engine.dtype,
            "standardize": self.standardize,
            "seed": self.seed,
            "num_inputs": self._num_inputs,
        }

    def to_arrays(self, *, copy: bool = True) -> dict[str, np.ndarray]:
        """The posterior and the scaling as named host arrays; empty before any data.

        Args:
            copy: whether they are the caller's to keep; else the next update may write into them.
        """
        if self._posterior is None:
            return {}
        engine = self.engine if copy else replace(self.engine, lends=True)
        arrays = {**self.posterior_arrays(self._posterior, engine), **self.constant_arrays(engine)}
        if self.newest_time is not None:
            arrays["clock.newest"] = np.asarray(self.newest_time, dtype=np.float64)
        if self.memory_state is not None:
            arrays |= {f"memory.{name}": array for name, array in self.memory_state.to_arrays().items()}
        return arrays

    def posterior_arrays(self, posterior: Posterior, engine: Engine | None = None) -> dict[str, np.ndarray]:
        """A posterior of this model as named host arrays."""
        engine = engine or self.engine
        arrays = {f"weights.{k}": v for k, v in self._resolved.to_arrays(engine, posterior.weights).items()}
        states = {"likelihood": posterior.likelihood, "dynamics": posterior.dynamics}
        if self.kinds:
            each = zip(self.kinds, posterior.likelihood, strict=True)
            states = {f"likelihood.{name}": state for name, state in each} | {"dynamics": posterior.dynamics}
        named = [(f"{name}.{i}", value) for name, state in states.items() for i, value in enumerate(state)]
        return arrays | {name: engine.to_numpy(value) for name, value in named}

    def constant_arrays(self, engine: Engine | None = None) -> dict[str, np.ndarray]:
        """What updates do not change: the scaling, and the prior where the dynamics need it."""
        arrays = {f"scaling.{field}": value for field, value in self.scaling._asdict().items()}
        if self._prior_state is not None:
            prior = self._base.to_arrays(engine or self.engine, self._prior_state)
            arrays |= {f"prior.{name}": value for name, value in prior.items()}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`to_arrays` of this very model gave: its posterior, and the time it had seen."""
        self.set_posterior(self.posterior_from_arrays(arrays))
        if prior := _under("prior", arrays):  # a mixture's, whose members may have been fewer
            self._prior_state = self._base.from_arrays(self.engine, prior)
        remembered = _under("memory", arrays)
        self.memory_state = MemoryState.from_arrays(remembered) if remembered else None
        newest = arrays.get("clock.newest")
        self.newest_time = None if newest is None else float(newest)

    @classmethod
    def from_parts(
        cls,
        spec: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        engine: str | Engine | None,
        network: Any = None,
    ) -> Self:
        """The model from :meth:`spec` and :meth:`to_arrays`, on any engine.

        Args:
            spec: of the model.
            arrays: its posterior.
            engine: as for the constructor.
            network: the user's own module, where the spec describes one.

        Raises:
            InvalidInput: the network is needed, or is not the one that the spec describes.
        """
        form = from_spec(spec["structure"])
        model = cls(
            restore_network(spec["network"], network),
            None if "feedback" in spec else from_spec(spec["likelihood"]),
            feedback={name: from_spec(kind) for name, kind in spec["feedback"]} if "feedback" in spec else None,
            prior=from_spec(spec["prior"]),
            structure=form.of if isinstance(form, Particles) else form,
            dynamics=from_spec(spec["dynamics"]),
            step=from_spec(spec["step"]),
            relinearizations=spec["relinearizations"],
            influence=from_spec(spec.get("influence")),
            memory=from_spec(spec.get("memory")),
            engine=engine,
            dtype=spec["dtype"],
            standardize=spec["standardize"],
            seed=spec["seed"],
        )
        if arrays:
            model._num_inputs = int(spec["num_inputs"])
            model._scaling = Scaling.from_arrays(_under("scaling", arrays))
            if isinstance(form, Particles):
                model._resolved = replace(form, of=model._base)
            model.restore(arrays)
            if prior := _under("prior", arrays):
                model._prior_state = model._base.from_arrays(model.engine, prior)
        return model

    def posterior_from_arrays(self, arrays: Mapping[str, np.ndarray]) -> Posterior:
        """The inverse of :meth:`posterior_arrays`."""
        weights = self._resolved.from_arrays(self.engine, _under("weights", arrays))
        parts = _under("likelihood", arrays)

        def in_order(parts: Mapping[str, np.ndarray]) -> list[Any]:
            return [self.engine.asarray(parts[str(i)], "float64") for i in range(len(parts))]

        dynamics = in_order(_under("dynamics", arrays))
        own = self.dynamics.restore_state(dynamics) if isinstance(self.dynamics, Hypotheses) else ()
        if not self.kinds:
            return Posterior(weights, self.likelihood.restore_state(in_order(parts)), own)
        states = (kind.stateful.restore_state(in_order(_under(name, parts))) for name, kind in self.kinds.items())
        return Posterior(weights, tuple(states), own)


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names start with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
