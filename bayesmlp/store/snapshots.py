"""Stored posteriors: their arrays as parts that are shared by content, and which of them are kept.

Each large array is a part of its own, so that one that did not change since another snapshot is not stored again; the
small ones share one part. What is read is checked against the posterior's digest before it is used.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, insert, select

from ..inference.errors import CorruptStore
from .arrays import decode, encode
from .blobs import BlobGone, Blobs
from .database import parts, snapshots
from .digest import (
    canonical_json,
    posterior_digest,
    posterior_digest_of_format_1,
    sha256_of,
    snapshot_checksum,
)

__all__ = ["Prepared", "Snapshot", "Snapshots", "thinned"]

PART_BYTES = 50_000
KEPT_BYTES = 64_000_000
"""Of large arrays that are kept in memory for the next snapshot that has them; each at most an eighth of that."""

WRITE_ATTEMPTS = 5


class Snapshot(NamedTuple):
    """A stored posterior: its place in the log, its spec, its arrays and their digest."""

    offset: int
    spec: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str


class Prepared(NamedTuple):
    """A snapshot whose bytes are kept and whose rows are still to be written."""

    spec: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    fingerprint: Mapping[str, str]
    digest: str
    blobs: list[tuple[str, bytes | None]]


def thinned(offsets: Iterable[int], head: int, ratio: float = 2.0) -> list[int]:
    """Those of some snapshots that may go, so that the ages of the rest are spaced geometrically.

    A snapshot goes if the next older one is at most ``ratio`` times as old as the next newer one that stays: then
    folding again from any point of the log costs at most about ``ratio`` times what it must.

    Args:
        offsets: of the snapshots.
        head: the newest version.
        ratio: of the ages of neighbours that stay; above 1.
    """
    newest_first = sorted(offsets, reverse=True)
    gone, kept_age = [], 0.0
    for i, offset in enumerate(newest_first):
        age = head - offset + 1.0
        is_end = i == 0 or i == len(newest_first) - 1
        if not is_end and head - newest_first[i + 1] + 1.0 <= ratio * kept_age:
            gone.append(offset)
        else:
            kept_age = age
    return gone


class Snapshots:
    """Snapshots of the models of a store.

    Args:
        blobs: where their bytes go.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._kept: OrderedDict[str, tuple[str, np.ndarray]] = OrderedDict()
        self._keeping = threading.Lock()

    def prepare(
        self, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray], fingerprint: Mapping[str, str]
    ) -> Prepared:
        """Keep the bytes of a posterior. A large array's hash is its blob's name: it is taken once for both."""
        divided = _in_parts(arrays)
        written = self.blobs.write(*map(encode, divided))
        alone = zip(divided, written, strict=True)
        known = {next(iter(part)): name for part, (name, _) in alone if len(part) == 1}
        return Prepared(spec, arrays, fingerprint, posterior_digest(spec, arrays, known), written)

    def insert(self, connection: Connection, model_id: int, offset: int, chain: str, prepared: Prepared) -> None:
        """The rows of a snapshot; it takes the place of one at the same offset."""
        self.delete(connection, model_id, [offset], collect=False)
        self.insert_for(connection, [model_id], offset, chain, prepared)

    def insert_for(
        self, connection: Connection, model_ids: Sequence[int], offset: int, chain: str, prepared: Prepared
    ) -> None:
        """The rows of one snapshot as that of several models, which share its bytes."""
        names = []
        for part, (name, data) in zip(_in_parts(prepared.arrays), prepared.blobs, strict=True):
            names.append(self._insert_blob(connection, name, data, part))
        row = {
            "offset": offset,
            "chain": chain,
            "digest": prepared.digest,
            "blob": "",
            "spec": canonical_json(prepared.spec),
            "fingerprint": canonical_json(prepared.fingerprint),
            "created": time.time(),
        }
        row["checksum"] = snapshot_checksum(row)
        connection.execute(insert(snapshots), [{"model_id": model_id, **row} for model_id in model_ids])
        rows = [
            {"model_id": model_id, "offset": offset, "number": i, "blob": name}
            for model_id in model_ids
            for i, name in enumerate(names)
        ]
        if rows:
            connection.execute(insert(parts), rows)

    def _insert_blob(
        self, connection: Connection, name: str, data: bytes | None, part: Mapping[str, np.ndarray]
    ) -> str:
        for _ in range(WRITE_ATTEMPTS):
            try:
                self.blobs.insert(connection, name, data)
                return name
            except BlobGone:  # collected since it was written; now nobody else collects
                [(name, data)] = self.blobs.write(encode(part))
        raise CorruptStore(f"blob {name} does not stay where it is written")

    def delete(self, connection: Connection, model_id: int, offsets: Sequence[int], *, collect: bool = True) -> int:
        """Delete snapshots, and the bytes that only they used; returns how many blobs that were."""
        if not offsets:
            return 0
        these = (snapshots.c.model_id == model_id) & snapshots.c.offset.in_(offsets)
        of_parts = (parts.c.model_id == model_id) & parts.c.offset.in_(offsets)
        used = set(connection.execute(select(parts.c.blob).where(of_parts)).scalars())
        used |= set(connection.execute(select(snapshots.c.blob).where(these)).scalars())
        connection.execute(parts.delete().where(of_parts))
        connection.execute(snapshots.delete().where(these))
        return self.blobs.collect(connection, used) if collect else 0

    def chains(self, connection: Connection, model_id: int) -> dict[int, str]:
        """The chain of each snapshot, by offset, oldest first; one whose offset has rotted is as good as none."""
        query = select(snapshots.c.offset, snapshots.c.chain).where(snapshots.c.model_id == model_id)
        rows = connection.execute(query.order_by(snapshots.c.offset))
        return {row.offset: row.chain for row in rows if isinstance(row.offset, int)}

    def read(self, connection: Connection, model_id: int, offset: int, *, shared: bool = False) -> Snapshot:
        """A snapshot, checked against its digest.

        Args:
            connection: of a reader.
            model_id: of the model.
            offset: of the snapshot.
            shared: whether its large arrays are likely to be those of many others, and are kept in memory for them.

        Raises:
            CorruptStore: it is not there, or not what was written.
        """
        where = (snapshots.c.model_id == model_id) & (snapshots.c.offset == offset)
        row = connection.execute(select(snapshots).where(where)).first()
        if row is None:
            raise CorruptStore(f"there is no snapshot at version {offset}")
        if row.checksum not in (None, snapshot_checksum(row._asdict())):
            raise CorruptStore(f"the row of the snapshot at version {offset} does not have its checksum")
        try:
            spec = json.loads(row.spec)
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptStore(f"the spec of the snapshot at version {offset} is no JSON: {error}") from error
        arrays: dict[str, np.ndarray] = {}
        known: dict[str, str] = {}
        for name in self.blobs_of(connection, model_id, offset):
            part, is_sound = self._part(connection, name, keep=shared)
            arrays |= part
            if is_sound:
                known[next(iter(part))] = name
        digest = posterior_digest_of_format_1(spec, arrays) if row.blob else posterior_digest(spec, arrays, known)
        if digest != row.digest:
            raise CorruptStore(f"the snapshot at version {offset} does not have its digest")
        return Snapshot(offset, spec, arrays, row.digest)

    def _part(self, connection: Connection, name: str, *, keep: bool) -> tuple[dict[str, np.ndarray], bool]:
        """The arrays of a blob; and whether it is one large array that has its hash, so that its digest is known.

        Such arrays are nearly all of what 100,000 branches have: with ``keep`` they stay in memory
        (:data:`KEPT_BYTES`), and are neither read nor hashed again.
        """
        with self._keeping:
            if keep and name in self._kept:
                self._kept.move_to_end(name)
                return dict([self._kept[name]]), True
        data = self.blobs.read(connection, name)
        part = decode(data)
        if not keep or len(part) != 1 or not PART_BYTES <= len(data) <= KEPT_BYTES // 8 or sha256_of([data]) != name:
            return part, False
        array_name, array = next(iter(part.items()))
        kept = array.copy()
        kept.flags.writeable = False
        with self._keeping:
            self._kept[name] = array_name, kept
            while sum(array.nbytes for _, array in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return {array_name: kept}, True

    def blobs_of(self, connection: Connection, model_id: int, offset: int) -> list[str]:
        """Hashes of the blobs that make a snapshot."""
        of_parts = (parts.c.model_id == model_id) & (parts.c.offset == offset)
        names = list(connection.execute(select(parts.c.blob).where(of_parts).order_by(parts.c.number)).scalars())
        if names:
            return names
        where = (snapshots.c.model_id == model_id) & (snapshots.c.offset == offset)  # as format 1 had it
        return [name for name in connection.execute(select(snapshots.c.blob).where(where)).scalars() if name]


def _in_parts(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The small arrays together, each large one alone."""
    small = {name: array for name, array in arrays.items() if array.nbytes < PART_BYTES}
    large = [{name: array} for name, array in sorted(arrays.items()) if array.nbytes >= PART_BYTES]
    return [small, *large] if small else large
