"""Rows in few sizes, so that compiled functions are compiled few times."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inference.engines import Engine

__all__ = ["fixed_size_chunks"]

_ROWS_AT_ONCE = 256


def fixed_size_chunks(engine: Engine, x: np.ndarray) -> list[Any]:
    """Rows as the engine's arrays whose sizes are powers of two up to 256, padded by copies of the first row."""
    size = min(_ROWS_AT_ONCE, 1 << (len(x) - 1).bit_length())
    padded = np.concatenate([x, np.repeat(x[:1], -len(x) % size, axis=0)])
    return [engine.asarray(padded[i : i + size]) for i in range(0, len(padded), size)]
