"""The disk of a process, made to fail, to kill or to be watched: builds ``shim.c`` and speaks to it from within."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["FOR_GOOD", "KILL", "ONCE", "arm", "count", "disarm", "mark", "run_under", "trace_to"]

ONCE, FOR_GOOD, KILL = 1, 2, 3
_SOURCE = Path(__file__).with_name("shim.c")


def run_under(folder: Path, script: Path, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script whose changes of files under a folder go through the shim; skips where there is no compiler."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs gcc on Linux (apt-get install gcc)")
    library = folder.parent / "shim.so"
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl", "-lpthread"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "FAULTS_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"{done.stdout}\n{done.stderr}"
    return done


def arm(how: int, place: int, error: int = errno.EIO) -> None:
    """Fail the change of a file at a place (from 0, from now on), or kill this process there."""
    ctypes.CDLL(None).fault_arm(how, ctypes.c_long(place), error)


def disarm() -> None:
    """All goes well from here on; the count starts again."""
    arm(0, -1, 0)


def count() -> int:
    """Changes of files since it was armed or disarmed."""
    function = ctypes.CDLL(None).fault_count
    function.restype = ctypes.c_long
    return int(function())


def trace_to(path: Path) -> None:
    """Note every change from here on in a file."""
    ctypes.CDLL(None).fault_trace(str(path).encode())


def mark(text: str) -> None:
    """Note a text in the trace."""
    ctypes.CDLL(None).fault_mark(text.encode())
