"""Branches of a model: made from its posterior, merged into it again, brought up to date with it.

A branch is a model whose log starts at a snapshot of its parent. What one of the two has learned since they last knew
the same (:func:`~.store.branches.base_of`) goes to the other as a difference of posteriors
(:mod:`.inference.merging`), or event by event.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .feedback import Observation
from .inference.engines import get_engine
from .inference.errors import DeviceUnavailable, InvalidInput, MissingDependency, Purged, StoreError, UnknownModel
from .inference.filtering import Posterior
from .inference.likelihoods import Gaussian
from .inference.merging import merged
from .inference.network import MLP
from .inference.spec import to_spec
from .inference.structures import Blocks, Frozen, Full, LowRank, Mixture, Structure
from .model import BayesianMLP
from .replay import Replay, fold_on, line_of, replay
from .stepper import Effect, step_fingerprint
from .store.branches import Base, base_of, insert_branches, is_parent, last_merge, mark_of, merges_of
from .store.digest import extend_chain
from .store.fold import Fold, Record
from .store.lineage import Note, branch_event_id, fates, new_ids, replay_notes
from .store.log import Log, NewRecord, is_version
from .store.store import PosteriorStore, check_name
from .store.writer import Writer

__all__ = ["branch", "merge", "pull", "refuse_merged", "unmerge"]

LEARN = ("all", "last")
WAYS = (None, "delta", "replay")


class _News(NamedTuple):
    """A branch, and what its parent does not have of it.

    Attributes:
        name: of the branch.
        log: of the branch.
        fold: of the branch.
        base: where both knew the same.
        fates: what became of its events in the parent, see :func:`~.store.lineage.fates`.
    """

    name: str
    log: Log
    fold: Fold
    base: Base
    fates: Mapping[int, str]

    @property
    def events(self) -> list[Record]:
        """Records that learned what the parent neither has, nor has retracted."""
        return [r for r in self._learned if r.offset > self.base.since and self._fate(r) not in ("live", "retracted")]

    @property
    def own_events(self) -> list[Record]:
        """Records that learned what the parent does not have, or no longer, as it has retracted it."""
        return [
            r
            for r in self._learned
            if self._fate(r) == "retracted" or (r.offset > self.base.since and self._fate(r) != "live")
        ]

    @property
    def _learned(self) -> list[Record]:
        return [r for r in self.fold.line if r.learned is not None]

    def _fate(self, record: Record) -> str | None:
        return None if record.learned is None else self.fates.get(record.learned)

    @property
    def merges(self) -> list[Record]:
        """Records that brought what others have learned, not event by event."""
        return [r for r in self.fold.line if r.offset > self.base.since and r.kind == "merge" and r.is_mixed]

    def why_no_delta(self, *, pulled: bool = False) -> str | None:
        """Why the difference of its posterior to that of the base is not what the parent lacks; None if it is.

        Args:
            pulled: whether the branch takes over its parent's posterior, which lacks what was retracted there.
        """
        from_parent = pulled or self.base.model != self.name
        for record in self._learned:
            fate, is_news = self._fate(record), record.offset > self.base.since
            if fate == "live" and is_news:
                return f"not for what was merged event by event, as version {record.offset} of {self.name!r} was"
            if fate == "retracted" and (is_news or from_parent):
                return f"not for what the parent has retracted, as version {record.offset} of {self.name!r}"
        return None


def branch(
    store: PosteriorStore,
    parent: str,
    names: Sequence[str],
    *,
    version: int | None = None,
    learn: str = "all",
    engine: Any = None,
    network: Any = None,
) -> None:
    """See :meth:`PosteriorStore.branch`."""
    for name in names:
        check_name(name)
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"name must be one name, or several different ones, got {list(names)[:5]!r}")
    if learn not in LEARN:
        raise InvalidInput(f"learn must be one of {', '.join(LEARN)}, got {learn!r}")
    result = _folded(store, parent, engine, network, version)
    model, fingerprint = result.model, step_fingerprint(result.model.engine)
    spec = model.spec()
    if learn == "last":
        spec["structure"] = to_spec(_last_block_alone(model))
    body = {
        "fingerprint": fingerprint,
        "parent": parent,
        "version": result.fold.head,
        "chain": result.fold.chain,
        "mark": mark_of(store.log(parent), result.fold.head),
        "learn": learn,
    }
    insert_branches(store, names, body, store.snapshots.prepare(spec, model.to_arrays(), fingerprint))


def _folded(store: PosteriorStore, name: str, engine: Any, network: Any, version: int | None = None) -> Replay:
    """A model; where no engine is named, on the one that it was last written on, if that is here."""
    if engine is None and network is None:
        with contextlib.suppress(MissingDependency, DeviceUnavailable):
            engine = get_engine(line_of(store.log(name), version).fingerprint["engine"])
    return replay(store, name, engine=engine, network=network, version=version)


def _last_block_alone(model: BayesianMLP) -> Blocks:
    """The structure with all blocks frozen but that of the last layer."""
    structure, last = model.filter_model.structure, model.network.num_layers - 1
    if not isinstance(structure, Blocks) or (last,) not in [layers for _, layers in structure.parts]:
        raise InvalidInput(
            'learn="last" needs a structure in which the last layer is a block of its own, such as LastLayer(), '
            f"got {model.structure}"
        )
    return Blocks(
        tuple(
            (part if layers == (last,) or isinstance(part, Frozen) else Frozen(part), layers)
            for part, layers in structure.parts
        )
    )


# -- merging ----------------------------------------------------------------------------------------------------------
def merge(
    store: PosteriorStore,
    parent: str,
    branches: Sequence[str],
    *,
    how: str | None = None,
    engine: Any = None,
    network: Any = None,
) -> int:
    """See :meth:`PosteriorStore.merge`."""
    if isinstance(branches, str) or not isinstance(branches, Iterable):
        raise InvalidInput(f"branches must be a list of names, got {branches!r}")
    branches = list(branches)
    if not all(isinstance(name, str) for name in branches):
        raise InvalidInput(f"branches must be a list of names, got {branches!r}")
    if len(set(branches)) < len(branches):
        raise InvalidInput(f"branches must be different ones, got {list(branches)!r}")
    _check_way(how)
    with store.write(parent) as writer:
        now = _folded(store, parent, engine, network)
        notes = replay_notes(writer.log)
        found = [_news_of(store, writer.log, now.fold, notes, name) for name in branches]
        news = [each for each in found if each.events or each.merges]
        if not news:
            return now.fold.head
        against = next((why for each in news if (why := each.why_no_delta())), None)
        if _way(now.model, news, how, against) == "delta":
            return _merge_posteriors(store, writer, now, news, network)
        return _merge_events(writer, now, news)


def _check_way(how: Any) -> None:
    if how not in WAYS:
        raise InvalidInput(f"how must be 'delta', 'replay' or None, got {how!r}")


def _news_of(store: PosteriorStore, parent_log: Log, parent: Fold, notes: Sequence[Note], name: str) -> _News:
    log = store.log(name)
    fold = log.fold()
    if fold.parent != parent_log.name:
        of = "no branch" if fold.parent is None else f"a branch of {fold.parent!r}"
        raise InvalidInput(f"branches must be of {parent_log.name!r}, got {name!r}, which is {of}")
    _check_parent(parent_log, name, fold)
    base = base_of(parent, fold, parent_log.name, log)
    return _News(name, log, fold, base, fates(parent_log, parent, log, fold, notes))


def _check_parent(log: Log, name: str, own: Fold) -> None:
    if not is_parent(log, own):
        raise InvalidInput(f"{name!r} is a branch of another model that was called {log.name!r}, not of the one here")


def _way(model: BayesianMLP, news: Sequence[_News], how: str | None, against: str | None) -> str:
    """In which way to merge, with what is against merging the branches' posteriors.

    Raises:
        InvalidInput: it can't be done in the way that was asked for, or in any.
    """
    against = _why_no_delta(model) or against
    if how == "delta" and against is not None:
        raise InvalidInput(f"how='delta' is {against}: use how='replay'")
    mixed = next((each.name for each in news if each.merges), None)
    if how == "delta" or (how is None and against is None and (_is_exact(model) or mixed is not None)):
        return "delta"
    if mixed is not None:
        raise InvalidInput(f"{mixed!r} has merged branches of its own, whose events it does not have to replay")
    return "replay"


def _why_no_delta(model: BayesianMLP) -> str | None:
    """Why posteriors of a model can't be merged; None if they can."""
    if not model.dynamics.is_static:
        return f"for static dynamics, not for {model.dynamics}"
    if not isinstance(model.filter_model.structure, Structure) or model.particles is not None:
        return f"for a single Gaussian, not for {model.filter_model.structure}"
    if model.kinds:
        return "for one kind of feedback"
    if model.memory is not None:
        return "for models without a memory"
    if not model.likelihood.streams_add_up:
        return f"for likelihoods that learn from all rows alike, not for {model.likelihood}"
    return None


def _is_exact(model: BayesianMLP) -> bool:
    """Whether merged posteriors are the posterior of a single stream; with ``LowRank`` while nothing is dropped."""
    is_linear = isinstance(model.network, MLP) and not model.network.hidden
    is_conjugate = isinstance(model.likelihood, Gaussian) and model.influence is None
    return is_linear and is_conjugate and isinstance(model.filter_model.structure, Full | LowRank)


def _merge_posteriors(store: PosteriorStore, writer: Writer, now: Replay, news: Sequence[_News], network: Any) -> int:
    mine = now.stepper.to_arrays()
    for each in news:
        each.base.check_holds(each.fold)
    pairs = [
        (
            _arrays_of(store, now.model, each.name, each.fold.head, network),
            _arrays_of(store, now.model, each.base.model, each.base.version, network),
        )
        for each in news
    ]
    arrays = _merged_arrays(now.model, mine, pairs)
    body = {"fingerprint": step_fingerprint(now.model.engine), "how": "delta", "branches": _named(news)}
    return writer.append_snapshot("merge", body, now.model.spec(), arrays, now.fold.chain)[0]


def _named(news: Iterable[_News]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "version": each.fold.head,
            "chain": each.fold.chain,
            "mark": mark_of(each.log, each.fold.line[0].offset),
        }
        for each in news
    ]


def _arrays_of(
    store: PosteriorStore, like: BayesianMLP, name: str, version: int, network: Any
) -> dict[str, np.ndarray]:
    """The posterior of a version of a model that must be of the same kind as another."""
    model = replay(store, name, engine=like.engine, network=network, version=version).model
    if what := _differing(model, like):
        raise InvalidInput(f"{name!r} can't be merged by its posterior: it differs in its {what}: use how='replay'")
    return model.to_arrays()


def _differing(model: BayesianMLP, other: BayesianMLP) -> str:
    """In what two models differ, so that the posterior of one is none of the other; empty if in nothing.

    That some blocks are frozen is no difference.
    """
    own, like = model.spec(), other.spec()
    differing = sorted(key for key in {*own, *like} - {"structure"} if own.get(key) != like.get(key))
    if not differing and not all(map(np.array_equal, model.scaling, other.scaling)):
        differing = ["scaling"]
    if not differing and own["structure"] != like["structure"]:
        structures = [_thawed(one.filter_model.structure) for one in (model, other)]
        differing = [] if structures[0] == structures[1] else ["structure"]
    return ", ".join(differing)


def _thawed(structure: Structure | Mixture) -> Structure | Mixture:
    """A structure with no block frozen."""
    if not isinstance(structure, Blocks):
        return structure
    return Blocks(tuple((part.of if isinstance(part, Frozen) else part, layers) for part, layers in structure.parts))


def _merged_arrays(
    model: BayesianMLP,
    now: Mapping[str, np.ndarray],
    grown: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """The arrays of a model, merged with others of its kind, in float64."""
    structure, likelihood, host = model.filter_model.structure, model.scaled_likelihood, get_engine("numpy", "float64")
    assert isinstance(structure, Structure)

    def posterior(arrays: Mapping[str, np.ndarray]) -> Posterior:
        weights = {k.removeprefix("weights."): a for k, a in arrays.items() if k.startswith("weights.")}
        states = [arrays[k].astype(np.float64) for k in sorted(arrays) if k.startswith("likelihood.")]
        return Posterior(structure.from_arrays(host, weights), likelihood.restore_state(states))

    with host.scope():
        result = merged(host, structure, likelihood, posterior(now), [(posterior(a), posterior(b)) for a, b in grown])
        named = {f"weights.{k}": a for k, a in structure.to_arrays(host, result.weights).items()}
    named |= {f"likelihood.{i}": np.asarray(value) for i, value in enumerate(result.likelihood)}
    return dict(now) | {name: array.astype(now[name].dtype) for name, array in named.items()}


def _merge_events(writer: Writer, now: Replay, news: Sequence[_News]) -> int:
    """Append the branches' events in the order of their times, then note what was merged, and learn them.

    Under another fingerprint than the line's they are learned by the next updater, which hands over.
    """
    new, places = _as_records(writer.log, news)
    observations = [_observed(record, now.model, writer.name) for record in new]
    said = [{**one, "events": places[one["name"]]} for one in _named(news)]
    stored = writer.append([*new, NewRecord("merge", None, {"how": "replay", "branches": said})])
    head, chain = stored[-1].offset, now.fold.chain
    if step_fingerprint(now.model.engine) != now.fold.fingerprint:
        return head
    effects: dict[int, Effect] = {}
    for observation, event in zip(observations, stored, strict=False):
        effects[event.offset] = now.stepper.apply(observation)
    chain = extend_chain(chain, [*effects, head])
    fingerprint = step_fingerprint(now.model.engine)
    prepared = writer.store.snapshots.prepare(now.model.spec(), now.stepper.to_arrays(), fingerprint)
    writer.snapshot(head, chain, prepared, effects)
    return head


def _as_records(log: Log, news: Sequence[_News]) -> tuple[list[NewRecord], dict[str, list[list[int]]]]:
    """The branches' events as records of the parent, by time; and where each will be, by its place in its branch."""
    timed: list[tuple[float, str, int, NewRecord]] = []
    for each in news:
        for row in each.log.at([int(record.learned or 0) for record in each.events]):
            meaning = {k: v for k, v in row.body.items() if k not in ("schema", "granted", "excess_surprise", "answer")}
            event_id = branch_event_id(each.name, str(row.event_id))
            kind = "event" if len(row.body["x"]) == 1 else "batch"
            record = NewRecord(kind, event_id, meaning, row.source, row.body.get("granted", 1.0))
            timed.append((row.body.get("time", row.received), each.name, row.offset, record))
    timed.sort(key=lambda one: one[:3])
    places: dict[str, list[list[int]]] = {each.name: [] for each in news}
    for place, (_, name, offset, _) in enumerate(timed, start=log.head() + 1):
        places[name].append([offset, place])
    ids = new_ids(log, [str(record.event_id) for *_, record in timed])
    return [record._replace(event_id=i) for (*_, record), i in zip(timed, ids, strict=True)], places


def _observed(record: NewRecord, model: BayesianMLP, name: str) -> Observation:
    """What a record tells a model other than the one that it was sent to.

    Raises:
        InvalidInput: the model can't learn it.
    """
    parts = ("x", "y", "weight", "time", "output_mask", "kind", "propensity")
    try:
        Observation.check(*(record.body.get(part) for part in parts), model=model)
    except InvalidInput as error:
        raise InvalidInput(f"event {record.event_id!r} can't be learned by {name!r} as it is now: {error}") from error
    return Observation.from_body({**record.body, **record.decided}, model, record.source)


# -- the other way ----------------------------------------------------------------------------------------------------
def pull(store: PosteriorStore, name: str, *, how: str | None = None, engine: Any = None, network: Any = None) -> int:
    """See :meth:`PosteriorStore.pull`."""
    _check_way(how)
    with store.write(name) as writer:
        own = _folded(store, name, engine, network)
        if own.fold.parent is None:
            raise InvalidInput(f"name must be of a branch, got {name!r}, which is none")
        parent = own.fold.parent
        _check_parent(store.log(parent), name, own.fold)
        theirs = replay(store, parent, engine=own.model.engine, network=network)
        known = next(record for record in reversed(own.fold.line) if record.kind in ("branch", "pull"))
        if known.body["chain"] == theirs.fold.chain:
            return own.fold.head
        if what := _differing(own.model, theirs.model):
            raise InvalidInput(f"{name!r} can't go on from {parent!r}, which differs from it in its {what} by now")
        base = base_of(theirs.fold, own.fold, parent, writer.log)
        their_log = store.log(parent)
        became = fates(their_log, theirs.fold, writer.log, own.fold, replay_notes(their_log))
        news = _News(name, writer.log, own.fold, base, became)
        if _way(theirs.model, [news], how, news.why_no_delta(pulled=True)) == "delta":
            base.check_holds(own.fold)
            mine = _arrays_of(store, theirs.model, name, own.fold.head, network)
            fork = _arrays_of(store, theirs.model, base.model, base.version, network)
            arrays = _merged_arrays(theirs.model, theirs.stepper.to_arrays(), [(mine, fork)])
        else:
            arrays = _learned_again(own, theirs, news)
        merge_of_it = last_merge(theirs.fold, own.fold, writer.log)
        body = {
            "fingerprint": step_fingerprint(own.model.engine),
            "parent": parent,
            "version": theirs.fold.head,
            "chain": theirs.fold.chain,
            "since": base.since,
            "merge": 0 if merge_of_it is None else merge_of_it[0].offset,
        }
        return writer.append_snapshot("pull", body, own.model.spec(), arrays, own.fold.chain)[0]


def _learned_again(own: Replay, theirs: Replay, news: _News) -> dict[str, np.ndarray]:
    """The parent's posterior after the branch's own events."""
    own.stepper.reset(theirs.stepper.to_arrays())
    fold_on(own.stepper, news.log, news.own_events)
    return own.stepper.to_arrays()


# -- taking back ------------------------------------------------------------------------------------------------------
def unmerge(store: PosteriorStore, name: str, version: int) -> int:
    """See :meth:`PosteriorStore.unmerge`."""
    with store.write(name) as writer:
        fold = writer.log.fold()
        if not is_version(version) or version not in {record.offset for record in fold.line if record.is_mixed}:
            raise InvalidInput(f"version must be of a merge by posteriors or a pull of {name!r}, got {version!r}")
        with store.read() as connection:
            chains = store.snapshots.chains(connection, writer.model_id)
        start = max(offset for offset, chain in chains.items() if chain in fold.covers and offset < version)
        again = [int(r.learned) for r in fold.line if r.offset > start and r.learned is not None]
        erased = writer.log.purged_among(again)
        if erased:
            raise Purged(f"model {name!r} can't be folded again: the payload of version {erased[0]} was erased")
        return writer.append([NewRecord("retract", None, {"event_ids": [], "merges": [int(version)]})])[0].offset


def refuse_merged(store: PosteriorStore, name: str, parent: str, offsets: Iterable[int]) -> None:
    """Raise unless none of some records of a branch is in a merge of its parent.

    Raises:
        StoreError: names the merge, and how to go on.
    """
    try:
        log = store.log(parent)
        theirs = log.fold()
    except UnknownModel:  # the branch was exported, its parent was not
        return
    own_log = store.log(name)
    own, taken_out, oldest = own_log.fold(), set(offsets), min(offsets)
    merges = [(merge, one["version"]) for merge, one in merges_of(theirs, own, own_log) if merge.is_mixed]
    if not is_parent(log, own):
        return
    for merge, version in merges:
        if version < oldest or taken_out.isdisjoint(record.learned for record in own_log.fold(version).line):
            continue  # as what came later, or was in quarantine
        raise StoreError(
            f"what is to be retracted from {name!r} was merged into {parent!r} (version {merge.offset}): take that "
            f"merge out first, with store.unmerge({parent!r}, {merge.offset}), and merge again afterwards"
        )
