"""What changes an updater's past: quarantine, retraction, purge, rollback, consolidation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..admission import Quarantined
from ..branching import refuse_merged
from ..consolidation import Consolidate, Consolidation, consolidate_log
from ..feedback import Observation, check_event_id, is_time
from ..inference.errors import InvalidInput, Purged, UnknownEvent
from ..model import BayesianMLP
from ..receipts import Purge, Receipt, Retraction
from ..replay import network_for
from ..stepper import step_fingerprint
from ..store.database import records
from ..store.log import NewRecord
from ..store.snapshots import Snapshot
from .hearing import Hearer

__all__ = ["Reviser"]


class Reviser(Hearer):
    """An updater that takes back, and learns again."""

    def quarantined(self) -> list[Quarantined]:
        """The events in quarantine, oldest first: durable, not learned. See :class:`Admission`."""
        with self._applied() as line:
            found = []
            for row in self._writer.log.stored(records.c.kind == "quarantine", records.c.purged.is_(None)):
                if line.status.get(row.offset) == "quarantined":
                    x, y, *_ = Observation.from_body(row.body, self.model)
                    found.append(
                        Quarantined(
                            str(row.event_id), row.offset, row.source, row.received, row.body["excess_surprise"], x, y
                        )
                    )
            return found

    def release(self, event_ids: Iterable[str]) -> list[Receipt]:
        """Learn events that are in quarantine, now, in the order given, each as a record of its own.

        To refuse them instead, :meth:`retract` them.

        Args:
            event_ids: of the events.

        Raises:
            UnknownEvent: an id that is not in quarantine; nothing is released.
            Purged: the payload of one was erased, see :class:`Retention`; nothing is released.
        """
        with self._alone() as line:
            ids = list(dict.fromkeys(_checked_ids(event_ids)))
            waiting = {event.event_id: event.version for event in self.quarantined()}
            missing = [event_id for event_id in ids if event_id not in waiting]
            for event_id, offset in self._writer.log.known_offsets(missing).items():
                if line.status.get(offset) == "quarantined":
                    raise Purged(f"event {event_id!r} of model {self.name!r} can't be released: its payload was erased")
            if missing:
                raise UnknownEvent(f"model {self.name!r} has no event {missing[0]!r} in quarantine")
            sources = [waiting[event_id] for event_id in ids]
            rows = list(self._writer.log.at(sources))
            stored = self._append([NewRecord("release", None, {"offset": source}) for source in sources])
            for event, row in zip(stored, rows, strict=True):
                line.learn(event.offset, Observation.from_body(row.body, self.model, row.source))
                line.status[row.offset] = "released"
            if self._keeper.is_due():
                self._keeper.store()
            return [self._receipt(event_id, event) for event_id, event in zip(ids, stored, strict=True)]

    def retract(
        self,
        event_ids: Iterable[str] | None = None,
        *,
        source: str | None = None,
        since: float | None = None,
        estimate: bool = False,
    ) -> Retraction:
        """Take events out as if they had never come, in one fold; for good.

        While it folds, other threads go on: answers come from the posterior as it was and say that they are ``stale``;
        new events are durable at once and learned once the fold is done. What the model was published with can't be
        retracted: it was learned before the log began.

        Args:
            event_ids: of the events; or
            source: all events of a source; and/or
            since: all events stored at or after a time, seconds since the epoch.
            estimate: only say what it would fold, and how long that would take.

        Raises:
            InvalidInput: nothing or everything was named.
            UnknownEvent: an id that is not in the log, or nothing from that source; nothing is retracted.
            Purged: payloads that it would fold again were erased; nothing is retracted.
            StoreError: the model is a branch, and the events were merged into its parent; nothing is retracted.
        """
        with self._one_at_a_time:
            self._require_open()
            ids = self._chosen(event_ids, source, since)
            if estimate:
                with self._applied() as line:
                    again = self._to_fold_again(ids)
                    return Retraction(line.head, len(ids), len(again), self._seconds_to_fold(again))
            started = time.perf_counter()
            if self._line.parent is not None:
                refuse_merged(self.store, self.name, self._line.parent, self._writer.log.offsets_of(ids).values())
            if self._keeper.has_erased:
                self._to_fold_again(ids)
            with self._alone():
                self._begin_fold(self._append([NewRecord("retract", None, {"event_ids": ids})])[0].offset)
            replayed = self._fold_again(forget=True)
            return Retraction(self._line.head, len(ids), replayed, time.perf_counter() - started)

    def _chosen(self, event_ids: Iterable[str] | None, source: str | None, since: float | None) -> list[str]:
        by_query = {key: value for key, value in (("source", source), ("since", since)) if value is not None}
        if (event_ids is None) == (not by_query):
            raise InvalidInput("retract takes either event_ids, or source and/or since")
        if source is not None:
            check_event_id(source, "source")
        if since is not None and not is_time(since):
            raise InvalidInput(f"since must be a time, seconds since the epoch, got {since!r:.60}")
        if event_ids is None:
            found = self._writer.log.event_ids(by_query)
            if not found:
                raise UnknownEvent(f"model {self.name!r} has no event with {by_query}")
            return found
        ids = _checked_ids(event_ids)
        self._writer.log.offsets_of(ids)
        return sorted(set(ids))

    def _to_fold_again(self, ids: Sequence[str]) -> list[int]:
        """Offsets of the records that taking events out would fold again.

        Raises:
            Purged: the payload of one of them, or of one of the events, was erased.
        """
        chosen = set(self._writer.log.offsets_of(ids).values())
        return self._keeper.after_taking_out(chosen)

    def _seconds_to_fold(self, offsets: Sequence[int]) -> float:
        """What steps took when they were first taken; for those that are not known, as the others on average."""
        if not offsets:
            return 0.0
        known = {**self._writer.log.effects_since(min(offsets)), **self._line.done}
        times = [known[o].seconds or 0.0 for o in offsets if o in known and known[o].seconds is not None]
        return float(np.mean(times) * len(offsets)) if times else 0.0

    def purge(
        self, event_ids: Iterable[str] | None = None, *, source: str | None = None, since: float | None = None
    ) -> Purge:
        """Retract events, and erase their payloads, the inputs kept with their answers, and the snapshots that depended
        on them. Their ids, sources and times stay in the history.

        Args:
            event_ids: see :meth:`retract`.
            source: see :meth:`retract`.
            since: see :meth:`retract`.

        Raises:
            UnknownEvent: see :meth:`retract`.
            Purged: see :meth:`retract`.
        """
        with self._one_at_a_time:
            self._require_open()
            ids = self._chosen(event_ids, source, since)
            offsets = self._writer.log.offsets_of(ids)
            with self._applied() as line:
                live = [i for i, offset in offsets.items() if line.status.get(offset) != "retracted"]
            before = self._number_of_snapshots()
            if live:
                self.retract(live)
            with self._alone() as line:
                erased = [o for o in offsets.values() if o not in set(self._writer.log.purged_among(offsets.values()))]
                answers = [
                    *answers_of(ids),
                    *(r.body["answer"] for r in self._writer.log.at(erased) if "answer" in r.body),
                ]
                self._writer.erase(erased)
                self._keeper.adopt(self._writer.log.fold(), forget=True)
                self.store.answers.erase(self.name, answers)
                return Purge(line.head, len(erased), max(0, before - self._number_of_snapshots()))

    def _number_of_snapshots(self) -> int:
        with self.store.read() as connection:
            return len(self.store.snapshots.chains(connection, self._writer.model_id))

    def rollback(self, version: int) -> int:
        """Go back to an earlier version; see :meth:`PosteriorStore.rollback`.

        That may be a model of another kind, that was published under the name before. From then on it is :attr:`model`;
        what others send meanwhile is not stored, and raises :class:`StoreError`.

        Raises:
            InvalidInput: it has another network of the user's own, which only a new updater can be given; or the probe
                set is not one for it. Nothing is stored.
        """
        is_other = False

        def check(snapshot: Snapshot) -> None:
            nonlocal is_other
            is_other = not self._line.stepper.is_for(snapshot.spec, snapshot.arrays)
            if is_other:
                network = network_for(snapshot.spec, self.model)
                self._line.check(BayesianMLP.from_parts(snapshot.spec, snapshot.arrays, self.model.engine, network))

        with self._one_at_a_time:
            with self._alone():
                self._append([])
                self._begin_fold(self._writer.append_rollback(version, check), changing=is_other)
            self._fold_again()
            return self._line.head

    def consolidate(self, *, method: Consolidate | None = None) -> Consolidation:
        """Learn again, all at once, the events since the last consolidation, if that predicts the newest ones better.

        The fit runs on a copy: other threads go on answering and learning meanwhile, and what they learned is folded
        again after it. What is put in place is a record of the log with a snapshot. It falls away when an event that it
        has learned is retracted: then the log is folded as if it had never been made.

        Args:
            method: how.

        Returns:
            How it compares; not ``replaced`` also where what it has learned was changed meanwhile.

        Raises:
            InvalidInput: a model that can't be consolidated, see :meth:`BayesianMLP.consolidate`, or fewer than two
                events since the last time.
            Purged: the payload of an event since the last time was erased.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        with self._alone():
            self._append([])
            fold, engine, network = self._writer.log.fold(), self.model.engine, self.model.network
        found = consolidate_log(self.store, self.name, fold, engine, network, method)
        if found is None:
            raise InvalidInput(f"consolidate needs at least two events since the last time; model {self.name!r}")
        model, done = found
        with self._one_at_a_time:
            with self._alone() as line:
                if not done.replaced or not self._writer.log.fold().goes_on_from(fold):
                    return done._replace(replaced=False, version=line.head)
                self._append([])
                body = {"until": fold.head, "fingerprint": step_fingerprint(engine), "seed": model.seed}
                body |= {"method": (method or Consolidate()).describe()}
                self._begin_fold(
                    self._writer.append_snapshot("consolidate", body, model.spec(), model.to_arrays(), fold.chain)[0]
                )
            self._fold_again()
            return done._replace(version=self._line.head)


def answers_of(event_ids: Iterable[str]) -> list[str]:
    """Prediction ids of the answers that events were feedback on, where their ids tell."""
    return [event_id.split("-")[1] for event_id in event_ids if event_id.startswith("feedback-")]


def _checked_ids(event_ids: Any) -> list[str]:
    """Ids of at least one event."""
    if isinstance(event_ids, str) or not isinstance(event_ids, Iterable):
        raise InvalidInput(f"event_ids must be a collection of ids, got {event_ids!r}")
    ids = list(event_ids)
    if not all(isinstance(event_id, str) for event_id in ids):
        raise InvalidInput(f"event_ids must be strings, got {ids[:5]!r}")
    if not ids:
        raise InvalidInput("event_ids must name at least one event")
    for event_id in ids:
        check_event_id(event_id, "event_ids")
    return ids
