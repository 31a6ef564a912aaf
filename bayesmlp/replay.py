"""From a log to a posterior: the newest sound snapshot, and the records after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection

from .feedback import Observation
from .inference.engines import Engine
from .inference.errors import CorruptStore, InvalidInput, UnknownModel
from .model import BayesianMLP
from .stepper import Effect, Stepper
from .store.fold import Fold, Record
from .store.store import PosteriorStore, is_version

__all__ = ["Replay", "load", "observation_of", "replay"]


class Replay(NamedTuple):
    """Attributes:
    stepper: holds the posterior.
    fold: the line that was folded.
    effects: of the records that were folded again, by offset.
    replayed: how many those were.
    """

    stepper: Stepper
    fold: Fold
    effects: dict[int, Effect]
    replayed: int

    @property
    def model(self) -> BayesianMLP:
        """The model with the posterior."""
        return self.stepper.model


def replay(
    store: PosteriorStore,
    name: str,
    *,
    engine: str | Engine | None = None,
    network: Any = None,
    version: int | None = None,
    stepper: Stepper | None = None,
    length: int | None = None,
) -> Replay:
    """Rebuild a model's posterior from its log.

    Args:
        store: where it is.
        name: of the model.
        engine: to run on.
        network: see :func:`load`.
        version: None for the newest.
        stepper: of the same model, to fold with, so that nothing is compiled again.
        length: how many records of the version's line to fold; None for all.

    Raises:
        UnknownModel: no such model or version.
        CorruptStore: no sound snapshot is left.
    """
    if version is not None and not is_version(version):
        raise InvalidInput(f"version must be a positive integer, got {version!r}")
    with store.read() as connection:
        model_id = store.model_id(connection, name)
        fold = store.fold(connection, model_id, None if version is None else min(int(version), 2**62))
        if not fold.line or (version is not None and version != fold.head):
            raise UnknownModel(
                f"model {name!r} has no version {version!r}; its versions are the offsets of its history"
            )
        covered, snapshot = store.nearest_snapshot(connection, model_id, fold, length)
        if stepper is None or stepper.model.spec() != snapshot.spec:
            stepper = Stepper(BayesianMLP.from_parts(snapshot.spec, snapshot.arrays, engine, network))
        else:
            stepper.reset(snapshot.arrays)
        effects = {}
        for record in fold.line[covered:length]:
            if record.kind == "consolidate":
                raise CorruptStore(f"the snapshot of the consolidation at version {record.offset} is not sound")
            if record.learned is None:  # a handover: the line goes on
                continue
            effects[record.offset] = stepper.apply(observation_of(store, connection, model_id, record, stepper.model))
        return Replay(stepper, fold, effects, len(effects))


def observation_of(
    store: PosteriorStore, connection: Connection, model_id: int, record: Record, model: BayesianMLP
) -> Observation:
    """What a record learns."""
    assert record.learned is not None
    body = store.body(connection, model_id, record.learned)
    source = None if model.memory is None else store.source(connection, model_id, record.learned)
    return Observation.from_body(body, model, source)


def load(
    store: str | Path | PosteriorStore,
    name: str,
    *,
    engine: str | Engine | None = None,
    network: Any = None,
    version: int | None = None,
) -> BayesianMLP:
    """A model from a store as it is, or as it was at an earlier version, on any engine.

    Args:
        store: a store, or the path of one.
        name: of the model.
        engine: as for :class:`~bayesmlp.BayesianMLP`.
        network: for a model whose network is the user's own module: the module, or what ``bayesianize`` made of it. Its
            weights come from the store.
        version: a version from the store's ``history``; None for the newest.

    Raises:
        UnknownModel: no such model, or no such version of it.
        InvalidInput: there is no store at that path; or the network is needed, or is not the one that was stored.
        CorruptStore: no sound snapshot is left.
    """
    if isinstance(store, PosteriorStore):
        return replay(store, name, engine=engine, network=network, version=version).model
    if not Path(store).is_file():
        raise InvalidInput(f"store must be the path of a store, got {str(store)!r}, which is not there")
    with PosteriorStore(store) as opened:
        return replay(opened, name, engine=engine, network=network, version=version).model
