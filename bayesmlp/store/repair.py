"""What can be made again of a model's damaged snapshots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..inference.engines import Engine
from ..inference.errors import CorruptStore
from ..stepper import step_fingerprint
from .fold import Fold
from .log import NewRecord
from .verify import lost_consolidations, unsound_snapshots
from .writer import Writer

if TYPE_CHECKING:
    from .store import PosteriorStore

__all__ = ["repair"]

_log = logging.getLogger(__name__)


def repair(store: PosteriorStore, name: str, engine: str | Engine | None, network: Any) -> int:
    """See :meth:`PosteriorStore.repair`."""
    from ..replay import replay

    with store.write(name) as writer:
        bad = sorted({offset for offset, _ in unsound_snapshots(store, writer.model_id)})
        lost = lost_consolidations(store, writer.log, bad)
        if not bad and not lost:
            return 0
        store.snapshots.blobs.forget()
        _take_off(writer, lost)
        result = replay(store, name, engine=engine, network=network)
        model, fold = result.stepper.model, result.fold
        fingerprint = step_fingerprint(model.engine)
        brought = {record.offset for record in fold.marks} - set(bad)  # a version has one snapshot
        if fingerprint == fold.fingerprint and fold.head not in brought:
            prepared = store.snapshots.prepare(model.spec(), result.stepper.to_arrays(), fingerprint)
            writer.snapshot(fold.head, fold.chain, prepared, {}, [offset for offset in bad if offset != fold.head])
        else:
            with writer.transaction() as connection:
                store.snapshots.delete(connection, writer.model_id, bad)
        return len(bad)


def _take_off(writer: Writer, lost: Sequence[int]) -> None:
    """Retract consolidations, whose fits can't be made again, if the events that they learned can be folded instead.

    Also where a later snapshot is sound: without that of the consolidation, no retraction of what came after it could
    be folded. Where payloads were erased the later snapshot is all that is left, and the consolidation stays.
    """
    log = writer.log
    possible = [offset for offset in lost if not _erased_before(writer, log.fold(), offset)]
    if possible:
        _log.warning("consolidations at versions %s of model %r are taken off its line", possible, log.name)
        writer.append([NewRecord("retract", None, {"event_ids": [], "consolidations": possible})])


def _erased_before(writer: Writer, fold: Fold, consolidation: int) -> list[int]:
    """Erased payloads between a consolidation on the line and the sound snapshot before it."""
    place = next((i for i, record in enumerate(fold.line) if record.offset == consolidation), 0)
    try:
        covered, _ = writer.store.nearest_snapshot(writer.model_id, fold, place)
    except CorruptStore:
        covered = 0
    learned = [record.learned for record in fold.line[covered:place] if record.learned is not None]
    return writer.log.purged_among(learned)
