"""From a log to a posterior: the newest sound snapshot, and the records after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .feedback import Observation
from .inference.engines import Engine
from .inference.errors import CorruptStore, InvalidInput, UnknownModel
from .inference.network import Network
from .model import BayesianMLP
from .stepper import Effect, Stepper
from .store.connections import is_postgresql
from .store.fold import Fold, Record
from .store.log import Log, is_version
from .store.store import PosteriorStore

__all__ = ["Replay", "fold_on", "line_of", "load", "network_for", "observed", "replay"]


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
        stepper: to fold with where it is of the same model, so that nothing is compiled again; where only its network
            is the same, that is taken.
        length: how many records of the version's line to fold; None for all.

    Raises:
        UnknownModel: no such model or version.
        CorruptStore: no sound snapshot is left, or not that of a consolidation on the way.
    """
    log = store.log(name)
    fold = line_of(log, version)
    covered, snapshot = store.nearest_snapshot(log.model_id, fold, length)
    line = fold.line[covered:length]
    for record in line:
        if record.is_mixed:
            raise CorruptStore(
                f"the snapshot of the {record.kind} at version {record.offset} of model {name!r} is not sound, and no "
                "later one is: roll back to the version before it, and make it again"
            )
        if record.kind == "consolidate":
            raise CorruptStore(
                f"the snapshot of the consolidation at version {record.offset} of model {name!r} is not sound, and no "
                "later one is: repair takes it off the line, unless payloads to fold in its place were erased"
            )
    if stepper is None or not stepper.is_for(snapshot.spec, snapshot.arrays):
        network = network if stepper is None else network_for(snapshot.spec, stepper.model)
        model = BayesianMLP.from_parts(snapshot.spec, snapshot.arrays, engine, network)
        stepper = Stepper(model, own=True, steps=None if network is not None else store.compiled.steps_of(model))
    else:
        stepper.reset(snapshot.arrays)
    effects = fold_on(stepper, log, line)
    return Replay(stepper, fold, effects, len(effects))


def line_of(log: Log, version: int | None = None) -> Fold:
    """The line of a version of a model; None for the newest.

    Raises:
        InvalidInput: the version is no positive integer.
        UnknownModel: there is no such version.
    """
    if version is not None and not is_version(version):
        raise InvalidInput(f"version must be a positive integer, got {version!r}")
    fold = log.fold(None if version is None else min(int(version), 2**62))
    if not fold.line or (version is not None and version != fold.head):
        raise UnknownModel(
            f"model {log.name!r} has no version {version!r}; its versions are the offsets of its history"
        )
    return fold


def network_for(spec: Mapping[str, Any], model: BayesianMLP) -> Network | None:
    """The network of a model where a spec describes the same one; else the spec must be enough."""
    return model.network if model.spec()["network"] == spec["network"] else None


def fold_on(stepper: Stepper, log: Log, line: Sequence[Record]) -> dict[int, Effect]:
    """Fold records of a line, in order; gives what each did, by offset.

    Raises:
        Purged: the payload of one of them was erased.
    """
    offsets = [record.offset for record in line if record.learned is not None]
    learned = observed(stepper.model, log, line)
    return {offset: stepper.apply(observation) for offset, observation in zip(offsets, learned, strict=True)}


def observed(model: BayesianMLP, log: Log, line: Sequence[Record]) -> Iterator[Observation]:
    """What the records of a line learn, in order; raises :class:`Purged` for one whose payload was erased."""
    for record in log.at([record.learned for record in line if record.learned is not None]):
        yield Observation.from_body(record.body, model, record.source)


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
        store: a store, or the path or URL of one.
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
    if not is_postgresql(store) and not Path(store).is_file():
        raise InvalidInput(f"store must be the path of a store, got {str(store)!r}, which is not there")
    with PosteriorStore(store) as opened:
        return replay(opened, name, engine=engine, network=network, version=version).model
