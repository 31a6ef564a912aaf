"""A place of large arrays is one store's alone."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from store_cases import HAS_WAL, Places, printed_by_a_reader
from test_store_upkeep import wide_model

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.store.places import OWNER, Folder, ObjectStore, Place


def forget_the_owner(places: Places, folder: Path) -> None:
    """As a store was before places had owners."""
    with places.sql() as connection:
        connection.exec_driver_sql("DROP TABLE identity")
    (folder / OWNER).unlink()


def test_a_second_store_is_refused_and_deletes_nothing(places: Places, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    early = places.open("early", blobs=url)  # when the place was nobody's
    with places.open(blobs=url) as store:
        store.publish("m", wide_model())
        with pytest.raises(errors.InvalidInput, match=r"blobs must be a place of the store's own, got .*shared"):
            places.open("late", blobs=url)
        for change in (early.collect_garbage, lambda: early.publish("m", wide_model())):
            with pytest.raises(errors.InvalidInput, match="another store's"):
                change()
        assert store.verify() == []
    with places.open(blobs=url) as again:
        again.publish("another", wide_model())
        assert again.collect_garbage() == 0
        assert again.verify() == []


def test_an_older_store_claims_its_place_when_it_is_opened(places: Places, tmp_path: Path) -> None:
    url, folder = f"file://{tmp_path}/shared", tmp_path / "shared"
    with places.open(blobs=url) as store:
        store.publish("m", wide_model())
    forget_the_owner(places, folder)
    with pytest.raises(errors.InvalidInput, match="it has arrays, and this store is new"):
        places.open("late", blobs=url)
    assert not (folder / OWNER).exists()
    with places.open(blobs=url) as store:
        assert (folder / OWNER).exists()
        assert store.verify() == []


def test_a_store_without_large_arrays_makes_no_folder(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "s.db") as store:
        assert store.collect_garbage() == 0
    assert not (tmp_path / "s.db.blobs").exists()


@pytest.mark.skipif(HAS_WAL, reason="SQLite opens a database with a write-ahead log only where it may write")
def test_a_store_that_can_not_be_written_is_opened_as_it_is(tmp_path: Path) -> None:
    places = Places(tmp_path)
    with places.open() as store:
        store.publish("m", wide_model())
    forget_the_owner(places, tmp_path / "store.db.blobs")
    code = f"import bayesmlp as bm; print(bm.load({places.location()!r}, 'm', engine='numpy').num_inputs)"
    assert printed_by_a_reader(tmp_path, code) == "300"
    assert not (tmp_path / "store.db.blobs" / OWNER).exists()


def test_copies_of_a_store_are_the_same_store(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with bm.open_store(tmp_path / "a" / "s.db") as store:
        store.publish("m", wide_model())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with bm.open_store(tmp_path / "b" / "s.db") as copy:
        assert copy.collect_garbage() == 0
        assert copy.verify() == []


def test_of_several_claims_at_once_one_is_heard(tmp_path: Path) -> None:
    obstore = pytest.importorskip("obstore.store", reason="pip install 'bayesmlp[objects]' to enable")
    for place in (Folder(tmp_path / "blobs"), ObjectStore(obstore.MemoryStore())):
        assert place.owner() is None
        assert len(set(claimed_by_many(place))) == 1
        assert place.claim("late") == place.owner() != "late"
        assert place.names() == []
    assert [file.name for file in (tmp_path / "blobs").iterdir()] == [OWNER]


def test_a_file_system_without_links_has_owners_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "link", link)
    place = Folder(tmp_path / "blobs")
    assert [place.claim("first"), place.claim("second")] == ["first", "first"]
    assert [file.name for file in place.path.iterdir()] == [OWNER]


def claimed_by_many(place: Place) -> list[str]:
    heard: list[str] = []
    threads = [threading.Thread(target=lambda i=i: heard.append(place.claim(f"store {i}"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard
