"""A model in service: it answers, and learns from feedback, durably and exactly once."""

from __future__ import annotations

import dataclasses
from typing import Any

from .kinds import check_items, observed_kind
from .predictive import Predictive
from .prequential import Prequential
from .receipts import Purge, Receipt, Retraction
from .store.digest import posterior_digest
from .store.history import Entry
from .updating.revising import Reviser
from .validation import check_inputs, with_row_axis

__all__ = ["OnlineUpdater", "Purge", "Receipt", "Retraction"]


class OnlineUpdater(Reviser):
    """The one writer of a model in a store.

    Methods may be called from many threads, whose events are then committed together. Use it as a context manager, or
    call :meth:`close`.

    Args:
        store: where the model is.
        name: of the model.
        engine: to run on; the framework's default where None. Another one than before is recorded as a handover.
        network: for a model whose network is the user's own module: the module, or what ``bayesianize`` made of it. Its
            weights come from the store.
        snapshot_every: when to store the posterior: a number of events, or a :class:`SnapshotPolicy`; also at
            :meth:`close`. Of the older snapshots those stay whose ages are spaced geometrically.
        answer_time_to_live: how long answers with a prediction id wait for feedback, in seconds.
        keep_inputs: whether inputs of answers are kept for their feedback; if not, :meth:`feedback` must bring them.
        answer_quota: how many answers may wait; the oldest expire. None: no limit.
        admission: limits on what one source and one event may do; None: ``Admission()``, which refuses events
            of more than a day ahead of the clock where time passes by time stamps, and nothing else.
        probe: inputs, (rows, inputs), whose predictions are compared before and after every event; None for none. It
            costs a prediction of them for each event.
        calibration: whether to note how each event of one row was predicted, for :meth:`prequential`. It costs a
            prediction for each event.
        retention: for how long payloads stay in the log; None: for good.
        take_over: supersede another updater even if it may be alive, as after a crash on a machine of another name; the
            other one can't commit any more.

    Raises:
        UnknownModel: no such model.
        InvalidInput: the network is needed, or is not the one that was stored.
        LeaseHeld: another updater is writing to it.
    """

    def digest(self) -> str:
        """SHA-256 of the posterior; equal digests mean equal posteriors, to the last bit."""
        with self._applied() as line:
            return posterior_digest(self.model.spec(), line.stepper.to_arrays(copy=False))

    def history(self) -> list[Entry]:
        """Every record of the log; see :meth:`PosteriorStore.history`."""
        with self._applied():
            self._append([])
            return self.store.history(self.name)

    def prequential(self) -> Prequential:
        """How every event was predicted before it was learned; see :meth:`PosteriorStore.prequential`."""
        with self._applied():
            self._append([])
            return self.store.prequential(self.name)

    def predict(
        self,
        x: Any,
        *,
        method: str | None = None,
        time: float | None = None,
        output_mask: Any = None,
        kind: str | None = None,
    ) -> Predictive:
        """Answer, and keep the inputs so that feedback may name the answer.

        Args:
            x: inputs of one row (inputs,) or of several (rows, inputs).
            method: see :meth:`BayesianMLP.predict`.
            time: for which to answer, in seconds since the epoch: with what is then still known if no event comes
                before. Nothing is changed by it. None: the time of the newest event. It needs dynamics with a
                ``time_unit``.
            output_mask: see :meth:`BayesianMLP.predict`; feedback on the answer names its own.
            kind: see :meth:`BayesianMLP.predict`; likewise.

        Returns:
            The predictive distribution, with its ``prediction_id`` and the ``version`` that answered.

        Raises:
            InvalidInput: bad inputs, or a time that is no time or that the dynamics do not know.
        """
        rows, network = with_row_axis(x, "x", self.model.network), self.model.network
        observed = observed_kind(self.model.kinds, kind)
        if observed is None:
            inputs = check_inputs(rows, self.model.num_inputs, "x", network)
        else:
            inputs = check_items(rows, observed, self.model.num_inputs, "x", network)
        with self._lock:
            self._require_open()
            if not self._folding:
                self._apply_waiting()
            elapsed = 0.0 if time is None else self.model.elapsed_until(self._known_time(time))
            answer = self.model.predict(inputs, method=method, elapsed=elapsed, output_mask=output_mask, kind=kind)
            version, stale = self._line.head, self._folding
        kept = self.store.answers.keep(self.name, version, inputs, self._keeping)
        return dataclasses.replace(answer, prediction_id=kept, version=version, stale=stale)
