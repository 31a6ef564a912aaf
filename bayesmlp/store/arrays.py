"""Named arrays as safetensors bytes whose data starts at a multiple of 64, so that a memory map of them can be shared.

The format is safetensors' own: the length of a JSON header, the header (padded with blanks), the arrays' little-endian
bytes. Nothing is copied on the way to disk or, by a memory map, back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..inference.errors import CorruptStore, InvalidInput

__all__ = ["ALIGNMENT", "Buffer", "decode", "encode"]

ALIGNMENT = 64
MAX_HEADER_BYTES = 10_000_000

Buffer = Any  # bytes, a memoryview or a memory map

_NAMES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_DTYPES = {np.dtype(dtype): name for name, dtype in _NAMES.items()}


def encode(arrays: Mapping[str, np.ndarray]) -> list[Buffer]:
    """The pieces of a safetensors file, in order: its header, and each array's bytes.

    Raises:
        InvalidInput: an array of a type that safetensors does not have.
    """
    header: dict[str, Any] = {}
    pieces: list[Buffer] = []
    end = 0
    # Wide types first: then every array of the file is aligned to its own items.
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array = np.asarray(arrays[name])
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        if little.dtype not in _DTYPES:
            raise InvalidInput(f"array {name!r} must be of one of the types {', '.join(_NAMES)}, got {array.dtype}")
        start, end = end, end + little.nbytes
        header[name] = {"dtype": _DTYPES[little.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        pieces.append(little.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *pieces]


def decode(data: Buffer) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; views of its bytes.

    Raises:
        CorruptStore: the bytes are no such file.
    """
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(len(view) - 8, MAX_HEADER_BYTES):
        raise CorruptStore(f"{len(view)} bytes are no safetensors file")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        header.pop("__metadata__", None)
        return {name: _array(view[8 + length :], **entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptStore(f"the header of a safetensors file can not be read: {error}") from error


def _array(data: memoryview, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> np.ndarray:
    start, end = data_offsets
    return np.frombuffer(data[start:end], dtype=_NAMES[dtype]).reshape(shape)
