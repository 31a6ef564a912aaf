"""Weights that do not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engines.base import Engine
from .base import Dynamics

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(Dynamics):
    """The weights do not change; the posterior of a static model only ever sharpens."""

    @property
    def is_static(self) -> bool:
        return True

    def rates(self, engine: Engine, elapsed: Any) -> None:
        """None: weights stay."""
        return
