"""Settings of another type are refused by name, as those out of their range are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import bayesmlp as bm

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "forgetting": (lambda: bm.Forgetting("a"), r"Forgetting\.factor must be in \(0, 1\], got 'a'"),
    "random walk": (lambda: bm.RandomWalk("a"), r"RandomWalk\.growth must be finite and at least 0, got 'a'"),
    "hazard": (lambda: bm.ChangePoint("x"), r"ChangePoint\.hazard must be in \(0, 1\), got 'x'"),
    "hypotheses": (lambda: bm.ChangePoint(hypotheses=2.5), r"ChangePoint\.hypotheses must be an integer of at least 2"),
    "candidates": (lambda: bm.AdaptiveForgetting(3), r"candidates must be at least two of Static\(\), .* got 3"),
    "share": (lambda: bm.AdaptiveForgetting(share="x"), r"AdaptiveForgetting\.share must be in \[0, 1\)"),
    "rank": (lambda: bm.LowRank("a"), r"LowRank\.rank must be an integer of at least 1, got 'a'"),
    "half a rank": (lambda: bm.LowRank(2.5), r"LowRank\.rank must be an integer of at least 1, got 2\.5"),
    "members": (lambda: bm.Mixture(bm.Full(), "a"), r"Mixture\.members must be an integer of at least 1, got 'a'"),
    "half a member": (lambda: bm.Mixture(bm.Full(), 2.5), r"Mixture\.members must be an integer of at least 1"),
    "one scale": (lambda: bm.EvidenceGrid(bm.Full(), 5), r"EvidenceGrid\.scales must be positive numbers, got 5"),
    "dispersions": (
        lambda: bm.EvidenceGrid(bm.Full(), dispersions=("a",)),
        r"EvidenceGrid\.dispersions must be positive numbers, got \('a',\)",
    ),
    "prune below": (
        lambda: bm.EvidenceGrid(bm.Full(), prune_below="a"),
        r"Mixture\.prune_below must be a negative number or None, got 'a'",
    ),
    "strength": (lambda: bm.Memory(strength="x"), r"Memory\.strength must be positive and finite, got 'x'"),
    "surprise": (lambda: bm.Memory(surprise="x"), r"Memory\.surprise must be in \[0, 1\], got 'x'"),
    "held back": (
        lambda: bm.Consolidate(held_back="x"),
        r"Consolidate\.held_back must be in \(0, 1\), got 'x'",
    ),
    "tether": (lambda: bm.Consolidate(tether="x"), r"Consolidate\.tether must be in \(0, 1\] or None"),
    "scale": (lambda: bm.StudentT(scale="x"), r"StudentT\.scale must be positive and finite, got 'x'"),
    "degrees": (
        lambda: bm.StudentT(degrees_of_freedom="x"),
        r"StudentT\.degrees_of_freedom must be finite and above 1",
    ),
    "outputs": (lambda: bm.StudentT("x"), r"StudentT\.num_outputs must be an integer of at least 1, got 'x'"),
    "tolerance": (lambda: bm.VariationalStep("x"), r"VariationalStep\.tolerance must be positive, got 'x'"),
    "iterations": (
        lambda: bm.VariationalStep(max_iterations=1.5),
        r"VariationalStep\.max_iterations must be an integer of at least 1, got 1\.5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(name: str) -> None:
    build, message = BAD[name]
    with pytest.raises(bm.errors.InvalidInput, match=message):
        build()


@pytest.mark.parametrize("memory", [None, bm.Memory(5)], ids=["plain", "memory"])
def test_a_source_is_a_name(memory: bm.Memory | None) -> None:
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), structure=bm.Full(), memory=memory, engine="numpy")
    for learn in (model.update, model.update_each):
        with pytest.raises(bm.errors.InvalidInput, match="source must be a string or None, got 5"):
            learn([[0.1, 0.2]], [0.3], source=5)
