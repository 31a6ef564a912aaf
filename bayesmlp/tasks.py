"""Asyncio tasks that share the commits of threads: many of them cost their loop one wake-up, not one each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from .store.commits import GroupCommit, Ticket

__all__ = ["WAITS", "Tasks"]

WAITS = ("applied", "durable")

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Sent(NamedTuple):
    """What a task waits for, and how it is told."""

    ticket: Ticket[Any, Any]
    wait: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Tasks(Generic[Item, Result]):
    """Commits for asyncio tasks in one thread, and finishes what was committed in two others.

    What need only be durable has a thread of its own: what is to be applied may wait for a retraction.

    Args:
        commits: shared with threads.
        finish: from an item, what its commit gave and what the task waits for, to the task's result.
    """

    def __init__(self, commits: GroupCommit[Item, Any], finish: Callable[[Item, Any, str], Result]) -> None:
        self._commits, self._finish = commits, finish
        self._leading = ThreadPoolExecutor(1, "bayesmlp-commit")
        self._finishing = {wait: ThreadPoolExecutor(1, f"bayesmlp-{wait}") for wait in WAITS}
        self._mutex = threading.Lock()
        self._done: dict[str, list[_Sent]] = {wait: [] for wait in WAITS}

    def close(self) -> None:
        """Finish what was sent. What comes later is refused by the commit, and told so by whoever did that."""
        self._leading.shutdown()
        for pool in self._finishing.values():
            pool.shutdown()

    async def submit(self, item: Item, wait: str) -> Result:
        """Commit an item with what others send; gives its result, or raises what its part of the commit raised.

        Args:
            item: to commit.
            wait: one of :data:`WAITS`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._commits.add(item, lambda ticket: self._called(_Sent(ticket, wait, loop, future)))
        return await future

    def _called(self, sent: _Sent) -> None:
        if not sent.ticket.done:
            _run(self._leading, partial(self._commits.lead, sent.ticket))
            return
        with self._mutex:
            self._done[sent.wait].append(sent)
            is_first = len(self._done[sent.wait]) == 1
        if is_first:
            _run(self._finishing[sent.wait], partial(self._finish_all, sent.wait))

    def _finish_all(self, wait: str) -> None:
        with self._mutex:
            done, self._done[wait] = self._done[wait], []
        told: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for ticket, _, loop, future in done:
            told.setdefault(loop, []).append((future, self._outcome(ticket, wait)))
        for loop, outcomes in told.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_tell, outcomes)

    def _outcome(self, ticket: Ticket[Any, Any], wait: str) -> Any:
        try:
            return self._finish(ticket.item, ticket.outcome(), wait)
        except BaseException as error:
            return error


def _run(pool: ThreadPoolExecutor, function: Callable[[], object]) -> None:
    """In a thread of the pool; here, once the pool is shut down."""
    try:
        pool.submit(function)
    except RuntimeError:
        function()


def _tell(outcomes: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in outcomes:
        if future.done():  # cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
