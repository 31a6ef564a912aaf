"""A progress bar for long fits, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .inference.errors import InvalidInput

__all__ = ["EpochCallback", "fit_progress"]

EpochCallback = Callable[[int, int, float], None]
"""Called with the epoch (from 0), the number of epochs and the epoch's mean objective per row."""

_PATIENCE_SECONDS = 1.0
"""A bar that nobody asked for waits so long: short fits show none."""


@contextmanager
def fit_progress(progress: bool | None, on_epoch: EpochCallback | None = None) -> Iterator[Callable[..., None] | None]:
    """What a fit should call after each epoch: the user's own function, and a progress bar where one is wanted.

    A method may add a ``note``, which the bar shows: a sampler's acceptance and divergences.

    Args:
        progress: True for a bar that stays, False for none, None for one that shows after a second and goes away at the
            end, if standard error is a terminal.
        on_epoch: the user's own function.

    Raises:
        InvalidInput: ``progress`` or ``on_epoch`` is something else.
    """
    if progress not in (None, True, False):
        raise InvalidInput(f"progress must be True, False or None, got {progress!r}")
    if on_epoch is not None and not callable(on_epoch):
        raise InvalidInput(f"on_epoch must be a function, got {on_epoch!r}")
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    if progress is False or (progress is None and not on_terminal):
        yield None if on_epoch is None else lambda epoch, epochs, objective, note="": on_epoch(epoch, epochs, objective)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("fit"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("objective {task.fields[objective]:.4g} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=progress is None)
    task = bar.add_task("fit", objective=float("nan"), note="", total=None)
    shown_from = time.monotonic() + (0.0 if progress else _PATIENCE_SECONDS)

    def report(epoch: int, epochs: int, objective: float, note: str = "") -> None:
        if not bar.live.is_started and time.monotonic() >= shown_from:
            bar.start()
        bar.update(task, completed=epoch + 1, total=epochs, objective=objective, note=note)
        if on_epoch is not None:
            on_epoch(epoch, epochs, objective)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
