"""Bytes by content: named by their SHA-256, small ones in the database, large ones in files or in an object store."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from ..inference.errors import CorruptStore, InvalidInput, MissingDependency, StoreUnavailable
from .arrays import Buffer
from .database import blobs, lock_blobs, parts, snapshots
from .digest import HASHING_THREADS, sha256_of

__all__ = ["Blobs", "Folder", "ObjectStore", "place_for"]

INLINE_BYTES = 100_000


class Place(Protocol):
    """Where large blobs are. What has a name is whole."""

    def put(self, *contents: Sequence[Buffer]) -> list[str]:
        """Keep bytes, durably, and return their hashes; raises :class:`OSError` if they can not be written.

        Args:
            contents: each in pieces.
        """

    def get(self, name: str) -> Buffer:
        """The bytes; raises :class:`OSError` if they can not be read."""

    def has(self, name: str) -> bool:
        """Whether there are bytes of that name."""

    def delete(self, name: str) -> None:
        """Remove them, if they are there; raises :class:`OSError` if that can not be done."""

    def names(self) -> list[str]:
        """Of all that is there."""


class Folder:
    """Files. Each is written aside, flushed to disk, renamed, and its folder flushed.

    Args:
        path: of the folder; made when first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, *contents: Sequence[Buffer]) -> list[str]:
        """Hash and flush in other threads while the next file is written; of what is there, nothing is kept twice."""
        if not self.path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            _flush_folder(self.path.parent)
        aside = [self.path / f"{os.getpid()}-{threading.get_ident()}-{i}.tmp" for i in range(len(contents))]
        try:
            with ThreadPoolExecutor(HASHING_THREADS) as hashing, ThreadPoolExecutor(1) as flushing:
                hashed = hashing.map(sha256_of, contents)
                flushed = [flushing.submit(_flush, _write(*one)) for one in zip(aside, contents, strict=True)]
                for each in flushed:
                    each.result()
                names = list(hashed)
            self._rename(dict(zip(aside, map(self._file, names), strict=True)))
        finally:
            for file in aside:
                file.unlink(missing_ok=True)
        return names

    def _rename(self, files: Mapping[Path, Path]) -> None:
        """Give flushed files their names, and flush each folder once."""
        folders = {path.parent for path in files.values()}
        is_new = any(not folder.exists() for folder in folders)
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for aside, path in files.items():
            os.replace(aside, path)
        for folder in folders:
            _flush_folder(folder)
        if is_new:
            _flush_folder(self.path)

    def get(self, name: str) -> Buffer:
        """A memory map of the file."""
        with open(self._file(name), "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def has(self, name: str) -> bool:
        return self._file(name).exists()

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file(name).unlink()

    def names(self) -> list[str]:
        return [file.stem for file in self.path.glob("*/*.safetensors")]

    def _file(self, name: str) -> Path:
        return self.path / name[:2] / f"{name}.safetensors"


class ObjectStore:
    """Objects, created and never overwritten.

    Args:
        store: of ``obstore``.
    """

    def __init__(self, store: Any) -> None:
        import obstore

        self._store, self._obstore = store, obstore

    def put(self, *contents: Sequence[Buffer]) -> list[str]:
        """Create the objects; one of that name that is there already has these bytes."""
        return [self._create(pieces) for pieces in contents]

    def _create(self, pieces: Sequence[Buffer]) -> str:
        name = sha256_of(pieces)
        try:
            self._obstore.put(self._store, self._key(name), b"".join(pieces), mode="create", use_multipart=False)
        except self._obstore.exceptions.AlreadyExistsError:
            return name
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{self._key(name)}: {error}") from error
        return name

    def get(self, name: str) -> Buffer:
        try:
            return self._obstore.get(self._store, self._key(name)).bytes()
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{self._key(name)}: {error}") from error

    def has(self, name: str) -> bool:
        try:
            self._obstore.head(self._store, self._key(name))
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        try:
            self._obstore.delete(self._store, self._key(name))
        except FileNotFoundError:
            return
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{self._key(name)}: {error}") from error

    def names(self) -> list[str]:
        listed = [entry["path"] for batch in self._obstore.list(self._store) for entry in batch]
        return [Path(path).stem for path in listed if path.endswith(".safetensors")]

    def _key(self, name: str) -> str:
        return f"{name[:2]}/{name}.safetensors"


def place_for(url: str) -> Place:
    """The place of a URL: a folder for ``file:///...``, an object store for others.

    Raises:
        InvalidInput: no URL.
        MissingDependency: ``obstore`` is needed.
    """
    scheme = urlsplit(str(url)).scheme
    if not scheme:
        raise InvalidInput(f"blobs must be a URL such as file:///folder or s3://bucket/path, got {url!r}")
    if scheme == "file":
        return Folder(Path(unquote(urlsplit(url).path)))
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingDependency("obstore", "objects") from error
    try:
        return ObjectStore(from_url(url))
    except BaseError as error:
        raise InvalidInput(f"blobs must be a URL that obstore can open, got {url!r}: {error}") from error


class Blobs:
    """Content-addressed bytes of a store.

    Args:
        place: of the large ones; None: all of them are in the database.
    """

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self._seen: set[bytes] = set()
        self._outside_garbage: set[str] = set()

    def forget(self) -> None:
        """Do not trust what was written before: write all of it again."""
        self._seen.clear()

    def write(self, *contents: Sequence[Buffer]) -> list[tuple[str, bytes | None]]:
        """Keep bytes, those that are large; their rows are still to be written.

        Args:
            contents: each in pieces.

        Returns:
            Of each, the hash, and the bytes to keep in the row, or None if they are elsewhere.

        Raises:
            StoreUnavailable: they can't be written (disk full, no connection).
        """
        written = [self._if_kept(pieces) for pieces in contents]
        new = [i for i, found in enumerate(written) if found is None]
        if self.place is not None and new:
            try:
                names = self.place.put(*(contents[i] for i in new))
            except OSError as error:
                raise StoreUnavailable(f"a large array can not be stored now: {error}") from error
            for i, name in zip(new, names, strict=True):
                self._seen.add(_sample(contents[i]))  # only now: a file whose folder was not flushed is written again
                written[i] = (name, None)
        return [found for found in written if found is not None]

    def _if_kept(self, pieces: Sequence[Buffer]) -> tuple[str, bytes | None] | None:
        """As :meth:`write`, of bytes that are small or elsewhere already; None for those to be put elsewhere."""
        if self.place is None or sum(len(piece) for piece in pieces) <= INLINE_BYTES:
            return sha256_of(pieces), b"".join(pieces)
        if _sample(pieces) in self._seen and self.place.has(name := sha256_of(pieces)):
            return name, None
        return None

    def insert(self, connection: Connection, name: str, data: bytes | None) -> None:
        """The row of a blob, if it is not there yet.

        Raises:
            BlobGone: it was collected as garbage since it was written: write it again.
        """
        lock_blobs(connection)
        if data is None and self.place is not None and not self.place.has(name):
            raise BlobGone(name)
        if connection.execute(select(blobs.c.sha256).where(blobs.c.sha256 == name)).first() is None:
            connection.execute(blobs.insert().values(sha256=name, data=data))

    def read(self, connection: Connection, name: str) -> Buffer:
        """The bytes, as they are found: who uses them checks a hash or a digest.

        Raises:
            CorruptStore: absent.
        """
        row = connection.execute(select(blobs.c.data).where(blobs.c.sha256 == name)).first()
        if row is None:
            raise CorruptStore(f"blob {name} is not in the store")
        if row.data is not None:
            return row.data
        if self.place is None:
            raise CorruptStore(f"blob {name} is not in the database: open the store with its blobs=")
        try:
            return self.place.get(name)
        except OSError as error:
            raise CorruptStore(f"blob {name} can not be read: {error}") from error

    def collect(self, connection: Connection, names: Iterable[str] | None = None) -> int:
        """Delete blobs that no snapshot names, in the caller's transaction; returns how many.

        What is outside of the database goes by :meth:`sweep`, once the transaction is committed: a crash in between
        leaves bytes that nothing names, never a name without its bytes.

        Args:
            connection: of a transaction that writes.
            names: those that may have become garbage; None for all.
        """
        lock_blobs(connection)
        named = select(parts.c.blob).where(parts.c.blob == blobs.c.sha256).exists()
        alone = select(snapshots.c.blob).where(snapshots.c.blob == blobs.c.sha256, snapshots.c.blob != "").exists()
        query = select(blobs.c.sha256, blobs.c.data.is_(None).label("outside")).where(~named, ~alone)
        if names is not None:
            query = query.where(blobs.c.sha256.in_(list(names)))
        garbage = connection.execute(query).all()
        for row in garbage:
            connection.execute(blobs.delete().where(blobs.c.sha256 == row.sha256))
            if row.outside and self.place is not None:
                self._outside_garbage.add(row.sha256)
        return len(garbage)

    def sweep(self, engine: Engine, *, everything: bool = False) -> int:
        """Delete bytes outside of the database that have no row, as far as they can be reached now; returns how many.

        Args:
            engine: of writers.
            everything: look at all that is there, not only at what was collected here.
        """
        swept = 0
        if self.place is None or not (everything or self._outside_garbage):
            return swept
        with contextlib.suppress(OSError, DBAPIError), engine.begin() as connection:
            lock_blobs(connection)
            named = set(connection.execute(select(blobs.c.sha256)).scalars())
            for name in sorted({*self._outside_garbage, *(self.place.names() if everything else ())} - named):
                self.place.delete(name)
                swept += 1
            self._outside_garbage.clear()
        return swept


class BlobGone(Exception):
    """A blob was collected between its bytes and its row."""


def _sample(pieces: Iterable[Buffer]) -> bytes:
    """A quick guess whether bytes were seen before: hashing all of them first is worth it only then."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.frombuffer(piece, dtype=np.uint8)[::4093].tobytes())
    return digest.digest()


def _write(path: Path, pieces: Iterable[Buffer]) -> FileIO:
    """A new file with these bytes; it is still to be flushed and closed."""
    file = FileIO(path, "w")
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
    except BaseException:
        file.close()
        raise
    return file


def _flush(file: FileIO) -> None:
    with file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
