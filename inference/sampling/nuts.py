"""Hamiltonian Monte Carlo by the frameworks' own probabilistic languages: NumPyro on JAX, Pyro on torch.

Duane et al. (1987); Hoffman and Gelman (2014), "The No-U-Turn sampler". Their kernels are given this package's density,
so whatever network and likelihood a model has can be sampled; in NumPyro all chains run in one program.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import MissingDependency
from ..methods import FitProblem
from .base import Sampler, check_fraction, check_positive
from .chains import Chains, Plan, Run, repeat
from .target import Data, Target, data_of

__all__ = ["HMC", "NUTS"]


_WARMUP_PIECES = 10


class Walking(NamedTuple):
    """Attributes:
    inner: NumPyro's state of all chains.
    """

    inner: Any

    @property
    def position(self) -> Any:
        """Where the chains are, z, (C, D)."""
        return self.inner.z


@dataclass(frozen=True)
class Hamiltonian(Sampler):
    """What NUTS and HMC share: adaptation of step size and diagonal mass matrix, chains from draws of the prior."""

    target_accept: float = 0.8
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seconds is not None:
            check_positive(self, ("max_seconds",), float)
        check_fraction(self, "target_accept")

    @abstractmethod
    def kernel(self, infer: Any, potential: Any) -> Any:
        """The kernel of ``numpyro.infer`` or ``pyro.infer``, which have the same names."""

    def run(self, problem: FitProblem, target: Target) -> tuple[Chains, dict[str, Any]]:
        rng = np.random.default_rng(problem.seed)
        start = rng.standard_normal((self.num_chains, target.size))
        start[:, target.num_weights :] = target.parameters
        if problem.chains_from is not None:
            start = target.join(*problem.chains_from)[: self.num_chains] / target.scale
        run = self._run_numpyro if problem.engine.name.startswith("jax") else self._run_pyro
        return run(problem, target, start)

    def _run_numpyro(self, problem: FitProblem, target: Target, start: np.ndarray) -> tuple[Chains, dict[str, Any]]:
        """All chains in one program, which later runs on other data of the same shape use again."""
        try:
            from numpyro import infer
        except ImportError as error:
            raise MissingDependency("numpyro", "jax") from error
        import jax

        engine, data, key = problem.engine, data_of(problem), (self, target.key)
        in_own_type = jax.enable_x64(engine.dtype == "float64")  # NumPyro's numbers are all of one type

        def begun(position: Any, keys: Any, data: Data) -> tuple[Any, Any]:
            density = target.log_density(data)
            kernel = self.kernel(infer, lambda z: -density(z))
            with in_own_type:
                return kernel, kernel.init(keys, self.num_warmup, position)

        def step(state: Walking, data: Data, key: Any) -> tuple[Walking, dict[str, Any]]:
            inner = state.inner
            kernel, _ = begun(inner.z, inner.rng_key, data)  # for the kernel alone: nothing of the state is computed
            with in_own_type:
                keys = jax.random.split(jax.random.key_data(key), len(inner.z))
                inner = kernel.sample(inner._replace(rng_key=keys), (), {})
            statistics = {
                "log_density": -inner.potential_energy,
                "acceptance": inner.accept_prob,
                "diverging": engine.xp.astype(inner.diverging, inner.z.dtype),
                "gradients": engine.xp.astype(inner.num_steps, inner.z.dtype),
            }
            return Walking(inner), statistics

        with engine.scope():
            keys = jax.random.split(jax.random.PRNGKey(problem.seed), self.num_chains)
        begin = engine.compiled(("begin", key), lambda z, keys, data: begun(z, keys, data)[1])
        state = Walking(begin(engine.asarray(start), keys, data))
        run = Run(engine, step, data, problem.seed + 1, key, None, problem.checkpoint)
        state, _ = repeat(run, state, Plan(_WARMUP_PIECES, -(-self.num_warmup // _WARMUP_PIECES), None))
        run = run._replace(seed=problem.seed + 2, report=problem.on_epoch)
        state, chains = repeat(run, state, Plan(self.num_samples, 1, self.max_seconds))
        return chains, {"step_size": float(np.mean(engine.to_numpy(state.inner.adapt_state.step_size)))}

    def _run_pyro(self, problem: FitProblem, target: Target, start: np.ndarray) -> tuple[Chains, dict[str, Any]]:
        """One chain after the other; a checkpoint keeps those that have ended, a time limit is shared equally."""
        try:
            from pyro import infer
        except ImportError as error:
            raise MissingDependency("pyro-ppl", "torch") from error
        found = []
        for chain in range(self.num_chains):
            saved = None if problem.checkpoint is None else problem.checkpoint.begin()
            one = dict(saved or self._pyro_chain(infer, problem, target, start[chain], chain))
            if problem.checkpoint is not None and not saved:
                problem.checkpoint.keep(one)
            found.append(one)
            if problem.on_epoch is not None:
                rows = float(problem.weight.sum())
                problem.on_epoch(chain, self.num_chains, -float(one["log_density"].mean()) / rows)
        count = min(len(one["positions"]) for one in found)
        draws = {name: np.stack([one[name][:count] for one in found]) for name in found[0] if name != "step_size"}
        step_size = float(np.mean([one["step_size"] for one in found]))
        return Chains(draws.pop("positions"), draws), {"step_size": step_size}

    def _pyro_chain(
        self, infer: Any, problem: FitProblem, target: Target, start: np.ndarray, chain: int
    ) -> dict[str, np.ndarray]:
        import torch

        engine = problem.engine
        density = target.log_density(data_of(problem))
        positions: list[np.ndarray] = []
        densities: list[float] = []
        limit = math.inf if self.max_seconds is None else self.max_seconds / self.num_chains
        with engine.scope(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed + 7919 * chain)  # Pyro draws from the global stream: forked, given back
            kernel = self.kernel(infer, lambda sites: -density(sites["z"]))
            kernel.initial_params = {"z": engine.asarray(start)}
            kernel.setup(self.num_warmup)
            sites = kernel.initial_params
            for _ in range(self.num_warmup):
                sites = kernel.sample(sites)
            started = time.monotonic()
            while len(positions) < self.num_samples and (not positions or time.monotonic() - started < limit):
                sites = kernel.sample(sites)
                positions.append(engine.to_numpy(sites["z"]))
                densities.append(float(density(sites["z"])))
        diverging = np.zeros(len(positions))
        diverging[kernel.diagnostics()["divergences"]] = 1.0
        return {
            "positions": np.stack(positions),
            "log_density": np.array(densities),
            "diverging": diverging,
            "step_size": np.array(float(kernel.step_size)),
        }


@dataclass(frozen=True)
class NUTS(Hamiltonian):
    """The exact posterior of a small network: the reference that approximations are judged by.

    Args:
        num_warmup: adaptation steps per chain.
        num_samples: draws per chain.
        num_chains: independent chains; at least 2 for R-hat.
        target_accept: acceptance probability that the step size is adapted to.
        max_seconds: limit for the draws after the warm-up; what there is by then is kept. None: no limit.
        max_tree_depth: a trajectory has at most 2^depth - 1 leapfrog steps.
    """

    num_warmup: int = 500
    max_tree_depth: int = 10

    counts: ClassVar[tuple[str, ...]] = ("num_warmup", "num_samples", "num_chains", "max_tree_depth")

    def kernel(self, infer: Any, potential: Any) -> Any:
        return infer.NUTS(
            potential_fn=potential, target_accept_prob=self.target_accept, max_tree_depth=self.max_tree_depth
        )


@dataclass(frozen=True)
class HMC(Hamiltonian):
    """Hamiltonian Monte Carlo with trajectories of one length.

    Args:
        num_warmup: adaptation steps per chain.
        num_samples: draws per chain.
        num_chains: independent chains; at least 2 for R-hat.
        target_accept: acceptance probability that the step size is adapted to.
        max_seconds: limit for the draws after the warm-up; what there is by then is kept. None: no limit.
        trajectory_length: step size times leapfrog steps, in standard deviations once the mass matrix is adapted.
    """

    num_warmup: int = 500
    trajectory_length: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, ("trajectory_length",), float)

    def kernel(self, infer: Any, potential: Any) -> Any:
        return infer.HMC(
            potential_fn=potential, target_accept_prob=self.target_accept, trajectory_length=self.trajectory_length
        )
