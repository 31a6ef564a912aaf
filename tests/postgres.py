"""A private PostgreSQL server for tests: made in a temporary folder, on a socket there, gone afterwards.

BAYESMLP_POSTGRES names the URL of a server to use instead, with the right to make databases.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["HOW", "Cluster", "find_programs", "server"]

HOW = "apt-get install postgresql, or set BAYESMLP_POSTGRES=postgresql://user@host/postgres"


def find_programs() -> Path | None:
    """The folder of PostgreSQL's programs; None if they are not on this machine."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("pg_ctl")
    if on_path is not None:
        folders.insert(0, Path(on_path).parent)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Cluster:
    """A server in a temporary folder. Root may not run one, so it runs as another user then.

    Args:
        programs: folder of PostgreSQL's programs.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="bayesmlp-pg-"))
        self._user = None if os.getuid() else next(name for name in ("postgres", "nobody") if _exists(name))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", "bayesmlp", "-E", "UTF8")
        self.start()

    @property
    def url(self) -> str:
        """Of its database ``postgres``."""
        return f"postgresql://bayesmlp@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c max_connections=60"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` as if it were killed."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        """Stop it, and remove what it left."""
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        other: dict[str, Any] = {}
        if self._user is not None:
            other = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}
        with open(self.folder / "out", "ab") as out:  # no pipe: the server would keep it open
            subprocess.run(command, check=True, stdout=out, stderr=out, cwd="/", **other)


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


@contextlib.contextmanager
def server() -> Iterator[str | None]:
    """The URL of a server; None if there can be none here."""
    programs = find_programs()
    if importlib.util.find_spec("psycopg") is None:
        yield None
    elif "BAYESMLP_POSTGRES" in os.environ:
        yield os.environ["BAYESMLP_POSTGRES"]
    elif programs is not None:
        cluster = Cluster(programs)
        try:
            yield cluster.url
        finally:
            cluster.remove()
    else:
        yield None
