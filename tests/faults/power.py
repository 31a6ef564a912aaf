"""What a power cut may leave of files, from the trace of what was done to them.

Of every file, what was written since its last flush is there, lost, or torn at a multiple of 512 bytes, each write for
itself and in any order; of every folder, names that were made, changed or removed since its last flush are or are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Disk", "Operation", "read_trace"]

SECTOR = 512


class Operation(NamedTuple):
    """One line of a trace: write, sync, truncate, create, rename, unlink, mkdir or mark."""

    kind: str
    path: str
    offset: int
    data: bytes
    more: str


def read_trace(path: Path) -> list[Operation]:
    operations = []
    with open(path, "rb") as file:
        while line := file.readline():
            kind, name, offset, size, more = line.decode().rstrip("\n").split("\t")
            data = file.read(int(size)) if kind == "write" else b""
            operations.append(Operation(kind, name, int(offset), data, more))
    return operations


class File:
    """Contents of a file: those that are flushed, and what was done since."""

    def __init__(self, content: bytes = b"") -> None:
        self.flushed = content
        self.since: list[Operation] = []

    def after(self, operations: list[Operation]) -> bytes:
        content = bytearray(self.flushed)
        for kind, _, offset, data, _ in operations:
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            if kind == "truncate":
                del content[offset:]
            else:
                content[offset : offset + len(data)] = data
        return bytes(content)

    def after_a_cut(self, rng: np.random.Generator) -> bytes:
        kept = [self.since[i] for i in which_survive(len(self.since), rng)]
        if kept and kept[-1].kind == "write" and rng.random() < 0.5:
            sectors = int(rng.integers(0, len(kept[-1].data) // SECTOR + 1))
            kept[-1] = kept[-1]._replace(data=kept[-1].data[: sectors * SECTOR])
        return self.after(kept)


def which_survive(number: int, rng: np.random.Generator) -> list[int]:
    """Of some changes that were not flushed: none, all, the first of them, or any."""
    choice = rng.integers(4)
    if choice == 0 or number == 0:
        return []
    if choice == 1:
        return list(range(number))
    if choice == 2:
        return list(range(int(rng.integers(number + 1))))
    return [i for i in range(number) if rng.random() < 0.5]


class Disk:
    """Files and folders as a trace goes on.

    Args:
        folder: all of whose files are flushed at the start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.names: dict[str, File | None] = {str(path): File(path.read_bytes()) for path in files}
        self.names |= {str(path): None for path in folder.rglob("*") if path.is_dir()}
        self.flushed_names = dict(self.names)
        self.name_changes: list[tuple[str, bool, File | None]] = []  # path, whether it is there after, what it names

    def follow(self, operation: Operation) -> None:
        kind, path = operation.kind, operation.path
        if kind in ("create", "mkdir"):
            self._name(path, File() if kind == "create" else None)
        elif kind == "rename":
            self._name(operation.more, self.names[path])
            self._remove(path)
        elif kind == "unlink":
            self._remove(path)
        elif kind == "sync" and (path == str(self.folder) or self.names.get(path) is None):
            self._flush_folder(path)
        elif kind != "mark":
            file = self.names[path]
            assert file is not None
            if kind == "sync":
                file.flushed, file.since = file.after(file.since), []
            else:
                file.since.append(operation)

    def _name(self, path: str, file: File | None) -> None:
        self.names[path] = file
        self.name_changes.append((path, True, file))

    def _remove(self, path: str) -> None:
        self.name_changes.append((path, False, self.names.pop(path)))

    def _flush_folder(self, folder: str) -> None:
        here = [change for change in self.name_changes if str(Path(change[0]).parent) == folder]
        self.name_changes = [change for change in self.name_changes if str(Path(change[0]).parent) != folder]
        _apply(here, self.flushed_names)

    def cut(self, target: Path, rng: np.random.Generator) -> None:
        """Write what a power cut leaves now into a new folder."""
        names = dict(self.flushed_names)
        _apply([self.name_changes[i] for i in which_survive(len(self.name_changes), rng)], names)
        target.mkdir()
        for path in sorted(names):
            file, place = names[path], target / Path(path).relative_to(self.folder)
            if not place.parent.is_dir():
                continue  # its folder was lost
            if file is None:
                place.mkdir()
            else:
                place.write_bytes(file.after_a_cut(rng))


def _apply(changes: list[tuple[str, bool, File | None]], names: dict[str, File | None]) -> None:
    for path, is_there, file in changes:
        if is_there:
            names[path] = file
        else:
            names.pop(path, None)
