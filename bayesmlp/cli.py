"""The command line."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .inference.errors import BayesMLPError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Bayesian networks that keep learning.")


def _console(*, stderr: bool = False) -> Console:
    """What users wrote is shown as it is: no markup."""
    return Console(stderr=stderr, markup=False, highlight=False)


def _store(value: str) -> str:
    """A store that is there."""
    from .store.connections import is_postgresql

    if not is_postgresql(value) and not Path(value).is_file():
        raise typer.BadParameter(f"there is no store at {value!r}")
    return value


StorePath = Annotated[str, typer.Argument(help="The store's file, or its postgresql:// URL.", callback=_store)]
ModelName = Annotated[str, typer.Argument(help="The model's name.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the store and the pictures go.")] = Path("demo-output"),
    engine: Annotated[str | None, typer.Option(help="torch or jax; the first that is installed.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the fit.")] = 0,
) -> None:
    """Learn handwritten digits from a stream of corrections, move between frameworks, unlearn."""
    from .demo import run

    started = time.perf_counter()
    run(folder, engine=engine, seed=seed, console=Console())
    _console().print(f"   ({time.perf_counter() - started:.0f} s)")


@app.command()
def models(store: StorePath) -> None:
    """The models of a store."""
    from .store import open_store

    with open_store(store) as opened:
        for name in opened.names():
            _console().print(name)


@app.command()
def history(
    store: StorePath,
    name: ModelName,
    last: Annotated[int, typer.Option(help="How many records, from the newest.", min=1)] = 20,
    audit: Annotated[bool, typer.Option("--audit", help="Who appended each record, and when.")] = False,
) -> None:
    """What happened to a model, record by record."""
    from .store import open_store

    with open_store(store) as opened:
        entries = opened.history(name)
    who = ("received", "actor", "source") if audit else ()
    table = Table("version", *who, "kind", "event", "status", "surprise", "information", "note")
    for entry in entries[-last:]:
        when = datetime.fromtimestamp(entry.received, UTC).strftime("%Y-%m-%d %H:%M:%S")
        numbers = ["" if value is None else f"{value:.3f}" for value in (entry.surprise, entry.information)]
        by = (when, entry.actor, entry.source or "") if audit else ()
        table.add_row(str(entry.version), *by, entry.kind, entry.event_id or "", entry.status, *numbers, entry.note)
    _console().print(table)
    _console().print(f"{len(entries)} records")


@app.command()
def prequential(
    store: StorePath,
    name: ModelName,
    window: Annotated[int, typer.Option(help="How many events a row sums up.", min=2)] = 100,
) -> None:
    """How a model predicted its events before it learned them."""
    from .store import open_store

    with open_store(store) as opened:
        _console().print(opened.prequential(name).table(window))


@app.command()
def rollback(
    store: StorePath, name: ModelName, version: Annotated[int, typer.Argument(help="A version of its history.")]
) -> None:
    """Go back to an earlier version of a model."""
    from .store import open_store

    with open_store(store) as opened:
        _console().print(f"version {opened.rollback(name, version)}: as version {version} was")


@app.command()
def verify(
    store: StorePath, name: Annotated[str | None, typer.Argument(help="The model's name; all of them.")] = None
) -> None:
    """Check every byte of a store against what was written."""
    from .store import open_store

    with open_store(store) as opened:
        problems = opened.verify(name)
    for problem in problems:
        _console().print(f"{problem.model or 'database'}, version {problem.version}: {problem.what}")
    _console().print(f"{len(problems)} problems" if problems else "sound")
    if problems:
        raise typer.Exit(1)


@app.command()
def repair(store: StorePath, name: ModelName) -> None:
    """Make the snapshots of a model that are damaged again, from an older one and the log."""
    from .store import open_store

    with open_store(store) as opened:
        _console().print(f"{opened.repair(name)} damaged snapshots deleted")


@app.command(name="export")
def export_(
    store: StorePath, name: ModelName, path: Annotated[Path, typer.Argument(help="Of the new file.", dir_okay=False)]
) -> None:
    """Write a model with its log to one file."""
    from .store import open_store

    with open_store(store) as opened:
        opened.export(name, path)


@app.command(name="import")
def import_(
    store: Annotated[str, typer.Argument(help="The store's file, made if absent, or its postgresql:// URL.")],
    path: Annotated[Path, typer.Argument(help="An exported model.", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="For it here; its own.")] = None,
) -> None:
    """Take in a model from a file of export."""
    from .store import open_store

    with open_store(store) as opened:
        _console().print(opened.import_(path, name=name))


def main() -> None:
    """Run; the library's own errors are shown as one line."""
    try:
        app()
    except BayesMLPError as error:
        _console(stderr=True).print(f"error: {error}")
        raise SystemExit(1) from error
