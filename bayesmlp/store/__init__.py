"""Posteriors that last: an append-only log and immutable snapshots per model."""

from .store import Entry, PosteriorStore, Snapshot, open_store

__all__ = ["Entry", "PosteriorStore", "Snapshot", "open_store"]
