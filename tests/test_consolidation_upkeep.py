"""What becomes of a consolidation in a store: restarts, retractions, purging, copies, thinning, damage, repair.

The fit is exchanged for one that needs no gradients, so that the store is all that is tested.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import Places, small_model, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.store.digest import posterior_digest
from bayesmlp.store.fold import Fold
from bayesmlp.updating import revising

X, Y = stream(60)


@pytest.fixture(autouse=True)
def during_the_fit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """Every consolidation learns some rows more, and is put in place; what is put into the list happens meanwhile."""
    meanwhile: list[Callable[[], Any]] = []

    def fit(store: bm.PosteriorStore, name: str, fold: Fold, *_: Any) -> tuple[bm.BayesianMLP, bm.Consolidation]:
        model = bm.load(store, name, engine="numpy", version=fold.head)
        model.update(X[50:], Y[50:])
        while meanwhile:
            meanwhile.pop()()
        return model, bm.Consolidation(True, -1.0, -2.0, 1, 0.0)

    monkeypatch.setattr(revising, "consolidate_log", fit)
    return meanwhile


def opened(store: bm.PosteriorStore, **options: Any) -> bm.OnlineUpdater:
    return bm.OnlineUpdater(store, "m", engine="numpy", **options)


def told(model: bm.OnlineUpdater, first: int, last: int, source: str | None = None) -> None:
    """Each row an event, whose id is its number."""
    rows = slice(first, last)
    model.observe_many(X[rows], Y[rows], event_ids=[f"e{row}" for row in range(first, last)], source=source)


def never_consolidated(places: Places, rows: list[int]) -> str:
    """The digest of a model that has learned some rows, one by one."""
    with places.published(name="plain") as store, opened(store) as model:
        for row in rows:
            model.observe(X[row], Y[row])
        return model.digest()


def stored_digest(store: bm.PosteriorStore, **options: Any) -> str:
    model = bm.load(store, "m", engine="numpy", **options)
    return posterior_digest(model.spec(), model.to_arrays())


def snapshots_of(store: bm.PosteriorStore) -> set[int]:
    with store.read() as connection:
        return set(store.snapshots.chains(connection, store.model_id(connection, "m")))


def damage(places: Places, *versions: int) -> None:
    """Change the stored digests of snapshots."""
    with places.sql() as connection:
        for version in versions:
            connection.exec_driver_sql(f"UPDATE snapshots SET digest = 'no' WHERE \"offset\" = {version}")


def test_it_survives_restarts_and_retractions_of_what_came_after(places: Places) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)  # versions 2 to 11
            assert model.consolidate().version == 12
            consolidated = model.digest()
            told(model, 10, 12)
            live = model.digest()
        with opened(store) as model:
            assert model.digest() == live
            assert model.retract(["e10", "e11"], estimate=True).replayed == 0
            assert model.retract(["e11"]).replayed == 1
            model.retract(["e10"])
            assert model.digest() == consolidated
        assert stored_digest(store) == consolidated
        assert store.verify() == []


def test_it_falls_away_with_what_it_has_learned(places: Places) -> None:
    with places.published() as store, opened(store) as model:
        told(model, 0, 10)
        model.consolidate()
        told(model, 10, 12)
        assert model.history()[11].note == "up to version 11"
        assert model.retract(["e4"], estimate=True).replayed == 11
        assert model.retract(["e4"]).replayed == 11
        assert model.digest() == never_consolidated(places, [0, 1, 2, 3, *range(5, 12)])
        assert model.history()[11].note == "up to version 11, no longer"
        assert 12 not in snapshots_of(store)
        model.rollback(13)  # for good, also across a rollback
        assert model.digest() == never_consolidated(places, [0, 1, 2, 3, *range(5, 11)])
        assert store.verify() == []


def test_what_came_during_the_fit_follows_it(places: Places, during_the_fit: list[Callable[[], Any]]) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)
            during_the_fit.append(lambda: told(model, 10, 13))
            assert model.consolidate().version == 15
            live = model.digest()
            model.retract(["e11"])
            told(model, 13, 15)
            newest = model.digest()
        with opened(store) as model:
            assert model.digest() == newest
    with places.published(name="other") as store, opened(store) as model:
        told(model, 0, 10)
        model.consolidate()
        told(model, 10, 13)
        assert model.digest() == live
        model.retract(["e11"])
        told(model, 13, 15)
        assert model.digest() == newest


def test_two_at_once_are_one(places: Places, during_the_fit: list[Callable[[], Any]]) -> None:
    with places.published() as store, opened(store) as model:
        told(model, 0, 10)
        inner = []

        def other() -> None:
            thread = threading.Thread(target=lambda: inner.append(model.consolidate()))
            thread.start()
            thread.join(timeout=60)

        during_the_fit.append(other)
        outer = model.consolidate()
        assert (inner[0].replaced, outer.replaced) == (True, False)
        assert [entry.kind for entry in model.history()].count("consolidate") == 1


def test_a_rollback_past_it_and_back_finds_its_snapshot(places: Places) -> None:
    with places.published() as store, opened(store) as model:
        told(model, 0, 10)
        filtered = model.digest()
        model.consolidate()
        consolidated = model.digest()
        model.rollback(11)
        assert model.digest() == filtered
        told(model, 10, 12)
        model.retract(["e10"])  # which deletes the snapshots that can't be needed again
        model.rollback(12)
        assert model.digest() == consolidated


def test_thinning_spares_its_snapshot(places: Places) -> None:
    with places.published() as store, opened(store, snapshot_every=1) as model:
        told(model, 0, 10)
        model.consolidate()
        told(model, 10, 50)
        assert {1, 12} <= snapshots_of(store)
        assert len(snapshots_of(store)) < 14
        assert store.collect_garbage() == 0
        model.retract(["e10"])
        with places.published(name="other") as other, opened(other) as same:
            told(same, 0, 10)
            same.consolidate()
            told(same, 11, 50)
            assert model.digest() == same.digest()


def test_a_purge_takes_its_snapshot_too(places: Places) -> None:
    with places.published() as store, opened(store) as model:
        told(model, 0, 8)
        told(model, 8, 10, source="s")
        model.consolidate()
        model.rollback(1)  # it is off the line: a rollback could bring it back
        assert 12 in snapshots_of(store)
        model.purge(source="s")
        assert 12 not in snapshots_of(store)
        model.rollback(12)
        assert model.digest() == never_consolidated(places, list(range(8)))
        assert store.verify() == []


def test_what_it_has_learned_and_was_erased_cannot_be_retracted(places: Places) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)
            model.consolidate()
            told(model, 10, 12)
        with opened(store, retention=bm.Retention(events=2)) as model:
            model.snapshot()
            with pytest.raises(errors.Purged):
                model.retract(["e3"])
            live = model.digest()
            model.retract(["e11"])
            model.observe(X[11], Y[11])
            assert model.digest() == live
        damage(places, 12)
        assert store.repair("m", engine="numpy") == 1  # what was learned is all that is left: it stays
        assert stored_digest(store) == live
        assert [(problem.version, problem.lost) for problem in store.verify()] == [(12, False)]
        damage(places, *(snapshots_of(store) - {1}))
        with pytest.raises(errors.CorruptStore, match="unless payloads to fold in its place were erased"):
            store.repair("m", engine="numpy")


def test_it_moves_with_its_model(places: Places, tmp_path: Path) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)
            model.consolidate()
            consolidated = model.digest()
            told(model, 10, 12)
            live = model.digest()
        store.export("m", tmp_path / "file")
    with places.open("other") as other:
        other.import_(tmp_path / "file")
        assert other.verify() == []
        assert stored_digest(other) == live
        with opened(other) as model:
            model.retract(["e10", "e11"])
            assert model.digest() == consolidated
            model.retract(["e0"])
            assert model.digest() == never_consolidated(places, list(range(1, 10)))


def test_repair_takes_one_without_its_snapshot_off_the_line(places: Places, tmp_path: Path) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)
            model.consolidate()
            told(model, 10, 12)
            live = model.digest()
        damage(places, 12)
        assert stored_digest(store) == live  # a later snapshot is sound
        found = {(problem.version, problem.lost) for problem in store.verify()}
        assert found == {(12, False)}
        assert any("repair takes it off the line" in problem.what for problem in store.verify())
        with pytest.raises(errors.CorruptStore, match="version 12"):
            store.export("m", tmp_path / "file")
        assert store.repair("m", engine="numpy") == 1
        assert store.verify() == []
        assert store.history("m")[-1].note == "0 events, the consolidation at version 12"
        assert store.history("m")[11].note.endswith("no longer")
        with opened(store) as model:
            assert model.digest() == never_consolidated(places, list(range(12)))
            model.retract(["e10"])
            assert model.digest() == never_consolidated(places, [*range(10), 11])


def test_opening_says_what_to_do_where_its_snapshot_is_damaged(places: Places) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)
            model.consolidate()
        with places.sql() as connection:
            connection.exec_driver_sql('DELETE FROM parts WHERE "offset" = 12')
            connection.exec_driver_sql('DELETE FROM snapshots WHERE "offset" = 12')
        with pytest.raises(errors.CorruptStore, match=r"consolidation at version 12 .*repair takes it off the"):
            opened(store)
        assert [problem.version for problem in store.verify()] == [12]
        assert store.repair("m", engine="numpy") == 0
        with opened(store) as model:
            assert model.digest() == never_consolidated(places, list(range(10)))


def test_other_settings_and_differences_know_it(places: Places) -> None:
    with places.published() as store:
        with opened(store) as model:
            told(model, 0, 10)
            model.consolidate()
            told(model, 10, 12)
        other = bm.replay_with(store, "m", engine="numpy")  # event by event
        assert posterior_digest(other.spec(), other.to_arrays()) == never_consolidated(places, list(range(12)))
        assert bm.diff(store, "m", 11, 12, probe=X[:5], engine="numpy").change.max() > 1e-3
        np.testing.assert_array_equal(bm.diff(store, "m", 11, 11, probe=X[:5], engine="numpy").change, 0.0)


def test_a_memory_is_stored_with_it(places: Places) -> None:
    remembering = bm.BayesianMLP(
        bm.MLP((8,), "tanh"), bm.Categorical(3), structure=bm.Diagonal(), engine="numpy", standardize=False,
        memory=bm.Memory(6, rehearsed=2),
    )  # fmt: skip
    remembering.start_from_prior(4)
    with places.open() as store:
        store.publish("m", remembering)
        with opened(store) as model:
            told(model, 0, 10, source="s")
            told(model, 10, 15, source="t")
            model.consolidate()
            consolidated = model.digest()
            told(model, 15, 20, source="t")
            live = model.digest()
        with opened(store) as model:
            assert model.digest() == live
            model.retract([f"e{row}" for row in range(15, 20)])
            assert model.digest() == consolidated
            assert model.model.memory_state is not None
            assert len(model.model.memory_state.x) == 6
        assert small_model().memory is None
