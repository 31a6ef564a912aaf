"""Bits that flip and files that lose their end: whatever the place, nothing is silently different.

After each damage the store is verified, opened by an updater, and asked for all that it holds. It must refuse by an
error of its own, or give the same digest, answers and history; and where it gives the same, either ``verify`` names the
damage or the rows of all tables are what they were (the bytes meant nothing). BAYESMLP_FLIPS sets how many damages,
BAYESMLP_FIRST_SEED which.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from store_cases import published, small_model, stream

import bayesmlp as bm
from bayesmlp.inference.errors import BayesMLPError, CorruptStore
from bayesmlp.store import blobs, snapshots


class Content(NamedTuple):
    """All that a store says of its model."""

    digest: str
    answers: list[Any]
    history: list[Any]
    prequential: str


@pytest.fixture
def small_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays become files of their own too."""
    monkeypatch.setattr(blobs, "INLINE_BYTES", 1500)
    monkeypatch.setattr(snapshots, "PART_BYTES", 1500)


def make_store(folder: Path) -> list[str]:
    """A store with all kinds of records, several snapshots and answers; gives the ids of the answers."""
    folder.mkdir()
    x, y = stream(40)
    model = small_model(structure=bm.LastLayer())
    with published(folder, structure=bm.Diagonal()) as store:
        store.publish("other", model)
        store.publish("third", model)
        admission = bm.Admission(quarantine_above=3.0)
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=9, admission=admission) as updater:
            for i in range(30):
                updater.observe(x[i], y[i], event_id=f"e{i}", source=f"s{i % 3}")
            updater.observe(30 * x[30], (y[30] + 1) % 3, event_id="strange")
            updater.retract(["e20"])
            version = updater.version
            updater.observe(x[31], y[31], event_id="undone")
            updater.rollback(version)
            updater.observe_batch(x[32:35], y[32:35], event_id="batch")
            given = [updater.predict(x[i]).prediction_id for i in range(35, 40)]
            updater.feedback(given[0], y[35])
            return [str(i) for i in given]


def read(folder: Path, given: list[str]) -> Content:
    with bm.open_store(folder / "store.db") as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        inputs = [store.answers.inputs("m", i) for i in given]
        history = [entry[:4] + entry[7:] for entry in updater.history()]
        return Content(
            updater.digest(), [None if i is None else i.tolist() for i in inputs], history,
            repr(updater.prequential()),
        )  # fmt: skip


def rows_of(folder: Path) -> dict[str, list[Any]]:
    """The rows of all tables; raises :class:`sqlite3.Error` where they can't be read."""
    found: dict[str, list[Any]] = {}
    for name in ("store.db", "store.db.answers"):
        with contextlib.closing(sqlite3.connect(folder / name)) as connection:
            connection.text_factory = lambda text: text.decode(errors="surrogateescape")
            tables = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite%'"
            for (table,) in connection.execute(tables).fetchall():  # as SQLite has read their definitions
                found[table.lower()] = sorted(connection.execute(f"SELECT * FROM {table} NOT INDEXED"), key=repr)
    del found["leases"]  # who had one last
    return found | {"models": [row[:3] for row in found["models"]]}  # when a model's name was first taken


def verified(folder: Path) -> bool:
    """Whether nothing is wrong with a store, says the store."""
    try:
        with bm.open_store(folder / "store.db") as store:
            return not store.verify()
    except BayesMLPError:
        return False


def damages(files: list[Path], number: int, seed: int) -> Iterator[tuple[Path, bytes, str]]:
    """A file, its damaged bytes, and what was done to it; databases are damaged most often."""
    databases = [file for file in files if file.suffix in (".db", ".answers")]
    files = [*files, *[file for file in databases for _ in range(len(files))]]
    rng = np.random.default_rng(seed)
    for _ in range(number):
        file = files[rng.integers(len(files))]
        data = bytearray(file.read_bytes())
        written = np.flatnonzero(np.frombuffer(data, dtype=np.uint8))  # half of a database is blank
        place = int(rng.choice(written)) if rng.random() < 0.5 else int(rng.integers(len(data)))
        if rng.random() < 0.05:
            yield file, bytes(data[:place]), f"{file.name} cut at {place}"
        else:
            bit = int(rng.integers(8))
            data[place] ^= 1 << bit
            yield file, bytes(data), f"{file.name} bit {bit} of {place}"


def lost_numbers(file: Path) -> Iterator[tuple[Path, bytes, str]]:
    """A database with one byte 1 set to 0, each in its turn: where it said that a column holds a number, it is null."""
    data = bytearray(file.read_bytes())
    for place in np.flatnonzero(np.frombuffer(bytes(data), dtype=np.uint8) == 1):
        data[place] = 0
        yield file, bytes(data), f"{file.name} byte {place} lost its number"
        data[place] = 1


def what_comes(folder: Path, given: list[str], sound: Content, rows: dict[str, list[Any]], what: str) -> str:
    """How a damage shows."""
    clean = verified(folder)
    found = rows_of(folder) if clean else {}  # before anything is written
    try:
        content = read(folder, given)
    except BayesMLPError as error:
        return f"refused: {type(error).__name__}"
    assert content.digest == sound.digest, f"{what}: another posterior, and nothing said so"
    if content == sound and not clean:
        return "same content; verify names it"
    if clean:
        assert content == sound, f"{what}: other content, and verify sees nothing: {content}"
        different = {table for table in rows if found.get(table) != rows[table]}
        assert not different, f"{what}: other rows in {different}, and verify sees nothing"
        return "a byte without meaning"
    return "same posterior; verify names what else is different"


def run(folder: Path, drawn: Callable[[list[Path]], Iterator[tuple[Path, bytes, str]]]) -> Counter[str]:
    """Counts how the damages that are drawn from the files of a store show."""
    given = make_store(folder / "made")
    shutil.copytree(folder / "made", folder / "sound")
    sound = read(folder / "sound", given)
    shutil.rmtree(folder / "sound")
    rows = rows_of(folder / "made")
    files = sorted(file for file in (folder / "made").rglob("*") if file.is_file() and file.stat().st_size)
    assert {file.suffix or file.name for file in files} == {".db", ".answers", ".safetensors", "owner"}
    results: Counter[str] = Counter()
    wrong: list[str] = []
    for file, data, what in drawn(files):
        copy = folder / "copy"
        shutil.copytree(folder / "made", copy)
        (copy / file.relative_to(folder / "made")).write_bytes(data)
        try:
            results[what_comes(copy, given, sound, rows, what)] += 1
        except (Exception, AssertionError) as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}"[:400])
        shutil.rmtree(copy)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(wrong) + results.total()} damages", *wrong])
    return results


@pytest.mark.usefixtures("small_blobs")
@pytest.mark.parametrize("number", [25, pytest.param(None, marks=pytest.mark.slow)])
def test_rot(tmp_path: Path, number: int | None) -> None:
    number = number or int(os.environ.get("BAYESMLP_FLIPS", "300"))
    seed = int(os.environ.get("BAYESMLP_FIRST_SEED", "0"))
    results = run(tmp_path, lambda files: damages(files, number, seed))
    print(f"\n{number} flips and truncations: {dict(results.most_common())}")
    assert sum(results.values()) == number
    assert sum(count for result, count in results.items() if result.startswith("refused")) > number / 20


@pytest.mark.usefixtures("small_blobs")
@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_a_number_that_becomes_null(tmp_path: Path, every: int) -> None:
    def drawn(files: list[Path]) -> Iterator[tuple[Path, bytes, str]]:
        (database,) = (file for file in files if file.name == "store.db")
        return islice(lost_numbers(database), 0, None, every)

    assert run(tmp_path, drawn).total() > 200 / every


@pytest.mark.usefixtures("small_blobs")
def test_an_answer_of_no_model_is_named(tmp_path: Path) -> None:
    """As one bit may leave it, with a name that is no text."""
    make_store(tmp_path / "made")
    with contextlib.closing(sqlite3.connect(tmp_path / "made" / "store.db.answers")) as connection:
        connection.execute("UPDATE answers SET model = CAST(x'ed' AS TEXT) WHERE rowid = 2")
        connection.commit()
    with bm.open_store(tmp_path / "made" / "store.db") as store:
        assert ["is of no model" in problem.what for problem in store.verify()] == [True]


@pytest.mark.usefixtures("small_blobs")
@pytest.mark.parametrize("body", ["{", '{"x": [[1.0]]}'], ids=["no JSON", "another"])
def test_rows_are_not_counted_from_a_body_that_rotted(tmp_path: Path, body: str) -> None:
    make_store(tmp_path / "made")
    with contextlib.closing(sqlite3.connect(tmp_path / "made" / "store.db")) as connection:
        connection.execute("UPDATE records SET body = ? WHERE kind = 'batch'", (body,))
        connection.commit()
    with bm.open_store(tmp_path / "made" / "store.db") as store, pytest.raises(CorruptStore, match="checksum"):
        store.prequential("m")


def test_an_index_whose_definition_rotted_is_refused(tmp_path: Path) -> None:
    """As one bit may leave it: a partial index that SQLite has by a name under which it has no definition."""
    published(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET name = 'reCords_purged' WHERE name = 'records_purged'")
        connection.commit()
    with pytest.raises(CorruptStore, match="definition of index records_purged"):
        bm.open_store(tmp_path / "store.db")


@pytest.mark.usefixtures("small_blobs")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE effects SET hit = 'word', checksum = NULL WHERE \"offset\" = 3",
        "UPDATE models SET format_version = 'word' WHERE name = 'm'",
        "UPDATE records SET \"offset\" = 'word' WHERE event_id = 'e7'",
        'UPDATE snapshots SET "offset" = 1.5 WHERE "offset" = (SELECT max("offset") FROM snapshots)',
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, change: str) -> None:
    """As a bit of a row's header may leave it, after which its columns are others."""
    given = make_store(tmp_path / "made")
    with contextlib.closing(sqlite3.connect(tmp_path / "made" / "store.db")) as connection:
        assert connection.execute(change).rowcount
        connection.commit()
    assert not verified(tmp_path / "made")
    with contextlib.suppress(BayesMLPError):
        read(tmp_path / "made", given)
