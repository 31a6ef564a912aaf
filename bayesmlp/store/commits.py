"""Group commit: what many threads ask for at once is done in one go, by one of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["GroupCommit", "Ticket"]

PATIENCE = 0.5
LONGEST_WAIT = 0.01

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ticket(Generic[Item, Result]):
    """An item that is queued; its ``future`` has what became of it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # who no longer waits does not take it back
        self.called = threading.Event()


class GroupCommit(Generic[Item, Result]):
    """A queue whose first waiter leads: it commits all that has queued up, then wakes those it committed for.

    While a leader waits for the disk, the next group forms, and its first waiter is called to lead it. Callers that
    were in the last group are likely to be back soon, so a leader gives them part of the time that a commit takes; one
    caller alone waits for nobody. Items are committed in the order in which they queued.

    Args:
        commit: does a group; gives for each item a result, or an error for that one alone.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._commit = commit
        self._queue: list[Ticket[Item, Result]] = []
        self._wanting_to_be_alone: list[threading.Event] = []
        self._mutex = threading.Condition()
        self._led = False
        self._last_size, self._last_seconds = 0, 0.0

    def add(self, item: Item) -> Ticket[Item, Result]:
        """Queue an item. Somebody must then call :meth:`lead` for it."""
        ticket: Ticket[Item, Result] = Ticket(item)
        with self._mutex:
            self._queue.append(ticket)
            if not self._led:
                self._led = True
                self._queue[0].called.set()
            elif len(self._queue) >= self._last_size:
                self._mutex.notify()
        return ticket

    def submit(self, item: Item) -> Result:
        """Do an item, with whatever else has queued up; raises what its own part of the commit raised."""
        ticket = self.add(item)
        self.lead(ticket)
        return ticket.future.result()

    def lead(self, ticket: Ticket[Item, Result]) -> None:
        """Wait until an item is done, or lead the commit of the group that it is in."""
        ticket.called.wait()
        if not ticket.future.done():
            try:
                self._commit_queued()
            finally:
                self._step_down()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing is committed by others during the block; what comes queues up."""
        called = threading.Event()
        with self._mutex:
            if self._led:
                self._wanting_to_be_alone.append(called)
            else:
                self._led = True
                called.set()
        called.wait()
        try:
            yield
        finally:
            self._step_down()

    def _step_down(self) -> None:
        """Call the next one to lead."""
        with self._mutex:
            if self._wanting_to_be_alone:
                self._wanting_to_be_alone.pop(0).set()
            elif self._queue:
                self._queue[0].called.set()
            else:
                self._led = False

    def _gathered(self) -> list[Ticket[Item, Result]]:
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
            results = self._commit([ticket.item for ticket in group])
            for ticket, result in zip(group, results, strict=True):
                if isinstance(result, Exception):
                    ticket.future.set_exception(result)
                else:
                    ticket.future.set_result(result)
        except BaseException as error:
            for ticket in group:
                if not ticket.future.done():
                    ticket.future.set_exception(error)
        finally:
            self._last_size, self._last_seconds = len(group), time.monotonic() - started
            for ticket in group:
                ticket.called.set()
