"""A file that holds an unfinished fit."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .inference.errors import InvalidInput
from .inference.resuming import Checkpoint

__all__ = ["FileCheckpoint", "fit_digest"]


def fit_digest(description: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of everything that a fit's result depends on."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class FileCheckpoint(Checkpoint):
    """A safetensors file with the state of every training that the fit has begun.

    It is written aside, flushed to disk and renamed, so that its name always stands for a whole file.

    Args:
        path: of the file; what it holds is gone on from.
        digest: of the fit, see :func:`fit_digest`.
        seconds: between two writes.

    Raises:
        InvalidInput: the file is no checkpoint, or another fit's, or can't be one.
    """

    def __init__(self, path: str | os.PathLike[str], digest: str, seconds: float) -> None:
        if not isinstance(path, str | os.PathLike) or Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
            raise InvalidInput(f"checkpoint must be a file in an existing folder, got {path!r}")
        self._path, self._digest, self._seconds = Path(path), digest, seconds
        self._training = -1
        self._written = time.monotonic()
        self._kept: dict[str, np.ndarray] = self._read() if self._path.exists() else {}

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with safe_open(self._path, "np") as file:
                digest = (file.metadata() or {}).get("fit")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise InvalidInput(f"checkpoint must be a file that fit has written, got {self._path}: {error}") from error
        if digest != self._digest:
            raise InvalidInput(
                f"checkpoint {self._path} is of another fit: other data, model, method, engine or seed; remove it to "
                "start anew"
            )
        return arrays

    def begin(self) -> dict[str, np.ndarray] | None:
        self._training += 1
        prefix = f"{self._training}/"
        own = {name.removeprefix(prefix): a for name, a in self._kept.items() if name.startswith(prefix)}
        return own or None

    def due(self) -> bool:
        return time.monotonic() - self._written >= self._seconds

    def keep(self, arrays: Mapping[str, np.ndarray]) -> None:
        own = {f"{self._training}/{name}": np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
        self._kept = {name: a for name, a in self._kept.items() if not name.startswith(f"{self._training}/")} | own
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with open(aside, "wb") as file:
            file.write(save(self._kept, {"fit": self._digest}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        self._written = time.monotonic()

    def remove(self) -> None:
        """The fit has ended."""
        self._path.unlink(missing_ok=True)
