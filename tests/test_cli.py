"""The command line, on a real store."""

from __future__ import annotations

from pathlib import Path

from store_cases import published, stream
from typer.testing import CliRunner

import bayesmlp as bm
from bayesmlp.cli import app


def test_models_history_and_rollback(tmp_path: Path) -> None:
    x, y = stream(3)
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x, y, event_ids=["a", "b", "c"])
    path = str(tmp_path / "store.db")
    run = CliRunner().invoke
    assert run(app, ["models", path]).output == "m\n"
    shown = run(app, ["history", path, "m", "--last", "2"]).output
    assert "applied" in shown
    assert "4 records" in shown
    assert "3 events" in run(app, ["prequential", path, "m"]).output
    assert run(app, ["rollback", path, "m", "2"]).output == "version 5: as version 2 was\n"
    assert "rolled back" in run(app, ["history", path, "m"], env={"COLUMNS": "200"}).output
    assert run(app, ["history", str(tmp_path / "none.db"), "m"]).exit_code == 2
