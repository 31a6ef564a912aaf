"""Where large arrays lie outside of the database: files in a folder, or objects."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from ..inference.errors import InvalidInput, MissingDependency
from .arrays import Buffer
from .digest import HASHING_THREADS, sha256_of

__all__ = ["OWNER", "Folder", "ObjectStore", "Place", "place_for"]

ABANDONED_AFTER = 86400.0
"""Seconds after its last change for which a file that is written aside may still have a writer."""

OWNER = "owner"
"""Name of what says whose a place is."""


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
        """Of all that is there; raises :class:`OSError` if it can not be reached."""

    def tidy(self) -> int:
        """Remove what interrupted writes left behind, and return of how many; raises :class:`OSError` as above."""

    def owner(self) -> str | None:
        """Id of the store whose place it is, if one has claimed it; raises :class:`OSError` as above."""

    def claim(self, owner: str) -> str:
        """Name a store as the owner, durably, unless there is one; returns the owner. Of several at once, one gets it.

        Args:
            owner: id of the store.

        Raises:
            OSError: it can not be written.
        """


class Folder:
    """Files. Each is written aside, flushed to disk, renamed, and its folder flushed.

    Args:
        path: of the folder; made when first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def put(self, *contents: Sequence[Buffer]) -> list[str]:
        """Hash and flush in other threads while the next file is written; of what is there, nothing is kept twice."""
        self._make()
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

    def _make(self) -> None:
        if not self.path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            _flush_folder(self.path.parent)

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

    def tidy(self) -> int:
        """Files written aside, of writers that must be dead by now."""
        removed = 0
        for file in self.path.glob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # its writer has finished, or another process tidies too
                if time.time() - file.stat().st_mtime > ABANDONED_AFTER:
                    file.unlink()
                    removed += 1
        return removed

    def owner(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.path / OWNER).read_bytes().decode(errors="replace")
        return None

    def claim(self, owner: str) -> str:
        """Written aside and linked: whole as soon as it is there, and never over another's."""
        if found := self.owner():
            return found
        self._make()
        aside = self.path / f"{os.getpid()}-{threading.get_ident()}-{OWNER}.tmp"
        try:
            _flush(_write(aside, [owner.encode()]))
            _link(aside, self.path / OWNER)
        finally:
            aside.unlink(missing_ok=True)
        _flush_folder(self.path)
        return self.owner() or owner

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

    def __str__(self) -> str:
        return str(self._store)

    def put(self, *contents: Sequence[Buffer]) -> list[str]:
        """Create the objects; one of that name that is there already has these bytes."""
        names = [sha256_of(pieces) for pieces in contents]
        for name, pieces in zip(names, contents, strict=True):
            self._create(self._key(name), b"".join(pieces))
        return names

    def _create(self, key: str, data: bytes) -> None:
        try:
            self._obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except self._obstore.exceptions.AlreadyExistsError:
            return
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{key}: {error}") from error

    def get(self, name: str) -> Buffer:
        return self._read(self._key(name))

    def _read(self, key: str) -> Buffer:
        try:
            return self._obstore.get(self._store, key).bytes()
        except FileNotFoundError:
            raise
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{key}: {error}") from error

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
        try:
            listed = [entry["path"] for batch in self._obstore.list(self._store) for entry in batch]
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{self}: {error}") from error
        return [Path(path).stem for path in listed if path.endswith(".safetensors")]

    def tidy(self) -> int:
        """Objects appear whole or not at all."""
        return 0

    def owner(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return bytes(self._read(OWNER)).decode(errors="replace")
        return None

    def claim(self, owner: str) -> str:
        self._create(OWNER, owner.encode())
        return self.owner() or owner

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


def _link(aside: Path, path: Path) -> None:
    """Another name of a file, unless that is taken."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links: who comes between the two lines is overwritten, and refused later
        if not path.exists():
            os.replace(aside, path)


def _flush(file: FileIO) -> None:
    with file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
