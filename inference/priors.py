"""Priors of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .errors import InvalidInput

__all__ = ["NormalPrior"]


@dataclass(frozen=True)
class NormalPrior:
    """Independent normal weights whose variance shrinks with the fan-in.

    A weight of a layer with n inputs has standard deviation ``scale / √n``, so that the layer's pre-activations have
    about the same prior scale whatever its width; a bias has standard deviation ``bias_scale``.

    Args:
        scale: positive; one number for all layers, or one per layer, first to last.
        bias_scale: positive; likewise.
        output_scale: positive; multiplies the scale of the last layer's weights: one number, or one per output, where
            outputs mean unlike things (a mean and a log variance).

    Raises:
        InvalidInput: a scale that is not positive and finite, or not of one of these shapes.
    """

    scale: float | tuple[float, ...] = 2.0
    bias_scale: float | tuple[float, ...] = 1.0
    output_scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "bias_scale", "output_scale"):
            value = getattr(self, name)
            numbers = np.asarray(value)
            if numbers.dtype.kind not in "iuf" or not np.all(np.isfinite(numbers)) or not np.all(numbers > 0):
                raise InvalidInput(f"NormalPrior.{name} must be positive and finite, got {value!r}")
            if numbers.ndim > 1 or not numbers.size:
                raise InvalidInput(f"NormalPrior.{name} must be one number, or a sequence of them, got {value!r}")
            if numbers.ndim:
                object.__setattr__(self, name, tuple(float(v) for v in numbers))

    def precision(self, shapes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, ...]:
        """Prior precision of every weight, one matrix (inputs + 1, outputs) per layer, in float64."""
        self.check(shapes)
        scales = self.scales(len(shapes))
        bias_scales = self._per_layer("bias_scale", len(shapes))
        precisions = []
        for (rows, columns), scale, bias_scale in zip(shapes, scales, bias_scales, strict=True):
            precision = np.full((rows, columns), (rows - 1) / scale**2)
            precision[-1] = 1 / bias_scale**2
            precisions.append(precision)
        precisions[-1][:-1] /= self._per_output(shapes[-1][1]) ** 2
        return tuple(precisions)

    def check(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Raises :class:`InvalidInput` unless the scales fit layers of those shapes."""
        self.scales(len(shapes))
        self._per_layer("bias_scale", len(shapes))
        self._per_output(shapes[-1][1])

    def times(self, factor: float) -> NormalPrior:
        """The prior with all weights' scales multiplied; biases keep theirs."""
        scale = tuple(factor * s for s in self.scale) if isinstance(self.scale, tuple) else factor * self.scale
        return replace(self, scale=scale)

    def scales(self, num_layers: int) -> tuple[float, ...]:
        """Scale of each layer."""
        return self._per_layer("scale", num_layers)

    def _per_output(self, num_outputs: int) -> np.ndarray:
        values = np.atleast_1d(np.asarray(self.output_scale, dtype=np.float64))
        if values.size not in (1, num_outputs):
            raise InvalidInput(f"NormalPrior.output_scale has {values.size} entries for {num_outputs} outputs")
        return values

    def _per_layer(self, name: str, num_layers: int) -> tuple[float, ...]:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return (value,) * num_layers
        if len(value) != num_layers:
            raise InvalidInput(f"NormalPrior.{name} has {len(value)} entries for a network of {num_layers} layers")
        return value
