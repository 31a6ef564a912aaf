"""Settings of another type are refused by name, as those out of their range are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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
    "targets": (lambda: bm.Gaussian("x"), r"Gaussian\.num_outputs must be an integer of at least 1, got 'x'"),
    "half a target": (lambda: bm.Gaussian(2.0), r"Gaussian\.num_outputs must be an integer of at least 1, got 2\.0"),
    "noise": (
        lambda: bm.Gaussian(noise_variance="a"),
        r"Gaussian\.noise_variance must be positive and finite, got 'a'",
    ),
    "labels": (lambda: bm.Bernoulli("x"), r"Bernoulli\.num_outputs must be an integer of at least 1, got 'x'"),
    "blocks": (lambda: bm.Blocks(3), r"Blocks\.parts must be pairs of a structure and .*, got 3"),
    "blocks of what": (lambda: bm.Blocks((("x", "rest"),)), r"Blocks\.parts must have a structure first in each pair"),
    "activation": (lambda: bm.MLP((3,), ["relu"]), r"activation must be one of .*, got \['relu'\]"),
    "table of scales": (
        lambda: bm.NormalPrior([[1.0]]),
        r"NormalPrior\.scale must be one number, or a sequence",
    ),
    "no scales": (lambda: bm.NormalPrior(()), r"NormalPrior\.scale must be .*, got \(\)"),
    "ensemble": (lambda: bm.Ensemble(scales=1.0), r"Ensemble\.scales must be positive numbers, got 1\.0"),
    "words": (lambda: bm.Ensemble(scales=("a", "b"), members=2), r"Ensemble\.scales must be positive numbers"),
    "not a number": (lambda: bm.Ensemble(scales=(1.0, float("nan")), members=2), r"Ensemble\.scales must be positive"),
    "too few scales": (lambda: bm.Ensemble(scales=(1.0,), members=2), r"Ensemble\.scales must be 2 positive numbers"),
    "true members": (
        lambda: bm.Ensemble(members=True),
        r"Ensemble\.members must be an integer of at least 1",
    ),
    "stacking": (lambda: bm.Stacking(scales=2.0), r"Stacking\.scales must be positive numbers, got 2\.0"),
    "stacked words": (lambda: bm.Stacking(scales="ab"), r"Stacking\.scales must be positive numbers, got 'ab'"),
    "true folds": (lambda: bm.Stacking(folds=True), r"Stacking\.folds must be an integer of at least 1, got True"),
    "deviation": (lambda: bm.Variational(initial_deviation="a"), r"Variational\.initial_deviation must be positive"),
    "endless deviation": (
        lambda: bm.Variational(initial_deviation=float("inf")),
        r"Variational\.initial_deviation must be positive and finite, got inf",
    ),
    "curvature": (lambda: bm.Variational(initial_curvature="a"), r"Variational\.initial_curvature must be at least 0"),
    "optimizer": (lambda: bm.Variational(optimizer=["ivon"]), r"optimizer must be 'adam', 'ivon', .*, got \['ivon'\]"),
    "decay": (lambda: bm.IVON(curvature_decay="a"), r"IVON\.curvature_decay must be in \[0, 1\), got 'a'"),
    "rate": (lambda: bm.Adam(deviation_rate="x"), r"Adam\.deviation_rate must be positive, got 'x'"),
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


def test_counts_and_scales_may_be_numpys() -> None:
    assert bm.Ensemble(members=np.int64(3), scales=np.ones(3)).scales == (1.0, 1.0, 1.0)
    assert bm.Stacking(members=np.int64(3), scales=np.array([1.0, 2.0])).scales == (1.0, 2.0)
    assert bm.NormalPrior(np.array([1.0, 2.0])) == bm.NormalPrior((1.0, 2.0))


@pytest.mark.parametrize("value", ["a", None, [0.1, 0.9], 1.5])
def test_levels_are_numbers(value: Any) -> None:
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="numpy")
    model.start_from_prior(2)
    answer = model.predict(np.ones((1, 2)))
    with pytest.raises(bm.errors.InvalidInput, match="level must be between 0 and 1"):
        answer.interval(value)
    with pytest.raises(bm.errors.InvalidInput, match="q must be between 0 and 1"):
        answer.quantile(value)
    with pytest.raises(bm.errors.InvalidInput, match="seed must be an integer of at least 0, got -1"):
        answer.sample(2, seed=-1)


@pytest.mark.parametrize("memory", [None, bm.Memory(5)], ids=["plain", "memory"])
def test_a_source_is_a_name(memory: bm.Memory | None) -> None:
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), structure=bm.Full(), memory=memory, engine="numpy")
    for learn in (model.update, model.update_each):
        with pytest.raises(bm.errors.InvalidInput, match="source must be a string or None, got 5"):
            learn([[0.1, 0.2]], [0.3], source=5)
