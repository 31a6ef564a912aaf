"""What an updater says of what it did."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Purge", "Receipt", "Retraction"]


class Receipt(NamedTuple):
    """What became of an event.

    Attributes:
        event_id: its id.
        version: its place in the log: the model's version after it.
        status: ``applied``; ``pending``: durable, not yet applied; ``failed``: durable, but its step would not
            have been finite, so the posterior is as it was; ``quarantined``: durable, not learned, see
            :class:`Admission`; or, for a repeated event, ``released``, ``retracted``, ``rolled back``, ``superseded``.
        surprise: minus the log predictive density of the observation before it was learned, in nats.
        information: gained, in nats.
        repeated: whether the event had been there before; then nothing was done.
        change: the largest change of the predictions on the updater's probe set.
        seconds: that the step took.
    """

    event_id: str
    version: int
    status: str
    surprise: float | None
    information: float | None
    repeated: bool
    change: float | None = None
    seconds: float | None = None


class Retraction(NamedTuple):
    """What a retraction did, or would do.

    Attributes:
        version: the model's version after it; of an estimate, the version as it is.
        events: how many events it named.
        replayed: how many records were folded again, in one pass.
        seconds: that took; of an estimate, from what their first steps took.
    """

    version: int
    events: int
    replayed: int
    seconds: float


class Purge(NamedTuple):
    """What a purge did.

    Attributes:
        version: the model's version after it.
        events: how many payloads were erased.
        snapshots: how many snapshots that depended on them were deleted.
    """

    version: int
    events: int
    snapshots: int
