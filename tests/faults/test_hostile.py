"""Events that are malformed or meant to harm: refused by name before the log, or learned; never a crash, and what was
refused changes nothing.

BAYESMLP_HOSTILE sets how many events the seeded loop sends.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp.inference.errors import BayesMLPError, ConflictingEvent

NUMBERS: list[Any] = [
    0, 1, -1, 0.5, 1e308, -1e308, 1e30, 1e-320, float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), 2**63,
    True, False, None, "1", "", "nan", "\0", "\ud800", b"1", 1j, object(), [], {}, [[]], (), np.float32("nan"),
    np.int8(1), np.float16(6e4), np.datetime64("2026-01-01"), -0.0, 3, 2, 1.5,
]  # fmt: skip
IDS: list[Any] = ["a", "", "a" * 201, "a\0b", "\ud800", "é", "line\nbreak", 5, b"a", True, None, [], ("a",), "'; DROP"]


def a_number(rng: np.random.Generator) -> Any:
    return NUMBERS[rng.integers(len(NUMBERS))]


def an_array(rng: np.random.Generator) -> Any:
    """Something that is meant to be inputs, targets, weights or a mask."""
    shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 4, 5], size=rng.integers(0, 4)))
    choice = rng.integers(9)
    if choice == 0:
        return a_number(rng)
    if choice == 1:
        return rng.standard_normal(shape).tolist()
    if choice == 2:
        return rng.standard_normal(shape).astype(rng.choice(["f2", "f4", "i1", "?", "c16", "U3", "S2", "M8[s]", "O"]))
    if choice == 3:  # of unequal depth
        return [1.0, [2.0], [[3.0]], a_number(rng)]
    if choice == 4:
        deep: Any = a_number(rng)
        for _ in range(int(rng.choice([3, 70, 500]))):
            deep = [deep]
        return deep
    if choice == 5:
        return np.ma.masked_array(np.ones(4), mask=[False, True, False, False])
    row: list[Any] = rng.standard_normal(4).tolist()  # one value of a good row is not
    row[int(rng.integers(4))] = a_number(rng)
    return row if choice == 6 else [row] if choice == 7 else np.array(row, dtype=object)


def options(rng: np.random.Generator) -> dict[str, Any]:
    """Some options of an event, good or bad."""
    makers: dict[str, Callable[[], Any]] = {
        "event_id": lambda: IDS[rng.integers(len(IDS))],
        "source": lambda: IDS[rng.integers(len(IDS))],
        "weight": lambda: a_number(rng) if rng.random() < 0.8 else an_array(rng),
        "time": lambda: [a_number(rng), 1e12, -1e12, 2e9][rng.integers(4)],
        "output_mask": lambda: an_array(rng),
        "kind": lambda: IDS[rng.integers(len(IDS))],
        "propensity": lambda: a_number(rng),
        "wait": lambda: ["applied", "durable", "", 1, None][rng.integers(5)],
    }
    chosen = [name for name in makers if rng.random() < 0.15]
    return {name: makers[name]() for name in chosen}


def some_json(rng: np.random.Generator) -> Any:
    """Text that is meant to be an event."""
    good: dict[str, Any] = {"x": [0.1, 0.2, 0.3, 0.4], "y": 1}
    choice = rng.integers(9)
    if choice == 0:
        text = json.dumps(good)
        place = int(rng.integers(len(text)))
        return text[:place] + chr(int(rng.integers(0x10FFFF))) + text[place + int(rng.integers(3)) :]
    if choice == 1:
        return json.dumps(good)[: int(rng.integers(40))].encode()
    if choice == 2:
        depth = int(rng.choice([10, 1000, 100_000]))
        return '{"x": ' + "[" * depth + "]" * depth + ', "y": 1}'
    if choice == 3:
        return rng.bytes(int(rng.integers(200)))
    if choice == 4:
        return '{"x": [1e999, 0, 0, NaN], "y": 1}' if rng.random() < 0.5 else '{"y": 1, "y": 2, "x": [0, 0, 0, 0]}'
    if choice == 5:
        number = "9" * int(rng.choice([20, 310, 5000]))
        return f'{{"x": [{number}, 0, 0, 0], "y": 1, "weight": {number}}}'
    if choice == 6:
        return [None, 5, [], bytearray(b"{}"), '"text"', "[]", "null", "{}", " ", "\0"][rng.integers(10)]
    fields = {**good, **{name: value for name, value in options(rng).items() if name != "wait"}}
    if rng.random() < 0.7:
        fields["x" if rng.random() < 0.5 else "y"] = an_array(rng)
    if rng.random() < 0.1:
        fields[["schema", "extra", "wait", "__class__"][rng.integers(4)]] = a_number(rng)
    return json.dumps(fields, default=str)


def send(updater: bm.OnlineUpdater, rng: np.random.Generator) -> Any:
    """One event by one of the ways that there are; most are bad."""
    way = rng.integers(6)
    x, y = an_array(rng), an_array(rng) if rng.random() < 0.5 else int(rng.integers(3))
    if rng.random() < 0.3:
        x = rng.standard_normal(4)
    if way <= 1:
        return updater.observe(x, y, **options(rng))
    if way == 2:
        return updater.observe_json(some_json(rng))
    if way == 3:
        many = {name: value for name, value in options(rng).items() if name not in ("event_id", "time", "propensity")}
        many |= {"event_ids": an_array(rng), "times": an_array(rng)} if rng.random() < 0.2 else {}
        return updater.observe_many(x, y, **many)
    if way == 4:
        names = ("event_id", "source", "weight", "time", "output_mask", "kind")
        return updater.observe_batch(x, y, **{n: v for n, v in options(rng).items() if n in names})
    return updater.feedback(IDS[rng.integers(len(IDS))], y, **options(rng))


def run(folder: Path, number: int, seed: int = 0) -> Counter[str]:
    """Send hostile events; after each that was refused, the posterior is the same to the bit."""
    rng = np.random.default_rng(seed)
    results: Counter[str] = Counter()
    with published(folder) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        x, y = stream(5)
        updater.observe_many(x, y, event_ids=list("abcde"))
        digest, version = updater.digest(), updater.version
        for count in range(number):
            state = rng.bit_generator.state
            try:
                send(updater, rng)
            except BayesMLPError as error:
                results[type(error).__name__] += 1
                changed = updater.version != version or (count % 10 == 0 and updater.digest() != digest)
                assert not changed, f"event {count} was refused and changed something"
            except Exception as error:
                error.add_note(f"event {count}, {state}")
                raise
            else:
                results["accepted"] += 1
                assert updater.digest() == digest or updater.version > version
                digest, version = updater.digest(), updater.version
        arrays = updater.model.to_arrays()
        assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
        assert updater.digest() == digest
    with bm.open_store(folder / "store.db") as store:
        assert store.verify() == []
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            assert updater.digest() == digest
    return results


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("number", [1000, pytest.param(None, marks=pytest.mark.slow)])
def test_hostile_events(tmp_path: Path, number: int | None) -> None:
    number = number or int(os.environ.get("BAYESMLP_HOSTILE", "10000"))
    results = run(tmp_path, number)
    print(f"\n{number} hostile events: {dict(results.most_common())}")
    assert results["InvalidInput"] > number / 2
    assert results["accepted"] > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ("x", "y", "event_id", "weight", "source", "time", "output_mask", "kind", "propensity", "schema")


@pytest.fixture(scope="module")
def updater(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hostile")
    with published(folder) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        yield updater


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON) | JSON)
@example({"x": [0.0, 0.0, 0.0, 0.0], "y": True})
@example({"x": [0.0, 0.0, 0.0, 0.0], "y": 1, "event_id": "\ud800"})
@example({"x": [0.0, 0.0, 0.0, 1e308], "y": 1})
def test_any_json(updater: bm.OnlineUpdater, event: Any) -> None:
    digest, version = updater.digest(), updater.version
    try:
        updater.observe_json(json.dumps(event))
    except BayesMLPError:
        assert (updater.digest(), updater.version) == (digest, version)
    else:
        assert updater.version >= version


def test_the_same_id_with_another_body_changes_nothing(updater: bm.OnlineUpdater) -> None:
    x, y = stream(2)
    updater.observe(x[0], y[0], event_id="once")
    digest = updater.digest()
    for changed in ({"weight": 2.0}, {"time": 5.0}, {"propensity": 0.5}):
        with pytest.raises(ConflictingEvent):
            updater.observe(x[0], y[0], event_id="once", **changed)
    with pytest.raises(ConflictingEvent):
        updater.observe_many(x, y, event_ids=["new", "once"])
    assert updater.digest() == digest
    assert updater.observe(x[0], y[0], event_id="once").repeated
