"""The public API against a simple model of it in memory, by random sequences of calls.

The model of it is the list of what is live, in order; its posterior is that of a fresh store that only ever saw these.
BAYESMLP_EXAMPLES sets how many sequences.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp.inference.errors import BayesMLPError, ConflictingEvent

X, Y = stream(200)
STRANGE = 40.0  # so far out, and so wrong, that it goes into quarantine
ADMISSION = bm.Admission(quarantine_above=6.0)


class Live(NamedTuple):
    """One step of the posterior: the rows that it learned, and the ids that would take it out."""

    rows: tuple[int, ...]
    event_id: str
    weight: float = 1.0


def folded(line: list[Live]) -> str:
    """The digest of a model that only ever saw these."""
    with (
        tempfile.TemporaryDirectory() as folder,
        published(Path(folder)) as store,
        bm.OnlineUpdater(store, "m", engine="numpy") as updater,
    ):
        for rows, _, weight in line:
            x, y = rows_of(rows)
            updater.observe_batch(x, y, weight=np.full(len(rows), weight))
        return updater.digest()


def rows_of(rows: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the stream; a negative number is a strange one."""
    x = np.array([X[i] if i >= 0 else STRANGE * X[i] for i in rows])
    y = np.array([Y[i] if i >= 0 else (Y[i] + 1) % 3 for i in rows])
    return x, y


class Store(RuleBasedStateMachine):
    """Calls, each of which changes the model of the store in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = published(Path(self.folder.name))
        self.line: list[Live] = []
        self.quarantine: dict[str, Live] = {}
        self.bodies: dict[str, Live] = {}
        self.retracted: set[str] = set()
        self.past: dict[int, tuple[list[Live], dict[str, Live]]] = {}
        self.count = 0
        self.changed = False
        self.open()

    def open(self) -> None:
        self.updater = bm.OnlineUpdater(self.store, "m", engine="numpy", snapshot_every=4, admission=ADMISSION)
        self.remember()

    def remember(self) -> None:
        self.past[self.updater.version] = (list(self.line), dict(self.quarantine))
        self.changed = True

    def teardown(self) -> None:
        self.updater.close()
        with self.store:
            assert self.store.verify() == []
        self.folder.cleanup()

    def new_id(self) -> str:
        self.count += 1
        return f"e{self.count}"

    def learned(self, live: Live, receipt: bm.Receipt) -> None:
        self.bodies[live.event_id] = live
        if receipt.status == "quarantined":
            self.quarantine[live.event_id] = live
        else:
            assert receipt.status == "applied"
            self.line.append(live)
        self.remember()

    @rule(
        row=st.integers(0, 199), weight=st.sampled_from([1.0, 0.5, 2.0]), wait=st.sampled_from(["applied", "durable"])
    )
    def observe(self, row: int, weight: float, wait: str) -> None:
        live = Live((row,), self.new_id(), weight)
        receipt = self.updater.observe(X[row], Y[row], event_id=live.event_id, weight=weight, wait=wait)
        if wait == "durable":
            assert receipt.version == self.updater.version
            receipt = self.updater.observe(X[row], Y[row], event_id=live.event_id, weight=weight)
            assert receipt.repeated
        self.learned(live, receipt)

    @rule(row=st.integers(1, 200))
    def observe_something_strange(self, row: int) -> None:
        live = Live((-row,), self.new_id())
        x, y = rows_of(live.rows)
        self.learned(live, self.updater.observe(x[0], y[0], event_id=live.event_id))

    @rule(rows=st.lists(st.integers(0, 199), min_size=2, max_size=4))
    def observe_batch(self, rows: list[int]) -> None:
        live = Live(tuple(rows), self.new_id())
        self.learned(live, self.updater.observe_batch(*rows_of(live.rows), event_id=live.event_id))

    @rule(row=st.integers(0, 199))
    def answer_and_feedback(self, row: int) -> None:
        given = self.updater.predict(X[row]).prediction_id
        assert given is not None
        live = Live((row,), f"feedback-{given}")
        self.learned(live, self.updater.feedback(given, Y[row]))
        assert self.updater.feedback(given, Y[row]).repeated

    @precondition(lambda self: self.bodies)
    @rule(data=st.data())
    def repeat(self, data: Any) -> None:
        event_id = data.draw(st.sampled_from(sorted(self.bodies)))
        live = self.bodies[event_id]
        x, y = rows_of(live.rows)
        if len(live.rows) > 1:
            assert self.updater.observe_batch(x, y, event_id=event_id).repeated
        else:
            assert self.updater.observe(x[0], y[0], event_id=event_id, weight=live.weight).repeated
            with pytest.raises(ConflictingEvent):
                self.updater.observe(x[0], y[0], event_id=event_id, weight=live.weight + 1)

    @precondition(lambda self: self.bodies)
    @rule(data=st.data())
    def retract(self, data: Any) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.bodies)), min_size=1, max_size=3, unique=True))
        self.updater.retract(ids)
        self.retracted |= set(ids)
        self.line = [live for live in self.line if live.event_id not in self.retracted]
        self.quarantine = {i: live for i, live in self.quarantine.items() if i not in self.retracted}
        self.remember()

    @precondition(lambda self: self.quarantine)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        event_id = data.draw(st.sampled_from(sorted(self.quarantine)))
        self.updater.release([event_id])
        self.line.append(self.quarantine.pop(event_id))
        self.remember()

    @rule(data=st.data())
    def rollback(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.past)))
        line, quarantine = self.past[version]
        self.updater.rollback(version)
        self.line = [live for live in line if live.event_id not in self.retracted]  # a retraction is for good
        self.quarantine = {i: live for i, live in quarantine.items() if i not in self.retracted}
        self.remember()

    @rule()
    def close_and_open(self) -> None:
        self.updater.close()
        self.store.close()
        self.store = bm.open_store(Path(self.folder.name) / "store.db")
        self.open()

    @rule()
    def refused(self) -> None:
        version = self.updater.version
        for call in (
            lambda: self.updater.observe(X[0, :2], 0),
            lambda: self.updater.observe(X[0], 7),
            lambda: self.updater.retract(["never"]),
            lambda: self.updater.release(["never"]),
            lambda: self.updater.rollback(10**6),
        ):
            with pytest.raises(BayesMLPError):
                call()
        assert self.updater.version == version

    @invariant()
    def quarantine_is_what_is_in_it(self) -> None:
        assert {event.event_id for event in self.updater.quarantined()} == set(self.quarantine)

    @precondition(lambda self: self.changed)
    @invariant()
    def posterior_is_the_fold_of_what_is_live(self) -> None:
        assert self.updater.digest() == folded(self.line)
        self.changed = False


EXAMPLES = int(os.environ.get("BAYESMLP_EXAMPLES", "2"))
Store.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = Store.TestCase
