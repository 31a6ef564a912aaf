"""Every write, fsync, truncation, rename and new file of a stream fails once, and from there on for good.

BAYESMLP_DISK_STEP: every how many changes of a file one fails (1: all of them).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import shim
from sqlalchemy import select
from store_cases import published

from bayesmlp.store.database import leases
from bayesmlp.store.log import NewRecord

WORKER = Path(__file__).with_name("disk_worker.py")


@pytest.mark.parametrize("step", [165, pytest.param(None, marks=pytest.mark.slow)])
def test_failing_disk(tmp_path: Path, step: int | None) -> None:
    step = step or int(os.environ.get("BAYESMLP_DISK_STEP", "40"))
    done = shim.run_under(tmp_path / "disk", WORKER, "fail", tmp_path / "disk", step)
    said = json.loads(done.stdout.splitlines()[-1])
    print(f"\nfailures of the disk: {said}")
    assert said["met"] == said["runs"] >= 8
    assert said["refused"] > said["runs"] / 3


def test_after_a_commit_in_doubt_a_repeat_is_flushed_before_it_is_acknowledged(tmp_path: Path) -> None:
    """A flush may fail after the commit: then the event can be read, and a repeat of it alone would write nothing."""
    record = NewRecord("event", "e", {"x": [[0.0]]})
    with published(tmp_path) as store, store.write("m") as writer:

        def owner() -> str:
            with store.read() as connection:
                return str(connection.execute(select(leases.c.owner)).scalar_one())

        writer.append([record])
        before = owner()
        assert writer.append([record])[0].repeated
        assert owner() == before
        with pytest.raises(KeyboardInterrupt), writer.transaction():
            raise KeyboardInterrupt
        assert writer.append([record])[0].repeated
        assert owner() != before
