"""Group commit: what many threads ask for at once is done in one go, by one of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

PATIENCE = 0.5
LONGEST_WAIT = 0.01

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """A queue whose first waiter leads: it commits all that has queued up, then wakes those it committed for.

    While a leader waits for the disk, the next group forms. Callers that were in the last group are likely to be back
    soon, so a leader gives them part of the time that a commit takes; one caller alone waits for nobody. Items are
    committed in the order in which they queued.

    Args:
        commit: does a group; gives for each item a result, or an error for that one alone.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._commit = commit
        self._queue: list[tuple[Item, Future[Result]]] = []
        self._mutex = threading.Condition()
        self._last_size, self._last_seconds = 0, 0.0
        self._turn = threading.Condition()
        self._led = False

    def add(self, item: Item) -> Future[Result]:
        """Queue an item. It is done once somebody calls :meth:`lead`."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # who no longer waits does not take it back
        with self._mutex:
            self._queue.append((item, future))
            if len(self._queue) >= self._last_size:
                self._mutex.notify()
        return future

    def submit(self, item: Item) -> Result:
        """Do an item, with whatever else has queued up; raises what its own part of the commit raised."""
        future = self.add(item)
        self.lead(future)
        return future.result()

    def lead(self, own: Future[Result]) -> None:
        """See to it that one's own item is done, by oneself or by another leader."""
        with self._turn:
            while self._led and not own.done():
                self._turn.wait()
            if own.done():
                return
            self._led = True
        try:
            self._commit_queued()  # one's own item is in the queue: whoever takes the queue finishes what it took
        finally:
            self._step_down()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing is committed by others during the block; what comes queues up."""
        with self._turn:
            while self._led:
                self._turn.wait()
            self._led = True
        try:
            yield
        finally:
            self._step_down()

    def _step_down(self) -> None:
        with self._turn:
            self._led = False
            self._turn.notify_all()

    def _gathered(self) -> list[tuple[Item, Future[Result]]]:
        """What has queued up, or queues up in the time that the leader can spare."""
        deadline = time.monotonic() + min(PATIENCE * self._last_seconds, LONGEST_WAIT)
        with self._mutex:
            while len(self._queue) < self._last_size and (left := deadline - time.monotonic()) > 0:
                self._mutex.wait(left)
            group, self._queue = self._queue, []
            return group

    def _commit_queued(self) -> None:
        group = self._gathered()
        started = time.monotonic()
        try:
            results = self._commit([item for item, _ in group])
        except BaseException as error:
            for _, future in group:
                future.set_exception(error)
            return
        self._last_size, self._last_seconds = len(group), time.monotonic() - started
        for (_, future), result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
