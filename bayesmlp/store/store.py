"""Posteriors and their logs, by name."""

from __future__ import annotations

import contextlib
import getpass
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, insert, select

from ..compiled import CompiledSteps
from ..inference.engines import Engine
from ..inference.errors import CorruptStore, InvalidInput, UnknownModel
from ..model import BayesianMLP
from ..prequential import Prequential
from ..stepper import step_fingerprint
from .answers import Answers
from .blobs import Blobs
from .connections import connect_postgresql, connect_sqlite, is_postgresql, postgresql_url, unavailable_as_such
from .database import FORMAT_VERSION, answers_metadata, metadata, models
from .fold import Fold
from .history import Entry, history_of, prequential_of
from .log import Log
from .ownership import Owner
from .places import Folder, place_for
from .repair import repair
from .snapshots import Snapshot, Snapshots
from .transfer import export_model, import_model
from .verify import Problem, verify
from .writer import Writer

__all__ = ["PosteriorStore", "check_name", "open_store"]

_log = logging.getLogger(__name__)


def open_store(
    path: str | Path, *, durability: str = "full", blobs: str | None = None, actor: str | None = None
) -> PosteriorStore:
    """Open a store, making it if it is not there.

    Args:
        path: an SQLite file, or the URL of a PostgreSQL database, ``postgresql://user@host/database``.
        durability: ``"full"``: what was acknowledged survives power loss; ``"normal"``: the death of the process.
        blobs: where large arrays go: the URL of a folder, ``file:///folder``, or of an object store,
            ``s3://bucket/path`` (extra ``objects``). None: to a folder beside an SQLite file (``<path>.blobs``), or
            into the PostgreSQL database. The store does not note it: open it with the same one again. It is one
            store's alone: whichever writes there first.
        actor: who appends, for the history; None for the user of the operating system.

    Raises:
        InvalidInput: a URL of another database, an unknown durability, or a folder of arrays that is another store's.
        MissingDependency: an extra is needed.
        StoreUnavailable: the database can't be reached.
        CorruptStore: the file is no SQLite database, or can not be opened.
    """
    return PosteriorStore(path, durability=durability, blobs=blobs, actor=actor)


class PosteriorStore:
    """An append-only log and immutable snapshots for each model, in one database. See :func:`open_store`."""

    def __init__(
        self, path: str | Path, *, durability: str = "full", blobs: str | None = None, actor: str | None = None
    ) -> None:
        self.actor = _checked_actor(actor)
        place = None if blobs is None else place_for(blobs)
        self._answers: Answers | None = None
        self._making_answers = threading.Lock()
        self._answers_file: Path | None = None
        if is_postgresql(path):
            url, schemas = postgresql_url(str(path)), (metadata, answers_metadata)
            self.path = url.render_as_string(hide_password=True)
            with unavailable_as_such(self.path):
                self.engine = connect_postgresql(url, schemas, durability=durability, exclusive=True)
            self.reader = connect_postgresql(url, schemas, durability=durability, exclusive=False)
        else:
            file = _checked_file(path)
            self.path = str(file)
            place = place or Folder(file.with_name(f"{file.name}.blobs"))
            self._answers_file = file.with_name(f"{file.name}.answers")
            with unavailable_as_such(self.path):
                self.engine = connect_sqlite(file, metadata, durability=durability, exclusive=True)
            self.reader = connect_sqlite(file, metadata, durability=durability, exclusive=False)
        owner = None if place is None else Owner(place, self.engine, self.reader)
        self.snapshots = Snapshots(Blobs(place, owner))
        if owner is not None:
            try:
                owner.check()
            except BaseException:
                self.close()
                raise
        self.compiled = CompiledSteps()

    def __repr__(self) -> str:
        return f"PosteriorStore({self.path!r})"

    def __enter__(self) -> PosteriorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        if self._answers is not None:
            self._answers.close()
        self.engine.dispose()
        self.reader.dispose()

    @property
    def answers(self) -> Answers:
        """Answers given with a prediction id, kept beside the log."""
        with self._making_answers:
            if self._answers is None:
                if self._answers_file is None:
                    engine: sqlalchemy.Engine = self.reader.execution_options(isolation_level="READ COMMITTED")
                else:
                    with unavailable_as_such("the answers"):
                        engine = connect_sqlite(
                            self._answers_file, answers_metadata, durability="normal", exclusive=True
                        )
                self._answers = Answers(engine)
            return self._answers

    @property
    def kept_answers(self) -> Answers | None:
        """:attr:`answers`, to read; None if none was ever kept."""
        return self.answers if self._answers_file is None or self._answers_file.exists() else None

    # -- models ---------------------------------------------------------------------------------------------------
    def publish(self, name: str, model: BayesianMLP) -> int:
        """Store a model's posterior under a name; under a name that is there, it starts a new line.

        Args:
            name: of the model.
            model: fitted, or started from its prior.

        Returns:
            The version.

        Raises:
            InvalidInput: a name that is not 1 to 200 printable characters.
            NotFitted: the model has no posterior.
            LeaseHeld: an updater is writing to the model.
        """
        check_name(name)
        if not isinstance(model, BayesianMLP):
            raise InvalidInput(f"model must be a BayesianMLP, got {model!r}")
        model.num_inputs  # noqa: B018 (raises before any work)
        self.add_name(name)
        fingerprint = step_fingerprint(model.engine)
        with self.write(name) as writer:
            body = {"fingerprint": fingerprint}
            return writer.append_snapshot("publish", body, model.spec(), model.to_arrays())[0]

    def add_name(self, name: str) -> bool:
        """Make an empty log of a name; whether it was not there yet."""
        check_name(name)
        with unavailable_as_such(self.path), self.engine.begin() as connection:
            if connection.execute(select(models.c.id).where(models.c.name == name)).first() is not None:
                return False
            values = {"name": name, "format_version": FORMAT_VERSION, "created": time.time()}
            connection.execute(insert(models).values(**values))
            return True

    def names(self) -> list[str]:
        """Names of the models."""
        with self.read() as connection:
            return list(connection.execute(select(models.c.name).order_by(models.c.name)).scalars())

    def history(self, name: str) -> list[Entry]:
        """Every record of a model's log, oldest first: what became of it, who appended it and when."""
        return history_of(self.log(name))

    def prequential(self, name: str) -> Prequential:
        """How the model predicted the events of its line before it learned them, from what was stored of each.

        Raises:
            UnknownModel: no such model.
        """
        return prequential_of(self.reader, self.log(name))

    def rollback(self, name: str, version: int) -> int:
        """Go back to an earlier version; the records since stay in the log, rolled back.

        A retraction is never undone by a rollback.

        Returns:
            The new version.

        Raises:
            UnknownModel: no such model or version.
            LeaseHeld: an updater is writing to the model: use its own ``rollback``.
        """
        with self.write(name) as writer:
            return writer.append_rollback(version)

    # -- branches -------------------------------------------------------------------------------------------------
    def branch(
        self,
        parent: str,
        name: str | Sequence[str],
        *,
        version: int | None = None,
        learn: str = "all",
        engine: str | Engine | None = None,
        network: Any = None,
    ) -> None:
        """Make a model, or many in one commit, whose prior is another model's posterior as it is now.

        The parent's arrays are shared, not copied. A branch is a model like any other.

        Args:
            parent: name of the other model.
            name: of the branch; or the names of several.
            version: of the parent; None for the newest.
            learn: ``"all"``; or ``"last"``: only the last layer, which must be a block of its own, and which is then
                all that is stored of the branch. The other layers stay as uncertain as they are.
            engine: to fold the parent's log on; None: the one that it was last written on, where that is here.
            network: see :func:`bayesmlp.load`.

        Raises:
            InvalidInput: a name that is taken or can't be, or ``learn`` of a structure without such a block.
            UnknownModel: no such parent, or version of it.
        """
        from ..branching import branch

        if not isinstance(name, Iterable):
            raise InvalidInput(f"name must be one name, or several different ones, got {name!r}")
        names = [name] if isinstance(name, str) else list(name)
        branch(self, parent, names, version=version, learn=learn, engine=engine, network=network)

    def merge(
        self,
        parent: str,
        branches: Sequence[str],
        *,
        how: str | None = None,
        engine: str | Engine | None = None,
        network: Any = None,
    ) -> int:
        """Give a model what its branches have learned since they were made, or since they were last merged.

        ``"delta"``: q ∝ q_parent Π (q_branch / q_fork), see :mod:`bayesmlp.inference.merging`: costs no steps, and is
        the posterior of a single stream for a network that is linear in its weights, with normal noise and all
        correlations. Elsewhere it is an approximation, which can overshoot where branches have learned the same thing.
        ``"replay"``: the branches' events are learned here, in the order of their times, under the ids ``branch:id``;
        each once, and none that was retracted here.

        Args:
            parent: name of the model.
            branches: names of branches of it.
            how: None: ``"delta"`` where it is exact, else ``"replay"``. ``"delta"`` needs static dynamics, and a
                posterior that is one Gaussian for one kind of feedback; and no event of a branch that was brought by
                replay may be here, or have been retracted here, unless that merge still counts.
            engine: see :meth:`branch`.
            network: see :func:`bayesmlp.load`.

        Returns:
            The version; the one before if there was nothing to merge.

        Raises:
            InvalidInput: not a branch of the model, but perhaps of another one that had its name, or a way in which it
                can't be merged.
            UnknownModel: no such model.
            StoreError: what was merged of a branch before is no longer what it holds: see :meth:`unmerge`.
            LeaseHeld: an updater is writing to the model. Branches may have one.
        """
        from ..branching import merge

        return merge(self, parent, branches, how=how, engine=engine, network=network)

    def pull(
        self, name: str, *, how: str | None = None, engine: str | Engine | None = None, network: Any = None
    ) -> int:
        """Give a branch what its parent has learned since: q ∝ q_parent (q_branch / q_fork), or by replay.

        Args:
            name: of the branch.
            how: see :meth:`merge`; by replay, the branch's own events that the parent does not have are learned again.
            engine: see :meth:`branch`.
            network: see :func:`bayesmlp.load`.

        Returns:
            The version of the branch; the one before if the parent has learned nothing.

        Raises:
            InvalidInput: the model is no branch, a way in which it can't be done, or a parent that was published anew
                with other settings or in other units.
            UnknownModel: no such model.
            StoreError: see :meth:`merge`.
            LeaseHeld: an updater is writing to the branch.
        """
        from ..branching import pull

        return pull(self, name, how=how, engine=engine, network=network)

    def unmerge(self, name: str, version: int) -> int:
        """Take out a merge, or a pull, as if it had never been; those after it were made of it and fall away too.

        Args:
            name: of the model.
            version: of the merge.

        Returns:
            The new version.

        Raises:
            InvalidInput: there is no merge that counts at that version.
            Purged: payloads that would have to be folded again were erased.
            LeaseHeld: an updater is writing to the model.
        """
        from ..branching import unmerge

        return unmerge(self, name, version)

    # -- looking after ---------------------------------------------------------------------------------------------
    def verify(self, name: str | None = None) -> list[Problem]:
        """Check every byte of a model, or of all models and the database, against what was written.

        Args:
            name: of a model; None for all.

        Returns:
            What is wrong; empty if all is well.
        """
        return verify(self, name)

    def repair(self, name: str, *, engine: str | Engine | None = None, network: Any = None) -> int:
        """Delete the snapshots of a model that are not sound, and make its newest posterior again: the newest sound
        snapshot and the log after it are folded.

        A consolidation can't be made again: one without its snapshot is taken off the line by a ``retract`` record, and
        the events that it had learned are folded one by one.

        Args:
            name: of the model.
            engine: to fold on. Only where it has the fingerprint of the model's line is a new snapshot stored: else the
                next updater folds, and hands over.
            network: for a model whose network is the user's own module, see :func:`bayesmlp.load`.

        Returns:
            How many snapshots were deleted.

        Raises:
            CorruptStore: records are damaged, no snapshot is sound, or payloads that would be folded in place of a
                consolidation were erased: fall back to a copy of the store.
            LeaseHeld: an updater is writing to the model.
        """
        return repair(self, name, engine, network)

    def collect_garbage(self) -> int:
        """Delete arrays that no snapshot names; returns how many. Snapshots that go take theirs along as it is; what is
        left over is from processes that died. What such a process was writing goes once it is a day old.
        """
        with unavailable_as_such(self.path), self.engine.begin() as connection:
            inside = self.snapshots.blobs.collect(connection)
        self.snapshots.blobs.sweep(self.engine)
        return inside + self.snapshots.blobs.sweep(self.engine, everything=True)

    def export(self, name: str, path: str | Path) -> None:
        """Write a model with its log and its snapshots to one file, which is a store too.

        Args:
            name: of the model.
            path: of the new file.

        Raises:
            InvalidInput: the file is there, or its folder is not.
            CorruptStore: the model is not sound.
        """
        export_model(self, name, path)

    def import_(self, path: str | Path, *, name: str | None = None) -> str:
        """Take in a model from a file of :meth:`export`.

        Args:
            path: of the file.
            name: for it here; None for its own.

        Returns:
            Its name here.

        Raises:
            InvalidInput: no such file, a name that can't be, or there is a model of that name.
            CorruptStore: the file is damaged; nothing of it is taken in.
        """
        if name is not None:
            check_name(name)
        return import_model(self, path, name)

    # -- reading --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view of the store; keep it short, writers of an SQLite store may wait for it."""
        with unavailable_as_such(self.path), self.reader.connect() as connection:
            yield connection

    def log(self, name: str) -> Log:
        """A model's log; raises :class:`UnknownModel`, naming the models there are."""
        with self.read() as connection:
            return Log(self.reader, self.model_id(connection, name), name)

    def model_id(self, connection: Connection, name: str) -> int:
        """Raises :class:`UnknownModel`, naming the models there are; or :class:`InvalidInput`."""
        check_name(name)
        row = connection.execute(select(models).where(models.c.name == name)).first()
        if row is None:
            known = list(connection.execute(select(models.c.name).order_by(models.c.name).limit(20)).scalars())
            raise UnknownModel(f"no model {name!r} in {self.path}; it holds {known or 'none'}")
        if not isinstance(row.format_version, int) or row.format_version > FORMAT_VERSION:
            raise CorruptStore(
                f"model {name!r} has format {row.format_version}, this version of bayesmlp reads up to {FORMAT_VERSION}"
            )
        return int(row.id)

    def nearest_snapshot(self, model_id: int, fold: Fold, no_later_than: int | None = None) -> tuple[int, Snapshot]:
        """The newest sound snapshot on a fold's line.

        Args:
            model_id: of the model.
            fold: the line to find it on.
            no_later_than: highest allowed position on the line.

        Returns:
            The number of records of the line that it covers, and the snapshot.

        Raises:
            CorruptStore: none is sound.
        """
        covers = fold.covers
        with self.read() as connection:
            chains = self.snapshots.chains(connection, model_id)
        usable = [(covers[chain], offset) for offset, chain in chains.items() if chain in covers]
        for position, offset in sorted(usable, reverse=True):
            if no_later_than is not None and position > no_later_than:
                continue
            try:
                with self.read() as connection:
                    return position, self.snapshots.read(connection, model_id, offset, shared=fold.parent is not None)
            except CorruptStore as error:
                _log.warning("snapshot at version %d is not sound, an older one is used: %s", offset, error)
        raise CorruptStore(f"no sound snapshot of model {model_id} is left for its version {fold.head}")

    # -- writing --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[Writer]:
        """The right to write to a model, for the duration of the block."""
        writer = self.writer(name)
        try:
            yield writer
        finally:
            writer.release()

    def writer(self, name: str, *, take_over: bool = False) -> Writer:
        """Take the model's lease; raises :class:`LeaseHeld` while another writer has it, unless ``take_over``."""
        return Writer(self, name, take_over=take_over)


def check_name(name: Any) -> None:
    """Raises :class:`InvalidInput` unless it can be the name of a model."""
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise InvalidInput(f"name must be a string of 1 to 200 printable characters, got {name!r}")


def _checked_file(path: str | Path) -> Path:
    if "://" in str(path) or not isinstance(path, str | Path):
        raise InvalidInput(f"path must be an SQLite file or a postgresql:// URL, got {str(path)!r}")
    file = Path(path).absolute()
    if not file.parent.is_dir():
        raise InvalidInput(f"path must be in an existing folder, got {str(path)!r}")
    return file


def _checked_actor(actor: Any) -> str:
    if actor is None:
        try:
            return getpass.getuser()
        except (OSError, KeyError):  # a process of a user that has no name
            return "unknown"
    if not isinstance(actor, str) or not 0 < len(actor) <= 200 or not actor.isprintable():
        raise InvalidInput(f"actor must be a string of 1 to 200 printable characters, got {actor!r}")
    return actor
