"""Answers given with a prediction id, so that feedback may come late.

They are kept beside the log, in a file of their own or, on PostgreSQL, in a table of its own. What many threads keep at
once is committed together. An answer whose time has passed, or that was crowded out by newer ones, leaves its id behind
for a while, so that late feedback can be told that it is late.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from ..inference.errors import CorruptStore, ExpiredPrediction, InvalidInput, UnknownPrediction
from ..validation import is_positive
from .commits import GroupCommit
from .connections import unavailable_as_such
from .database import answers
from .digest import answer_checksum

__all__ = ["Answers", "Keeping"]

REMEMBERED = 30 * 86400.0
"""Seconds for which the id of an expired answer is remembered."""


class Keeping(NamedTuple):
    """How answers are kept.

    Attributes:
        time_to_live: for which an answer waits for feedback, in seconds.
        inputs: whether its inputs are kept; if not, feedback must bring them.
        quota: how many answers of a model may wait; the oldest expire. None: no limit.
    """

    time_to_live: float = 30 * 86400.0
    inputs: bool = True
    quota: int | None = None

    def check(self) -> Keeping:
        """Itself; raises :class:`InvalidInput` if it can't be."""
        if not is_positive(self.time_to_live):
            raise InvalidInput(f"answer_time_to_live must be a positive number, got {self.time_to_live!r}")
        if self.quota is not None and not (isinstance(self.quota, int) and is_positive(self.quota)):
            raise InvalidInput(f"answer_quota must be a positive integer or None, got {self.quota!r}")
        return self


class Answers:
    """Answers by prediction id.

    Args:
        engine: of the database that they are in.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commits: GroupCommit[dict[str, Any], None] = GroupCommit(self._insert)
        self._quotas: dict[str, int] = {}
        self._since_sweep = 0

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Connection]:
        with unavailable_as_such("the answers"), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def keep(self, model: str, version: int, inputs: np.ndarray, keeping: Keeping) -> str:
        """Keep an answer.

        Args:
            model: name of the model that answered.
            version: of the model.
            inputs: in the user's units, (rows, inputs).
            keeping: how.

        Returns:
            The prediction id.
        """
        now = time.time()
        if keeping.quota is not None:
            self._quotas[model] = keeping.quota
        row = {
            "prediction_id": uuid.uuid4().hex,
            "model": model,
            "version": version,
            "inputs": json.dumps(inputs.tolist()) if keeping.inputs else "",
            "expires": now + keeping.time_to_live,
            "given": now,
        }
        row["checksum"] = answer_checksum(row)
        self._commits.submit(row)
        return str(row["prediction_id"])

    def _insert(self, rows: Sequence[dict[str, Any]]) -> list[None]:
        with self._begin() as connection:
            connection.execute(insert(answers), list(rows))
        self._since_sweep += len(rows)
        if self._since_sweep > min([*self._quotas.values(), 1000]) // 10:
            self.sweep()
        return [None] * len(rows)

    def inputs(self, model: str, prediction_id: str) -> np.ndarray | None:
        """The inputs of an answer; None if they were not kept.

        Raises:
            UnknownPrediction: the model gave no such answer.
            ExpiredPrediction: its time to live has passed, or newer answers crowded it out.
            CorruptStore: they are not what was kept.
        """
        where = (answers.c.prediction_id == prediction_id) & (answers.c.model == model)
        with self._begin() as connection:
            row = connection.execute(select(answers).where(where)).first()
        if row is None:
            raise UnknownPrediction(f"model {model!r} gave no answer with prediction id {prediction_id!r}")
        if not _is_sound(row):
            raise CorruptStore(f"the answer {prediction_id!r} of model {model!r} is not as it was kept")
        if row.expires < time.time():
            raise ExpiredPrediction(
                f"the answer {prediction_id!r} of model {model!r} expired {time.time() - row.expires:.0f} s ago: "
                "send the feedback with its inputs, by observe"
            )
        return np.asarray(json.loads(row.inputs), dtype=np.float64) if row.inputs else None

    def unsound(self, model: str) -> list[str]:
        """Prediction ids of a model's answers that are not as they were kept."""
        with self._begin() as connection:
            rows = connection.execute(select(answers).where(answers.c.model == model))
            return [str(row.prediction_id) for row in rows if not _is_sound(row)]

    def strays(self, models: Iterable[str]) -> list[str]:
        """Ids of the answers that are of none of these models."""
        with self._begin() as connection:
            where = answers.c.model.not_in(list(models))
            return list(connection.execute(select(answers.c.prediction_id).where(where)).scalars())

    def integrity(self) -> list[str]:
        """What SQLite says of the file: ``ok``, or what is wrong."""
        with self._begin() as connection:
            return [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(20)")]

    def sweep(self) -> None:
        """Erase the inputs of expired answers, expire what is above a quota, forget ids that expired long ago."""
        now = time.time()
        self._since_sweep = 0
        with self._begin() as connection:
            for model, quota in self._quotas.items():
                waiting = select(answers.c.given).where(answers.c.model == model, answers.c.expires >= now)
                oldest = connection.execute(waiting.order_by(answers.c.given.desc()).limit(1).offset(quota)).scalar()
                if oldest is not None:
                    beyond = (answers.c.model == model) & (answers.c.expires >= now) & (answers.c.given <= oldest)
                    connection.execute(update(answers).where(beyond).values(expires=now - 1e-6))
            connection.execute(update(answers).where(answers.c.expires < now, answers.c.inputs != "").values(inputs=""))
            connection.execute(delete(answers).where(answers.c.expires < now - REMEMBERED))

    def erase(self, model: str, prediction_ids: Iterable[str]) -> None:
        """Forget answers, with their inputs."""
        with self._begin() as connection:
            for prediction_id in prediction_ids:
                where = (answers.c.model == model) & (answers.c.prediction_id == prediction_id)
                connection.execute(delete(answers).where(where))

    def waiting(self, model: str) -> int:
        """How many answers of a model wait for feedback."""
        where = (answers.c.model == model) & (answers.c.expires >= time.time())
        with self._begin() as connection:
            return int(connection.execute(select(func.count()).select_from(answers).where(where)).scalar_one())


def _is_sound(row: Any) -> bool:
    if row.checksum in (None, answer_checksum(row._asdict())):
        return isinstance(row.expires, float)
    return row.inputs == "" and isinstance(row.expires, float) and row.expires < time.time()  # erased as it expired
