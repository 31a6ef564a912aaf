"""The No-U-Turn sampler, run by NumPyro on JAX and by Pyro on torch (Hoffman and Gelman 2014)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.base import Engine
from ..errors import InvalidInput, MissingDependency
from .program import Program

__all__ = ["NUTS", "Chains"]


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws on the host.

    Attributes:
        sites: values of each site, (chains, draws, ...).
        diverging: whether the trajectory diverged, (chains, draws).
    """

    sites: dict[str, np.ndarray]
    diverging: np.ndarray


@dataclass(frozen=True)
class NUTS:
    """Sample the exact posterior: for small networks the reference that approximations are judged by.

    Args:
        num_warmup: adaptation steps per chain.
        num_samples: draws per chain.
        num_chains: independent chains; at least 2 for R-hat.
        target_accept: acceptance probability that the step size is adapted to.
        max_tree_depth: a trajectory has at most 2^depth - 1 leapfrog steps.
    """

    num_warmup: int = 500
    num_samples: int = 500
    num_chains: int = 2
    target_accept: float = 0.8
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        for name in ("num_warmup", "num_samples", "num_chains", "max_tree_depth"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"NUTS.{name} must be at least 1, got {getattr(self, name)!r}")
        if not 0 < self.target_accept < 1:
            raise InvalidInput(f"NUTS.target_accept must be between 0 and 1, got {self.target_accept!r}")

    def run(self, engine: Engine, program: Program, x: Any, y: Any, seed: int) -> Chains:
        """Run the chains, each started from a draw of the prior.

        Args:
            engine: torch or jax, whose language the program is in.
            program: from :func:`~.program.probabilistic_program`.
            x: scaled inputs (N, I), of the engine.
            y: prepared targets, of the engine.
            seed: of the chains.
        """
        if engine.name.startswith("jax"):
            return self._run_numpyro(engine, program, x, y, seed)
        return self._run_pyro(engine, program, x, y, seed)

    def _run_numpyro(self, engine: Engine, program: Program, x: Any, y: Any, seed: int) -> Chains:
        try:
            from numpyro.infer import MCMC
            from numpyro.infer import NUTS as Kernel
            from numpyro.infer.initialization import init_to_sample
        except ImportError as error:
            raise MissingDependency("numpyro", "jax") from error

        kernel = Kernel(
            program,
            target_accept_prob=self.target_accept,
            max_tree_depth=self.max_tree_depth,
            init_strategy=init_to_sample,
        )
        run = MCMC(
            kernel,
            num_warmup=self.num_warmup,
            num_samples=self.num_samples,
            num_chains=self.num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        with engine.scope() if engine.dtype == "float64" else contextlib.nullcontext():
            run.run(engine.key(seed), x, y)
            draws = {name: engine.to_numpy(v) for name, v in run.get_samples(group_by_chain=True).items()}
            diverging = engine.to_numpy(run.get_extra_fields(group_by_chain=True)["diverging"])
        return Chains(draws, diverging)

    def _run_pyro(self, engine: Engine, program: Program, x: Any, y: Any, seed: int) -> Chains:
        try:
            from pyro.infer import MCMC
            from pyro.infer import NUTS as Kernel
            from pyro.infer.autoguide.initialization import init_to_sample
        except ImportError as error:
            raise MissingDependency("pyro-ppl", "torch") from error
        import torch

        chains: list[dict[str, np.ndarray]] = []
        diverging = np.zeros((self.num_chains, self.num_samples), dtype=bool)
        for chain in range(self.num_chains):
            with engine.scope(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 7919 * chain)  # Pyro draws from the global stream: forked, and given back
                kernel = Kernel(
                    program,
                    target_accept_prob=self.target_accept,
                    max_tree_depth=self.max_tree_depth,
                    init_strategy=init_to_sample,
                )
                run = MCMC(kernel, num_samples=self.num_samples, warmup_steps=self.num_warmup, disable_progbar=True)
                run.run(x, y)
                chains.append({name: engine.to_numpy(v) for name, v in run.get_samples().items()})
                diverging[chain, run.diagnostics()["divergences"]["chain 0"]] = True
        return Chains({name: np.stack([c[name] for c in chains]) for name in chains[0]}, diverging)
