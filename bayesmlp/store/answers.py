"""Answers given with a prediction id, so that feedback may come late.

They are kept in a file of their own, which survives the death of the process but is not flushed at every answer.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import numpy as np
from sqlalchemy import insert, select

from ..inference.errors import ExpiredPrediction, UnknownPrediction
from .database import answers, answers_metadata, connect

__all__ = ["Answers"]


class Answers:
    """Answers by prediction id.

    Args:
        path: of the file; made if absent.
    """

    def __init__(self, path: Path) -> None:
        self._engine = connect(path, answers_metadata, durability="normal", exclusive=True)

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def keep(self, model: str, version: int, inputs: np.ndarray, time_to_live: float) -> str:
        """Keep the inputs of an answer.

        Args:
            model: name of the model that answered.
            version: of the model.
            inputs: in the user's units, (rows, inputs).
            time_to_live: seconds.

        Returns:
            The prediction id.
        """
        prediction_id = uuid.uuid4().hex
        with self._engine.begin() as connection:
            connection.execute(
                insert(answers).values(
                    prediction_id=prediction_id,
                    model=model,
                    version=version,
                    inputs=json.dumps(inputs.tolist()),
                    expires=time.time() + time_to_live,
                )
            )
        return prediction_id

    def inputs(self, model: str, prediction_id: str) -> np.ndarray:
        """The inputs of an answer.

        Raises:
            UnknownPrediction: the model gave no such answer.
            ExpiredPrediction: its time to live has passed.
        """
        with self._engine.begin() as connection:
            where = (answers.c.prediction_id == prediction_id) & (answers.c.model == model)
            row = connection.execute(select(answers).where(where)).first()
            if row is None:
                raise UnknownPrediction(f"model {model!r} gave no answer with prediction id {prediction_id!r}")
            if row.expires < time.time():
                raise ExpiredPrediction(
                    f"the answer {prediction_id!r} of model {model!r} expired {time.time() - row.expires:.0f} s ago: "
                    "send the feedback with its inputs, by observe"
                )
            return np.asarray(json.loads(row.inputs), dtype=np.float64)
