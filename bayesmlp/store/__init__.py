"""Posteriors that last: an append-only log and immutable snapshots per model."""

from .history import Entry
from .snapshots import Snapshot
from .store import PosteriorStore, open_store

__all__ = ["Entry", "PosteriorStore", "Snapshot", "open_store"]
