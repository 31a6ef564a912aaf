"""The demonstration, as a user runs it, on each framework."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

import bayesmlp as bm

pytest.importorskip("sklearn", reason="pip install 'bayesmlp[sklearn]' to enable")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_the_demonstration(tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine, reason=f"pip install 'bayesmlp[{engine}]' to enable")
    from bayesmlp.demo import run

    console = Console(record=True, width=160, force_terminal=False)
    run(tmp_path / "out", engine=engine, seed=1, console=console)
    text = console.export_text()
    assert "digest equals the one before" in text
    different = re.search(r"differ from \w+'s by at most ([0-9.e+-]+)\.", text)
    assert different is not None
    assert float(different.group(1)) <= 1e-5
    assert (tmp_path / "out" / "demo.png").stat().st_size > 20_000
    history = bm.open_store(tmp_path / "out" / "feedback.db").history("digits")
    assert sum(entry.kind == "event" for entry in history) == 1260
    assert sum(entry.status == "retracted" for entry in history) == 60
