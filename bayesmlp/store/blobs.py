"""Arrays by content: safetensors bytes named by their SHA-256, small ones in the database, large ones in files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sqlalchemy import Connection, select

from ..inference.errors import CorruptStore
from .database import blobs

__all__ = ["BlobFolder"]

INLINE_BYTES = 100_000


class BlobFolder:
    """Content-addressed arrays.

    Args:
        folder: of the large ones; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, arrays: Mapping[str, np.ndarray]) -> tuple[str, bytes | None]:
        """Bytes on disk, if they are large; the row is still to be written.

        A large blob is written aside, flushed to disk, renamed, and its folder flushed, so that a name always stands
        for whole bytes.

        Returns:
            The hash, and the bytes to keep in the row, or None if they are in a file.
        """
        data = save({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()})
        name = hashlib.sha256(data).hexdigest()
        if len(data) <= INLINE_BYTES:
            return name, data
        path = self._path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.tmp")
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            for folder in (path.parent, self.folder, self.folder.parent):
                _flush_folder(folder)
        return name, None

    def insert(self, connection: Connection, name: str, data: bytes | None) -> None:
        """The row of a blob, if it is not there yet."""
        if connection.execute(select(blobs.c.sha256).where(blobs.c.sha256 == name)).first() is None:
            connection.execute(blobs.insert().values(sha256=name, data=data))

    def read(self, connection: Connection, name: str) -> dict[str, np.ndarray]:
        """The arrays.

        Raises:
            CorruptStore: absent, or not the bytes that were written.
        """
        row = connection.execute(select(blobs.c.data).where(blobs.c.sha256 == name)).first()
        if row is None:
            raise CorruptStore(f"blob {name} is not in the store")
        try:
            data = row.data if row.data is not None else self._path(name).read_bytes()
        except OSError as error:
            raise CorruptStore(f"blob {name} can not be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise CorruptStore(f"blob {name} does not have the bytes that were written")
        try:
            return dict(load(data))
        except SafetensorError as error:
            raise CorruptStore(f"blob {name} is no safetensors file: {error}") from error

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
