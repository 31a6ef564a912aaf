"""Hamiltonian Monte Carlo by the frameworks' own probabilistic languages: NumPyro on JAX, Pyro on torch.

Duane et al. (1987); Hoffman and Gelman (2014), "The No-U-Turn sampler". Their kernels are given this package's density,
so whatever network and likelihood a model has can be sampled; in NumPyro all chains run in one program.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InvalidInput, MissingDependency
from ..methods import FitProblem
from .base import Sampler
from .chains import Chains
from .target import Target, data_of

__all__ = ["HMC", "NUTS"]


@dataclass(frozen=True)
class Hamiltonian(Sampler):
    """What NUTS and HMC share: adaptation of step size and diagonal mass matrix, chains from draws of the prior."""

    target_accept: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target_accept < 1:
            raise InvalidInput(
                f"{type(self).__name__}.target_accept must be between 0 and 1, got {self.target_accept!r}"
            )

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
        try:
            from numpyro import infer
        except ImportError as error:
            raise MissingDependency("numpyro", "jax") from error
        engine, data = problem.engine, data_of(problem)
        density = target.log_density(data)
        run = infer.MCMC(
            self.kernel(infer, lambda z: -density(z)),
            num_warmup=self.num_warmup,
            num_samples=self.num_samples,
            num_chains=self.num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        with engine.scope() if engine.dtype == "float64" else contextlib.nullcontext():
            first = start if self.num_chains > 1 else start[0]
            fields = ("potential_energy", "diverging", "accept_prob", "num_steps")
            run.run(engine.key(problem.seed), init_params=engine.asarray(first), extra_fields=fields)
            positions = engine.to_numpy(run.get_samples(group_by_chain=True))
            seen = {k: engine.to_numpy(v) for k, v in run.get_extra_fields(group_by_chain=True).items()}
            step_size = float(np.mean(engine.to_numpy(run.last_state.adapt_state.step_size)))
        statistics = {
            "log_density": -seen["potential_energy"],
            "acceptance": seen["accept_prob"],
            "diverging": seen["diverging"].astype(np.float64),
            "gradients": seen["num_steps"].astype(np.float64),
        }
        return Chains(positions, statistics), {"step_size": step_size}

    def _run_pyro(self, problem: FitProblem, target: Target, start: np.ndarray) -> tuple[Chains, dict[str, Any]]:
        try:
            from pyro import infer
        except ImportError as error:
            raise MissingDependency("pyro-ppl", "torch") from error
        import torch

        engine, data = problem.engine, data_of(problem)
        density = target.log_density(data)
        positions, densities, steps = [], [], []
        diverging = np.zeros((self.num_chains, self.num_samples))
        for chain in range(self.num_chains):
            with engine.scope(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(problem.seed + 7919 * chain)  # Pyro draws from the global stream: forked, given back
                kernel = self.kernel(infer, lambda sites: -density(sites["z"]))
                first = {"z": engine.asarray(start[chain])}
                run = infer.MCMC(
                    kernel, num_samples=self.num_samples, warmup_steps=self.num_warmup, initial_params=first,
                    disable_progbar=True,
                )  # fmt: skip
                run.run()
                draws = run.get_samples()["z"]
                positions.append(engine.to_numpy(draws))
                densities.append(np.array([float(density(z)) for z in draws]))
                steps.append(float(kernel.step_size))
                diverging[chain, run.diagnostics()["divergences"]["chain 0"]] = 1.0
        statistics = {"log_density": np.stack(densities), "diverging": diverging}
        return Chains(np.stack(positions), statistics), {"step_size": float(np.mean(steps))}


@dataclass(frozen=True)
class NUTS(Hamiltonian):
    """The exact posterior of a small network: the reference that approximations are judged by.

    Args:
        num_warmup: adaptation steps per chain.
        num_samples: draws per chain.
        num_chains: independent chains; at least 2 for R-hat.
        target_accept: acceptance probability that the step size is adapted to.
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
        trajectory_length: step size times leapfrog steps, in standard deviations once the mass matrix is adapted.
    """

    num_warmup: int = 500
    trajectory_length: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.trajectory_length < np.inf:
            raise InvalidInput(f"HMC.trajectory_length must be a positive number, got {self.trajectory_length!r}")

    def kernel(self, infer: Any, potential: Any) -> Any:
        return infer.HMC(
            potential_fn=potential, target_accept_prob=self.target_accept, trajectory_length=self.trajectory_length
        )
