"""One writer per model: a lease with a fencing epoch.

Taking the lease raises the epoch; every commit checks that the epoch is still the writer's own, in the same
transaction. So a writer that was superseded (it slept, its machine froze) can never commit again, whatever it
believes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

from sqlalchemy import Connection, select

from ..inference.errors import LeaseHeld, LeaseLost
from .database import leases

__all__ = ["acquire", "check", "release"]


def acquire(connection: Connection, model_id: int, model: str, *, take_over: bool = False) -> int:
    """Take the lease and return its epoch.

    A holder whose process has ended is superseded at once; with ``take_over`` any holder is.

    Raises:
        LeaseHeld: the holder is alive, or on another machine.
    """
    row = connection.execute(select(leases).where(leases.c.model_id == model_id)).first()
    if row is not None and row.owner is not None and not take_over:
        owner = json.loads(row.owner)
        if owner["host"] != socket.gethostname() or _started(owner["pid"]) == owner["started"]:
            raise LeaseHeld(
                f"model {model!r} is being written by process {owner['pid']} on {owner['host']}: "
                "close that updater, or supersede it with OnlineUpdater(..., take_over=True)"
            )
    epoch = 1 if row is None else row.epoch + 1
    me = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())})
    if row is None:
        connection.execute(leases.insert().values(model_id=model_id, epoch=epoch, owner=me))
    else:
        connection.execute(leases.update().where(leases.c.model_id == model_id).values(epoch=epoch, owner=me))
    return epoch


def check(connection: Connection, model_id: int, epoch: int, model: str) -> None:
    """Raise :class:`LeaseLost` unless the epoch is still the newest; call it in the transaction that writes."""
    row = connection.execute(select(leases.c.epoch).where(leases.c.model_id == model_id)).one()
    if row.epoch != epoch:
        raise LeaseLost(f"another updater took over model {model!r} (epoch {row.epoch}, this one has {epoch})")


def release(connection: Connection, model_id: int, epoch: int) -> None:
    """Give the lease back; a no-op for a writer that was superseded."""
    mine = (leases.c.model_id == model_id) & (leases.c.epoch == epoch)
    connection.execute(leases.update().where(mine).values(owner=None))


def _started(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since boot; None if there is no such process."""
    with contextlib.suppress(OSError):
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
        if state != "Z":
            return fields[18]
        return None
    if not Path("/proc/self/stat").exists():  # no /proc on this system: a live process id is all there is to see
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return "alive"
    return None
