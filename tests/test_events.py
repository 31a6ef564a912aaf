"""Events as JSON text: hostile ones change nothing, and crash nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.events import MAX_BYTES


@pytest.fixture(scope="module")
def updater(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bm.OnlineUpdater]:
    folder: Path = tmp_path_factory.mktemp("events")
    with published(folder) as store, bm.OnlineUpdater(store, "m", engine="numpy") as opened:
        yield opened


def test_an_event_as_json_is_the_event(tmp_path: Path) -> None:
    x, y = stream(3)
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        fields: dict[str, Any] = {"weight": 2.0, "event_id": "a", "time": 5.0}
        event = {"x": x[0].tolist(), "y": int(y[0]), "source": "s", "schema": 1, "kind": None, **fields}
        assert updater.observe_json(json.dumps(event)).status == "applied"
        assert updater.observe_json(json.dumps(event).encode()).repeated
        assert updater.observe(x[0], y[0], source="s", **fields).repeated
        assert (
            updater.observe_json(json.dumps({"x": x[1].tolist(), "y": int(y[1])}), wait="durable").status == "pending"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "event must be JSON"),
        ("[1]", "event must be a JSON object, got a list"),
        (b"\xff\xfe{}", "event must be JSON"),
        ('{"x": [NaN, 0, 0, 0], "y": 0}', "finite numbers, got NaN"),
        ('{"x": [0, 0, 0, 0], "y": Infinity}', "finite numbers, got Infinity"),
        ('{"x": [1e999, 0, 0, 0], "y": 0}', "x must be finite, got inf"),
        ('{"x": [1e308, 0, 0, 0], "y": 0}', "x must be at most"),
        ('{"x": [0, 0, 0, 0], "y": 0, "y": 1}', "each field once"),
        ('{"x": [0, 0, 0, 0], "y": 0, "Y": 1}', "got 'Y'"),
        ('{"x": [0, 0, 0, 0]}', "must have y"),
        ('{"x": [0, 0, 0, 0], "y": 0, "schema": 2}', "schema must be 1, got 2: a later version may read it"),
        ('{"x": [0, 0, 0, 0], "y": 0, "schema": true}', "schema must be 1"),
        ('{"x": [0, 0, 0, 0], "y": 0, "time": 1e300}', "time must be seconds since the epoch, at most 1e"),
        ('{"x": [0, 0, 0, 0], "y": 0, "weight": 1e300}', "weight must be"),
        ('{"x": [0, 0, 0, 0], "y": 0, "source": {}}', "source must be a string"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + ', "y": 0}', "nested that deep|must"),
        ('{"x": [' + "1" * 5000 + ', 0, 0, 0], "y": 0}', "must"),
        ('{"x": "' + "a" * MAX_BYTES + '", "y": 0}', "at most 1000000 bytes"),
        ('{"x": {"a": 1}, "y": 0}', "x must"),
        ('{"x": ["1", "2", "3", "4"], "y": 0}', "x must"),
        ('{"x": [[0, 0, 0, 0], [1]], "y": 0}', "x must"),
        ('{"x": null, "y": null}', "must"),
        (5, "JSON text, got a int"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_text_is_refused_and_changes_nothing(updater: bm.OnlineUpdater, text: Any, message: str) -> None:
    before = updater.digest(), updater.version
    with pytest.raises(errors.InvalidInput, match=message):
        updater.observe_json(text)
    assert (updater.digest(), updater.version) == before


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
numbers = st.lists(st.floats(-1e40, 1e40) | st.integers(-3, 3), min_size=3, max_size=5)
names = st.sampled_from(["event_id", "weight", "source", "time", "output_mask", "kind", "propensity", "schema", "z"])


@given(x=numbers | anything, y=st.integers(-1, 4) | anything, rest=st.dictionaries(names, anything, max_size=2))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_learned_or_refused_by_name(
    updater: bm.OnlineUpdater, x: Any, y: Any, rest: dict[str, Any]
) -> None:
    before = updater.digest(), updater.version
    try:
        receipt = updater.observe_json(json.dumps({"x": x, "y": y, **rest}))
    except (errors.InvalidInput, errors.ConflictingEvent):
        assert (updater.digest(), updater.version) == before
    else:
        assert receipt.status in ("applied", "failed")
        assert all(np.isfinite(array).all() for array in updater.model.to_arrays().values())
