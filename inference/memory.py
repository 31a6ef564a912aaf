"""A bounded memory of past rows: which are kept, and what each stands for.

Everything here is arithmetic on host arrays that follows from the rows and their order alone: the memory of a stream is
a function of the stream, and of one without some rows, that of the stream without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .checks import is_count, is_number
from .errors import InvalidInput

__all__ = ["Memory", "MemoryState", "NewRows", "keep", "levelled", "source_key"]

_GOLDEN = 2654435761  # odd, about 2³² / 1.618: multiples of it, modulo 2³², spread evenly


@dataclass(frozen=True)
class Memory:
    """Some past rows that updates rehearse and consolidations hold on to, so that what they taught is not forgotten.

    A row is kept for what it would tell if it came again: its leverage tr(LᵀCL) under the posterior, with L Lᵀ the
    Fisher information of its outputs and C their covariance, and its surprise sᵀCs with s its own score, whose average
    the leverage is. Under a bounded influence both count only as far as the row may, so that outliers are not kept for
    being surprising. Beside it its outputs are kept, as the posterior saw them when it predicted it best. Where there
    is too little room, sources share it evenly, and within each source its classes.

    At every update some rows are rehearsed: the mean moves by what brings their outputs back (see
    :func:`~.remembering.rehearse`). Each stands for as many rows as its source has sent for each that is kept. No
    precision is added, as nothing new was learned. For a model that is linear in its weights and a structure that holds
    every correlation nothing is ever forgotten, and rehearsing only hinders: such a model needs no memory. The members
    of a mixture rehearse the same rows, each what it has itself predicted best. Where the noise is predicted too
    (``HeteroscedasticGaussian``) what was best was also too sure: there a memory keeps up the means, and log scores are
    lower than without one.

    Args:
        size: how many rows are kept, at least 1.
        per_source: how many of one source; None for no such bound.
        rehearsed: rows that are rehearsed at an update, at least 0; an update costs as much as one of so many rows
            more.
        strength: factor on the number of rows that each stands for, above 0.
        surprise: share of the surprise in what a row is worth, in [0, 1]; where labels may be wrong it should be small,
            or the model's ``influence`` bounded.

    Raises:
        InvalidInput: a number out of its range.
    """

    size: int = 200
    per_source: int | None = None
    rehearsed: int = 8
    strength: float = 1.0
    surprise: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("per_source", 1), ("rehearsed", 0)):
            value = getattr(self, name)
            if value is None and name == "per_source":
                continue
            if not is_count(value, least):
                raise InvalidInput(f"Memory.{name} must be an integer of at least {least}, got {value!r}")
        if not is_number(self.strength) or self.strength <= 0:
            raise InvalidInput(f"Memory.strength must be positive and finite, got {self.strength!r}")
        if not is_number(self.surprise) or not 0 <= self.surprise <= 1:
            raise InvalidInput(f"Memory.surprise must be in [0, 1], got {self.surprise!r}")

    def worth(self, leverage: np.ndarray, surprise: np.ndarray) -> np.ndarray:
        """What rows are worth."""
        return (1 - self.surprise) * leverage + self.surprise * surprise


class NewRows(NamedTuple):
    """Rows that are offered to a memory, scaled, all of one source.

    Attributes:
        x: inputs, (N, I).
        y: targets, as the likelihood prepared them, (N, ...).
        mask: which outputs each tells of, (N, K).
        weight: of each, (N,).
        outputs: as the posterior sees them, (N, K); as the members of a mixture do, (N, members, K).
        log_prob: of y given these, (N,) or (N, members).
        worth: see :class:`Memory`, (N,).
    """

    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    outputs: np.ndarray
    log_prob: np.ndarray
    worth: np.ndarray


class MemoryState(NamedTuple):
    """Attributes, on the host; M rows in the order of their arrival, S sources in the order of theirs.

    x, y, mask, weight, outputs, log_prob, worth: see :class:`NewRows`; outputs are those that predicted y best.
    source: key of each row's source, (M,); see :func:`source_key`.
    arrival: how many rows were offered before it, (M,).
    sources: keys of the sources, (S,).
    offered: total weight of the rows that each has sent, (S,).
    counts: rows offered so far and updates so far, (2,).
    """

    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    outputs: np.ndarray
    log_prob: np.ndarray
    worth: np.ndarray
    source: np.ndarray
    arrival: np.ndarray
    sources: np.ndarray
    offered: np.ndarray
    counts: np.ndarray

    @property
    def num_rows(self) -> int:
        """M."""
        return len(self.source)

    @property
    def stands_for(self) -> np.ndarray:
        """How many rows each stands for, (M,): those of its source that were offered for each unit of weight kept."""
        place = np.searchsorted(self.sources, self.source, sorter=np.argsort(self.sources))
        place = np.argsort(self.sources)[place]
        kept = np.bincount(place, weights=self.weight, minlength=len(self.sources))
        return self.weight * self.offered[place] / np.where(kept > 0, kept, 1.0)[place]

    def only(self, rows: np.ndarray) -> MemoryState:
        """With some of the rows."""
        return self._replace(**{name: getattr(self, name)[rows] for name in _PER_ROW})

    def turn(self, rows: int) -> np.ndarray:
        """Indices of the rows whose turn it is to be rehearsed: all have theirs, one after the other, well mixed."""
        order = np.argsort((self.arrival * _GOLDEN) % 2**32, kind="stable")
        chosen = min(rows, self.num_rows)
        return order[(int(self.counts[1]) * chosen + np.arange(chosen)) % max(1, self.num_rows)]

    def seen_again(self, rows: np.ndarray, outputs: np.ndarray, log_prob: np.ndarray, worth: np.ndarray) -> MemoryState:
        """After rows were seen by a newer posterior: where that predicts y better than any before, it is what counts.

        Args:
            rows: indices, (R,).
            outputs: of them now, (R, K) or (R, members, K).
            log_prob: of y given these, (R,) or (R, members).
            worth: of them now, (R,).
        """
        fields = {name: getattr(self, name).copy() for name in ("outputs", "log_prob", "worth")}
        better = log_prob > self.log_prob[rows]
        fields["worth"][rows] = worth
        fields["outputs"][rows] = np.where(better[..., None], outputs, self.outputs[rows])
        fields["log_prob"][rows] = np.where(better, log_prob, self.log_prob[rows])
        return self._replace(**fields)

    def only_members(self, members: np.ndarray) -> MemoryState:
        """Of a mixture of which some members are left."""
        return self._replace(outputs=self.outputs[:, members], log_prob=self.log_prob[:, members])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return self._asdict()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MemoryState:
        """The inverse of :meth:`to_arrays`."""
        return cls(**{name: np.asarray(arrays[name]) for name in cls._fields})


def source_key(source: str | None) -> int:
    """A number for a source's name; 0 for none."""
    if source is None:
        return 0
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:7], "little")


def levelled(counts: np.ndarray, room: int) -> np.ndarray:
    """How many of each group stay: all of the small ones, and of the others equally many, the first ones one more."""
    kept = np.minimum(counts, room // max(1, len(counts)))
    while (left := room - int(kept.sum())) > 0 and np.any(kept < counts):
        wanting = np.flatnonzero(kept < counts)
        share = left // len(wanting)
        if share == 0:
            kept[wanting[:left]] += 1
        else:
            kept[wanting] = np.minimum(counts[wanting], kept[wanting] + share)
    return kept


def keep(memory: Memory, state: MemoryState | None, new: NewRows, source: int) -> MemoryState:
    """The memory after rows were offered to it.

    Args:
        memory: how large it is.
        state: before; None where it is empty.
        new: the rows; those of weight 0 are not kept.
        source: key of their source.
    """
    weighed = new.weight > 0
    rows = NewRows(*(values[weighed] for values in new))
    count = np.array([0, 0], dtype=np.int64) if state is None else state.counts
    fresh = MemoryState(
        *rows,
        source=np.full(len(rows.x), source, dtype=np.int64),
        arrival=count[0] + np.arange(len(rows.x), dtype=np.int64),
        sources=np.array([source], dtype=np.int64),
        offered=np.array([rows.weight.sum()]),
        counts=count + np.array([len(rows.x), 0]),
    )
    if state is None:
        return fresh.only(_chosen(memory, fresh.source, fresh.y, fresh.worth))
    seen = (np.concatenate([getattr(state, name), getattr(fresh, name)]) for name in ("source", "y", "worth"))
    chosen = _chosen(memory, *seen)
    if len(chosen) == state.num_rows and (not len(chosen) or chosen[-1] < state.num_rows):
        joined = state  # most rows are not worth it: nothing is copied
    else:
        pairs = {name: (getattr(state, name), getattr(fresh, name)) for name in _PER_ROW}
        joined = state._replace(**{name: np.concatenate(pair) for name, pair in pairs.items()}).only(chosen)
    known = np.flatnonzero(state.sources == source)
    if len(known):
        sources, offered = state.sources, state.offered.copy()
        offered[known[0]] += fresh.offered[0]
    else:
        sources = np.concatenate([state.sources, fresh.sources])
        offered = np.concatenate([state.offered, fresh.offered])
    return joined._replace(sources=sources, offered=offered, counts=fresh.counts)


_PER_ROW = (*NewRows._fields, "source", "arrival")


def _chosen(memory: Memory, source: np.ndarray, y: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Indices of the rows that stay, in order."""
    _, place, counts = np.unique(source, return_inverse=True, return_counts=True)
    bounded = counts if memory.per_source is None else np.minimum(counts, memory.per_source)
    stay = []
    for own, room in enumerate(levelled(bounded, memory.size)):
        rows = np.flatnonzero(place == own)
        if len(rows) <= room:
            stay.append(rows)
            continue
        labels = y[rows] if y.ndim == 1 else np.zeros(len(rows))
        _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        for one, quota in enumerate(levelled(sizes, int(room))):
            mine = rows[label == one]
            stay.append(mine[np.lexsort((mine, -worth[mine]))[:quota]])
    return np.sort(np.concatenate(stay)) if stay else np.arange(0)
