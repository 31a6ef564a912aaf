"""What identifies a body and a posterior: SHA-256 over canonical bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["body_hash", "canonical_json", "extend_chain", "posterior_digest", "row_checksum"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks; refuses what JSON has not (NaN, infinity)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def body_hash(kind: str, canonical_body: str) -> str:
    """Hash of a record's meaning: its kind and its body."""
    return hashlib.sha256(f"{kind}\n{canonical_body}".encode()).hexdigest()


def row_checksum(offset: int, kind: str, event_id: str | None, source: str | None, body: str) -> str:
    """What a row of the log must have: 16 hexadecimal digits of SHA-256, against rot."""
    row = json.dumps([offset, kind, event_id, source, body])
    return hashlib.sha256(row.encode()).hexdigest()[:16]


def posterior_digest(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of a posterior: its spec, and every array's name, dtype, shape and little-endian bytes, in order of name.

    Never of offsets, times, version numbers or file headers: two posteriors with one digest are the same posterior.
    """
    digest = hashlib.sha256(canonical_json(spec).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\n{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def extend_chain(chain: str, offsets: Iterable[int]) -> str:
    """Hash of the sequence of live records: two folds with one chain folded the same records in the same order."""
    for offset in offsets:
        chain = hashlib.sha256(f"{chain}{offset}".encode()).hexdigest()
    return chain
