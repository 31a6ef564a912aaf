"""Preferences: which of two is better (Bradley and Terry 1952)."""

from __future__ import annotations

from dataclasses import dataclass

from .bernoulli import Logistic

__all__ = ["BradleyTerry"]


@dataclass(frozen=True)
class BradleyTerry(Logistic):
    """p(first wins) = 1 / (1 + exp(u_second - u_first)), of the difference of two utilities.

    The difference is the output of a :class:`~..pairwise.PairwiseMLP`, or of any network where preferences are one of
    several kinds of feedback. Rows are pairs: the inputs of the first, then those of the second. Targets are 1 where
    the first wins and 0 where the second does, shape (rows,).
    """

    num_outputs = 1
