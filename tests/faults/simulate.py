"""Runs under the shim: whole lives of a store, each drawn from a seed. One thread, a clock and ids that are drawn too,
and a disk that refuses, dies with the process, or loses power at a change that is drawn.

After every fault the store must hold exactly what was acknowledged, and perhaps what was under way: its digest is that
of a fresh model that learned just this.

python simulate.py FOLDER FIRST_SEED SEEDS: prints what happened in each; a failure names its seed.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import shim
from power import Disk, read_trace
from store_cases import published, small_model, stream

import bayesmlp as bm
from bayesmlp.feedback import Observation
from bayesmlp.inference.errors import StoreError, StoreUnavailable
from bayesmlp.stepper import Stepper
from bayesmlp.store import blobs, snapshots
from bayesmlp.store.digest import posterior_digest

X, Y = stream(100)
STEPS = 14
Line = tuple[tuple[str, tuple[int, ...]], ...]
"""What is live: the id of each event, and its rows of the stream."""


def folded(line: Line) -> str:
    """The digest of a model that only ever learned these."""
    stepper = Stepper(small_model(structure=bm.Diagonal()))
    for _, rows in line:
        stepper.apply(Observation.check(X[list(rows)], Y[list(rows)], None, None, model=stepper.model))
    return posterior_digest(stepper.model.spec(), stepper.to_arrays())


class Life:
    """One store, from its first event on.

    Args:
        folder: to work in; empty.
        made: a store with a model that has learned nothing.
        seed: of all that is drawn.
    """

    def __init__(self, folder: Path, made: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.base, self.lives = folder, 0
        self.now = 1e9
        time.time = lambda: self.now
        uuid.uuid4 = lambda: uuid.UUID(bytes=self.rng.bytes(16))
        self.events = 0
        self.line: Line = ()
        self.past: dict[int, Line] = {}
        self.retracted: set[str] = set()
        self.said: list[str] = []
        self.to_retract: set[str] = set()
        self.place = folder / "life0"
        shutil.copytree(made, self.place)
        self.open()

    def open(self) -> None:
        shim.disarm()
        self.trace, self.followed = self.base / f"trace{self.lives}", 0
        self.disk = Disk(self.place)
        shim.trace_to(self.trace)
        self.store = bm.open_store(self.place / "store.db")
        self.updater = bm.OnlineUpdater(self.store, "m", engine="numpy", snapshot_every=4, take_over=True)
        self.past[self.updater.version] = self.line

    # -- what may be asked for: each gives a call, and what is live once it is done ---------------------------------
    def learn(self) -> tuple[Callable[[], object], Line]:
        self.events += 1
        event_id, row = f"e{self.events}", int(self.rng.integers(100))
        call = lambda: self.updater.observe(X[row], Y[row], event_id=event_id)  # noqa: E731
        return call, (*self.line, (event_id, (row,)))

    def learn_batch(self) -> tuple[Callable[[], object], Line]:
        self.events += 1
        event_id, rows = f"e{self.events}", tuple(int(i) for i in self.rng.integers(0, 100, 3))
        call = lambda: self.updater.observe_batch(X[list(rows)], Y[list(rows)], event_id=event_id)  # noqa: E731
        return call, (*self.line, (event_id, rows))

    def retract(self) -> tuple[Callable[[], object], Line]:
        if not self.line:
            return self.learn()
        gone = self.line[int(self.rng.integers(len(self.line)))][0]
        self.to_retract = {gone}
        return lambda: self.updater.retract([gone]), tuple(live for live in self.line if live[0] != gone)

    def rollback(self) -> tuple[Callable[[], object], Line]:
        version = int(self.rng.choice(sorted(self.past)))
        line = tuple(live for live in self.past[version] if live[0] not in self.retracted)
        return lambda: self.updater.rollback(version), line

    def snapshot(self) -> tuple[Callable[[], object], Line]:
        return self.updater.snapshot, self.line

    # -- what may go wrong -----------------------------------------------------------------------------------------
    def die(self, following: Line, *, power: bool) -> None:
        """The process dies while something is under way; with the power, what was not flushed may go too."""
        shim.disarm()
        self.lives += 1
        target = self.base / f"life{self.lives}"
        if power:
            operations = read_trace(self.trace)
            for operation in operations:
                self.disk.follow(operation)
            self.disk.cut(target, self.rng)
        else:
            shutil.copytree(self.place, target)
        self.store.close()
        shutil.rmtree(self.place)
        self.place = target
        before = self.line
        self.open()
        digest = self.updater.digest()
        allowed = {folded(before): before, folded(following): following}
        assert digest in allowed, "the posterior is neither that of what was acknowledged nor with what was under way"
        self.line = allowed[digest]
        if self.line == following:
            self.retracted |= self.to_retract
        self.past[self.updater.version] = self.line

    def step(self) -> None:
        self.now = float(self.rng.choice([self.now, self.now + 1, self.now - 1e6, self.now + 1e7]))
        kinds = (self.learn, self.learn, self.learn_batch, self.retract, self.rollback, self.snapshot)
        self.to_retract = set()
        call, following = kinds[int(self.rng.integers(len(kinds)))]()
        fault = str(self.rng.choice(["none", "none", "once", "full", "kill", "power"]))
        if fault != "none":
            how = shim.ONCE if fault == "once" else shim.FOR_GOOD
            shim.arm(how, int(self.rng.integers(0, 30)), int(self.rng.choice([errno.EIO, errno.ENOSPC])))
        try:
            call()
            done = True
        except StoreUnavailable:
            done = False
        self.said.append(f"{fault}:{'done' if done else 'refused'}")
        if done:
            self.line = following
            self.retracted |= self.to_retract
            if fault not in ("kill", "power"):
                shim.disarm()
                self.past[self.updater.version] = self.line
        if fault in ("kill", "power"):
            self.die(following, power=fault == "power")
        elif not done:
            self.go_on(call, following)

    def go_on(self, call: Callable[[], object], following: Line) -> None:
        """The disk is well again: the same is asked for once more, of a new updater if a fold of this one failed."""
        shim.disarm()
        try:
            call()
        except StoreError:
            self.said.append("opened again")
            self.die(following, power=False)
        else:
            self.line = following
            self.retracted |= self.to_retract
            self.past[self.updater.version] = self.line

    def run(self) -> list[str]:
        for _ in range(STEPS):
            self.step()
        self.updater.close()
        assert self.store.verify() == []
        self.store.close()
        with bm.open_store(self.place / "store.db") as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            assert updater.digest() == folded(self.line)
            ids = [entry.event_id for entry in updater.history() if entry.kind in ("event", "batch")]
            assert len(set(ids)) == len(ids)
        return self.said


class InTurn(Executor):
    """In place of threads, whose changes of files would come in an order that no seed draws."""

    def __init__(self, max_workers: int) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def main(base: Path, first: int, seeds: int) -> None:
    blobs.INLINE_BYTES = snapshots.PART_BYTES = 1500
    vars(blobs)["ThreadPoolExecutor"] = InTurn
    (base / "made").mkdir(parents=True)
    published(base / "made", structure=bm.Diagonal()).close()
    for seed in range(first, first + seeds):
        (base / "seed").mkdir()
        try:
            said = Life(base / "seed", base / "made", seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        print(seed, *said, flush=True)
        shutil.rmtree(base / "seed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
