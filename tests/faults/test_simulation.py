"""Lives of a store drawn from seeds, see ``simulate.py``. BAYESMLP_SEEDS sets how many; a failure names its seed, and
BAYESMLP_FIRST_SEED=that BAYESMLP_SEEDS=1 lives it again.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import shim

WORKER = Path(__file__).with_name("simulate.py")


def lives(folder: Path, first: int, seeds: int) -> list[str]:
    return shim.run_under(folder / "disk", WORKER, folder / "disk", first, seeds).stdout.splitlines()


@pytest.mark.parametrize("seeds", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_lives(tmp_path: Path, seeds: int | None) -> None:
    seeds = seeds or int(os.environ.get("BAYESMLP_SEEDS", "40"))
    said = lives(tmp_path, int(os.environ.get("BAYESMLP_FIRST_SEED", "0")), seeds)
    assert len(said) == seeds
    events = Counter(word for line in said for word in line.split()[1:])
    print(f"\n{seeds} seeds: {dict(sorted(events.items()))}")


@pytest.mark.slow
def test_a_seed_lives_the_same_life_again(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    assert lives(tmp_path / "one", 7, 1) == lives(tmp_path / "other", 7, 1)
