"""Functions drawn from the posterior: the same weights for every call, so that their values go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .batches import fixed_size_chunks
from .inference.engines import Engine
from .inference.network import Network
from .scaling import Scaling
from .validation import check_inputs

__all__ = ["FUNCTION_METHODS", "FunctionSamples"]

FUNCTION_METHODS = ("linearized", "samples")


class FunctionSamples:
    """Draws of the network as functions of its inputs, for Thompson sampling and Bayesian optimisation.

    ``f_s(x) = f(m, x) + J(x)(θ_s - m)`` for ``"linearized"``, ``f_s(x) = f(θ_s, x)`` for ``"samples"``. The draws are
    fixed: a value does not depend on what else is asked, nor on what the model learns later.

    Args:
        engine: of the arrays.
        network: the network.
        scaling: of inputs and targets.
        num_inputs: number of inputs.
        method: ``"linearized"`` or ``"samples"``.
        groups: draws that share a mean, one group for each member of a mixture that any are of: m, one matrix per
            layer, θ_s - m, (S, ...) for each layer, and S. Arrays without uncertainty have no axis of draws.
    """

    def __init__(
        self,
        engine: Engine,
        network: Network,
        scaling: Scaling,
        num_inputs: int,
        method: str,
        groups: Sequence[tuple[Any, Any, int]],
    ) -> None:
        self.method = method
        self._engine, self._network, self._scaling, self._num_inputs = engine, network, scaling, num_inputs
        self._groups = list(groups)

    def __len__(self) -> int:
        return sum(count for *_, count in self._groups)

    def __repr__(self) -> str:
        return f"FunctionSamples({len(self)} functions, {self.method})"

    def __call__(self, X: Any) -> np.ndarray:  # noqa: N803
        """Values of every function: (S, N), or (S, N, K) for several outputs.

        Where outputs and targets correspond, in the units of the targets; for classes, logits.

        Args:
            X: inputs, (rows, inputs).

        Raises:
            InvalidInput: bad inputs.
        """
        x = self._scaling.inputs(check_inputs(X, self._num_inputs, network=self._network))
        chunks = fixed_size_chunks(self._engine, x)
        pieces = [[self._compiled(mean, steps, rows) for rows in chunks] for mean, steps, _ in self._groups]
        columns = [np.concatenate([self._engine.to_numpy(part) for part in piece], axis=1) for piece in pieces]
        outputs = np.concatenate(columns)[:, : len(x)].astype(np.float64)
        if outputs.shape[2] != len(self._scaling.target_scale):
            return outputs  # outputs that are not one for each target have no units of theirs
        values = outputs * self._scaling.target_scale + self._scaling.target_mean
        return values[:, :, 0] if values.shape[2] == 1 else values

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        engine, network = self._engine, self._network

        def linearized(mean: Any, deviations: Any, rows: Any) -> Any:
            outputs, factors = network.factors(engine, mean, rows)
            uncertain = [step.ndim > m.ndim for m, step in zip(mean, deviations, strict=True)]
            moves = [
                factor.push_forward(engine, step)
                for factor, step, flag in zip(factors, deviations, uncertain, strict=True)
                if flag
            ]
            return outputs + engine.xp.permute_dims(sum(moves[1:], start=moves[0]), (2, 0, 1))

        def sampled(mean: Any, deviations: Any, rows: Any) -> Any:
            weights = tuple(m + step for m, step in zip(mean, deviations, strict=True))
            return network.apply(engine, weights, rows)

        return engine.jit(linearized if self.method == "linearized" else sampled)
