"""Answers that wait for feedback: kept or not, for how long, and how many."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from store_cases import Places, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.store import answers


def test_inputs_that_were_not_kept_come_with_the_feedback(places: Places) -> None:
    x, y = stream(3)
    with places.published() as store:
        with bm.OnlineUpdater(store, "m", engine="numpy", keep_inputs=False) as updater:
            answer = str(updater.predict(x[0]).prediction_id)
            with pytest.raises(errors.InvalidInput, match="were not kept: x must be given"):
                updater.feedback(answer, y[0])
            assert updater.feedback(answer, y[0], x=x[0]).status == "applied"
            assert updater.feedback(answer, y[0], x=x[0]).repeated
            with pytest.raises(errors.UnknownPrediction):
                updater.feedback("nonsense", y[0], x=x[0])
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            answer = str(updater.predict(x[1]).prediction_id)
            with pytest.raises(errors.InvalidInput, match="were kept: leave x out"):
                updater.feedback(answer, y[1], x=x[1])


def test_above_the_quota_the_oldest_expire(places: Places) -> None:
    x, y = stream(8)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy", answer_quota=3) as updater:
        given = [str(updater.predict(row).prediction_id) for row in x]
        assert store.answers.waiting("m") == 3
        for i, answer in enumerate(given):
            if i < 5:
                with pytest.raises(errors.ExpiredPrediction):
                    updater.feedback(answer, y[i])
            else:
                assert updater.feedback(answer, y[i]).status == "applied"
    with pytest.raises(errors.InvalidInput, match="answer_quota must be a positive integer"):
        bm.OnlineUpdater(store, "m", answer_quota=0)


def test_an_expired_answer_is_remembered_without_its_inputs_then_forgotten(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = stream(1)
    options: dict[str, Any] = {"engine": "numpy", "answer_time_to_live": 0.05}
    with places.published() as store, bm.OnlineUpdater(store, "m", **options) as updater:
        answer = str(updater.predict(x[0]).prediction_id)
        time.sleep(0.1)
        store.answers.sweep()
        with pytest.raises(errors.ExpiredPrediction):
            updater.feedback(answer, y[0])
        monkeypatch.setattr(answers, "REMEMBERED", 0.0)
        store.answers.sweep()
        with pytest.raises(errors.UnknownPrediction):
            updater.feedback(answer, y[0])


def test_many_threads_are_answered_at_once(places: Places) -> None:
    x, y = stream(40)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        with ThreadPoolExecutor(16) as pool:
            given = list(pool.map(lambda row: str(updater.predict(row).prediction_id), x))
        assert len(set(given)) == 40
        for answer, target in zip(given, y, strict=True):
            assert updater.feedback(answer, target).status == "applied"
