"""Group commit: what many threads ask for at once is done in one go, by one of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

from ..inference.errors import StoreUnavailable

__all__ = ["GroupCommit", "Ticket"]

PATIENCE = 0.5
LONGEST_WAIT = 0.01

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ticket(Generic[Item, Result]):
    """An item that is queued, and what became of it.

    One lock is all that a thread waits on: waking 64 of them is a good part of what a small commit costs.

    Args:
        item: to commit.
        on_call: called, by whatever thread, in place of waking who waits in :meth:`wait`: when the item is done, or its
            group is to be led.
    """

    __slots__ = ("_called", "_error", "_on_call", "_result", "done", "item")

    def __init__(self, item: Item, on_call: Callable[[Ticket[Item, Result]], None] | None = None) -> None:
        self.item = item
        self.done = False
        self._on_call = on_call
        self._error: BaseException | None = None
        self._result: Any = None
        self._called = threading.Lock()
        self._called.acquire()

    def call(self) -> None:
        """Call who waits: the item is done, or its group is to be led."""
        if self._on_call is not None:
            self._on_call(self)
        elif self._called.locked():
            self._called.release()

    def wait(self) -> None:
        """Wait to be called, if that has not been."""
        with self._called:
            pass

    def settle(self, result: Result | BaseException) -> None:
        """Note what became of the item."""
        if isinstance(result, BaseException):
            self._error = result
        else:
            self._result = result
        self.done = True

    def outcome(self) -> Result:
        """What became of the item; raises what its own part of the commit raised."""
        if self._error is not None:
            raise self._error
        return cast(Result, self._result)


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
        self._mutex = threading.Condition(threading.Lock())
        self._led = False
        self._leader: Ticket[Item, Result] | None = None
        self._expected, self._last_seconds = 0, 0.0

    def add(self, item: Item, on_call: Callable[[Ticket[Item, Result]], None] | None = None) -> Ticket[Item, Result]:
        """Queue an item. Once its ticket is called, and if it is not done then, somebody must :meth:`lead` for it.

        Args:
            item: to commit.
            on_call: see :class:`Ticket`.
        """
        ticket = Ticket(item, on_call)
        with self._mutex:
            self._queue.append(ticket)
            first = None if self._led else self._queue[0]
            self._led, self._leader = True, first or self._leader
            if len(self._queue) == self._expected:
                self._mutex.notify()
        if first is not None:
            first.call()
        return ticket

    def submit(self, item: Item) -> Result:
        """Do an item, with whatever else has queued up; raises what its own part of the commit raised."""
        ticket = self.add(item)
        try:
            ticket.wait()
        except BaseException:  # a signal's handler
            self._abandon(ticket)
            raise
        self.lead(ticket)
        return ticket.outcome()

    def _abandon(self, ticket: Ticket[Item, Result]) -> None:
        """Who waited for an item is gone: it is not committed if it still queues, and is no one's leader."""
        with self._mutex:
            if ticket in self._queue:
                self._queue.remove(ticket)
            leads = self._leader is ticket and not ticket.done
        if leads:
            self._step_down()

    def lead(self, ticket: Ticket[Item, Result]) -> None:
        """Lead the commit of the group that an item is in, as its ticket was called to; nothing if it is done."""
        if not ticket.done:
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
        try:
            called.wait()
        except BaseException:  # a signal's handler
            with self._mutex:
                still_wanted = called in self._wanting_to_be_alone
                if still_wanted:
                    self._wanting_to_be_alone.remove(called)
            if not still_wanted:
                self._step_down()
            raise
        try:
            yield
        finally:
            self._step_down()

    def _step_down(self) -> None:
        """Call the next one to lead."""
        with self._mutex:
            self._leader = None
            if self._wanting_to_be_alone:
                self._wanting_to_be_alone.pop(0).set()
                return
            first = self._queue[0] if self._queue else None
            self._led, self._leader = first is not None, first
        if first is not None:
            first.call()

    def _gathered(self) -> list[Ticket[Item, Result]]:
        """What has queued up, or queues up in the time that the leader can spare."""
        deadline = time.monotonic() + min(PATIENCE * self._last_seconds, LONGEST_WAIT)
        with self._mutex:
            while len(self._queue) < self._expected and (left := deadline - time.monotonic()) > 0:
                self._mutex.wait(left)
            group, self._queue = self._queue, []
            return group

    def _commit_queued(self) -> None:
        group = self._gathered()
        started = time.monotonic()
        try:
            results = self._commit([ticket.item for ticket in group])
            for ticket, result in zip(group, results, strict=True):
                ticket.settle(result)
        except Exception as error:  # whatever it is, each of those that wait raises it
            _settle(group, error)
        except BaseException:  # a signal's handler: it is the leader's alone
            _settle(group, StoreUnavailable("the commit was interrupted, and may have been done: send the same again"))
            raise
        finally:
            # Those of this group are likely to be back, and those that came meanwhile are there already.
            self._expected, self._last_seconds = len(group) + len(self._queue), time.monotonic() - started
            for ticket in group:
                ticket.call()


def _settle(group: Sequence[Ticket[Any, Any]], error: Exception) -> None:
    for ticket in group:
        if not ticket.done:
            ticket.settle(error)
