"""What identifies a body and a posterior: SHA-256 over canonical bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .arrays import Buffer, encode

__all__ = [
    "answer_checksum",
    "array_hash",
    "body_hash",
    "canonical_json",
    "effect_checksum",
    "extend_chain",
    "posterior_digest",
    "posterior_digest_of_format_1",
    "row_checksum",
    "sha256_of",
    "snapshot_checksum",
]


# Made once: json.dumps makes one for each call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_LENIENT = json.JSONEncoder(default=repr)

HASHING_THREADS = 2
SMALL_BYTES = 1_000_000


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks; refuses what JSON has not (NaN, infinity)."""
    return _CANONICAL.encode(value)


def body_hash(kind: str, canonical_body: str) -> str:
    """Hash of a record's meaning: its kind and its body."""
    return hashlib.sha256(f"{kind}\n{canonical_body}".encode()).hexdigest()


def row_checksum(
    offset: int, kind: str, event_id: str | None, source: str | None, body: str, *when_and_who: float | str | None
) -> str:
    """What a row of the log must have: 16 hexadecimal digits of SHA-256, against rot.

    Rows of older stores have that of their first five fields; newer ones that of when they came, who appended them and
    when they were erased, too.
    """
    return _checksum(offset, kind, event_id, source, body, *when_and_who)


def snapshot_checksum(row: Mapping[str, Any]) -> str:
    """What the row of a snapshot must have, beside its spec, of which the digest is."""
    return _checksum(*(row[field] for field in ("offset", "chain", "digest", "blob", "fingerprint", "created")))


def effect_checksum(offset: int, *fields: Any) -> str:
    """What the row of an effect must have; SQLite keeps NULL for NaN, and 0 for -0."""
    return _checksum(offset, *(None if field != field else 0.0 if field == 0 else field for field in fields))


def answer_checksum(row: Mapping[str, Any]) -> str:
    """What the row of an answer must have until it expires."""
    return _checksum(*(row[field] for field in ("prediction_id", "model", "version", "inputs", "expires", "given")))


def _checksum(*values: Any) -> str:
    """Values that JSON has not, such as bytes where text was written, have a checksum too: another one."""
    return hashlib.sha256(_LENIENT.encode(values).encode()).hexdigest()[:16]


def posterior_digest(
    spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray], known: Mapping[str, str] | None = None
) -> str:
    """Hash of a posterior: of its spec, and of each array's hash (:func:`array_hash`) in order of name.

    Never of offsets, times or version numbers: two posteriors with one digest are the same posterior.

    Args:
        spec: of the posterior.
        arrays: of the posterior.
        known: hashes of arrays, where they have been taken already.
    """
    hashes = dict(known or {})
    missing = [name for name in arrays if name not in hashes]
    if sum(arrays[name].nbytes for name in missing) <= SMALL_BYTES:
        hashes |= {name: array_hash(name, arrays[name]) for name in missing}
    else:  # hashing large arrays lets other threads run
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            hashes |= zip(missing, pool.map(lambda name: array_hash(name, arrays[name]), missing), strict=True)
    digest = hashlib.sha256(canonical_json(spec).encode())
    for name in sorted(arrays):
        digest.update(f"\n{hashes[name]}".encode())
    return digest.hexdigest()


def array_hash(name: str, array: np.ndarray) -> str:
    """Hash of an array's name, dtype, shape and little-endian bytes, as the safetensors file with that array alone."""
    return sha256_of(encode({name: array}))


def sha256_of(pieces: Iterable[Buffer]) -> str:
    """Hash of bytes in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def posterior_digest_of_format_1(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """The digest that snapshots of format 1 have: in one pass over all arrays."""
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
