"""What happens to the posterior between events: one kind in each file."""

from .adaptive_forgetting import AdaptiveForgetting
from .base import Dynamics, Hypotheses, Rates
from .change_point import ChangePoint, ChangePointState
from .forgetting import Forgetting
from .random_walk import RandomWalk
from .static import Static

__all__ = [
    "AdaptiveForgetting",
    "ChangePoint",
    "ChangePointState",
    "Dynamics",
    "Forgetting",
    "Hypotheses",
    "RandomWalk",
    "Rates",
    "Static",
]
