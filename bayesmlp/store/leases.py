"""One writer per model: a lease with a fencing epoch.

Taking the lease raises the epoch; every commit checks that the epoch is still the writer's own, in the same
transaction. So a writer that was superseded (it slept, its machine froze) can never commit again, whatever it
believes.

Whether the holder is alive is seen, in SQLite, by its process on this machine; in PostgreSQL by an advisory lock of its
session, which the server drops within seconds once the session's process or machine is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, select, text

from ..inference.errors import CorruptStore, LeaseHeld, LeaseLost
from .database import leases

__all__ = ["acquire", "check", "hold", "release", "touch"]

_EPOCH = select(leases.c.epoch).where(leases.c.model_id == bindparam("model")).with_for_update()


def acquire(connection: Connection, model_id: int, model: str, *, take_over: bool = False) -> int:
    """Take the lease and return its epoch.

    A holder that is seen to be dead is superseded at once; with ``take_over`` any holder is.

    Raises:
        LeaseHeld: the holder is alive, or can't be seen from here.
    """
    row = connection.execute(select(leases).where(leases.c.model_id == model_id).with_for_update()).first()
    if row is not None and row.owner is not None and not take_over:
        owner = _owner_of(row, model)
        if _may_live(connection, model_id, row.epoch, owner):
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
    hold(connection, model_id, epoch)
    return epoch


def check(connection: Connection, model_id: int, epoch: int, model: str) -> None:
    """Raise :class:`LeaseLost` unless the epoch is still the newest; call it in the transaction that writes."""
    row = connection.execute(_EPOCH, {"model": model_id}).one()
    if row.epoch != epoch:
        raise LeaseLost(f"another updater took over model {model!r} (epoch {row.epoch}, this one has {epoch})")


def touch(connection: Connection, model_id: int, epoch: int) -> None:
    """Write to the lease, so that the transaction has something to flush; SQLite writes only what changes."""
    mine = (leases.c.model_id == model_id) & (leases.c.epoch == epoch)
    owner = json.loads(connection.execute(select(leases.c.owner).where(mine)).scalar_one())
    owner["touched"] = owner.get("touched", 0) + 1
    connection.execute(leases.update().where(mine).values(owner=json.dumps(owner)))


def release(connection: Connection, model_id: int, epoch: int) -> None:
    """Give the lease back; a no-op for a writer that was superseded."""
    mine = (leases.c.model_id == model_id) & (leases.c.epoch == epoch)
    connection.execute(leases.update().where(mine).values(owner=None))
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _key(connection, model_id, epoch)})


def hold(connection: Connection, model_id: int, epoch: int) -> bool:
    """Hold the session's lock of an epoch, as a sign of life; whether it could be had."""
    if connection.dialect.name != "postgresql":
        return True
    query = text("SELECT pg_try_advisory_lock(:key)")
    return bool(connection.execute(query, {"key": _key(connection, model_id, epoch)}).scalar_one())


def _owner_of(row: Any, model: str) -> dict[str, Any]:
    try:
        owner = json.loads(row.owner)
        return {key: owner[key] for key in ("host", "pid", "started")}
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptStore(f"the lease of model {model!r} can not be read: {error!r}") from error


def _may_live(connection: Connection, model_id: int, epoch: int, owner: dict[str, Any]) -> bool:
    if connection.dialect.name != "postgresql":
        return bool(owner["host"] != socket.gethostname() or _started(owner["pid"]) == owner["started"])
    if not hold(connection, model_id, epoch):
        return True
    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _key(connection, model_id, epoch)})
    return False


def _key(connection: Connection, model_id: int, epoch: int) -> int:
    """Of the advisory lock of an epoch: a signed integer of 64 bits."""
    schema = connection.execute(text("SELECT current_schema()")).scalar_one()
    hashed = hashlib.sha256(f"bayesmlp {schema} {model_id} {epoch}".encode()).digest()
    return int.from_bytes(hashed[:8], "big", signed=True)


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
