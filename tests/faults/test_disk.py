"""Every write, fsync, truncation, rename and new file of a stream fails once, and from there on for good.

BAYESMLP_DISK_STEP: every how many changes of a file one fails (1: all of them).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import shim

WORKER = Path(__file__).with_name("disk_worker.py")


@pytest.mark.parametrize("step", [165, pytest.param(None, marks=pytest.mark.slow)])
def test_failing_disk(tmp_path: Path, step: int | None) -> None:
    step = step or int(os.environ.get("BAYESMLP_DISK_STEP", "40"))
    done = shim.run_under(tmp_path / "disk", WORKER, "fail", tmp_path / "disk", step)
    said = json.loads(done.stdout.splitlines()[-1])
    print(f"\nfailures of the disk: {said}")
    assert said["met"] == said["runs"] >= 8
    assert said["refused"] > said["runs"] / 3
