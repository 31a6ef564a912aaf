"""A posterior as it follows its log: what is applied, what waits, and what of it is not stored yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .feedback import Observation
from .model import BayesianMLP
from .replay import Replay
from .stepper import Effect
from .store.digest import extend_chain
from .watching import Watch

__all__ = ["Line", "Waiting"]


class Waiting(NamedTuple):
    """A durable record that is still to be applied; one in quarantine has nothing to learn."""

    offset: int
    observation: Observation | None


class Line:
    """The posterior, and its place in the log.

    Args:
        result: of a replay.
        watch: applies observations.
        newer: of some effects, those that are not stored yet.
    """

    def __init__(self, result: Replay, watch: Watch, newer: Callable[[dict[int, Effect]], dict[int, Effect]]) -> None:
        self._watch, self._newer = watch, newer
        self.stepper = result.stepper
        self.waiting: list[Waiting] = []
        self.done: dict[int, Effect] = {}
        self.adopt(result)

    def adopt(self, result: Replay) -> None:
        """Go on from another fold of the log. What waits behind it goes on waiting."""
        self.fingerprint = result.fold.fingerprint
        self.marks = {record.offset for record in result.fold.marks}
        model = result.stepper.model
        if not self.stepper.is_for(model.spec(), model.constant_arrays()):
            self.stepper = result.stepper
        elif result.stepper is not self.stepper:  # the live model stays the one it was, with what it compiled
            self.stepper.reset(result.stepper.to_arrays())
        self.parent = result.fold.parent
        self.head = result.fold.head
        self.status = dict(result.fold.status)
        self.chain = result.fold.chain
        self.done |= self._newer(result.effects)
        self.since_snapshot = len(result.effects)
        self.seconds_since_snapshot = sum(effect.seconds or 0.0 for effect in result.effects.values())
        self._watch.forget()

    def check(self, model: BayesianMLP) -> None:
        """Raise :class:`InvalidInput` unless the line could go on with another model."""
        self._watch.check(model)

    @property
    def known(self) -> int:
        """Offset of the newest record that is applied or waits."""
        return self.head + len(self.waiting)

    def apply_next(self) -> None:
        """Apply the first record that waits."""
        offset, observation = self.waiting[0]
        if observation is None:
            self.head, self.status[offset] = offset, "quarantined"
        else:
            self.learn(offset, observation)
        self.waiting.pop(0)

    def learn(self, offset: int, observation: Observation) -> None:
        """One Bayes step, as the record at an offset."""
        effect = self._watch.apply(self.stepper, observation)
        self.done[offset] = effect
        self.head = offset
        self.status[offset] = "live"
        self.chain = extend_chain(self.chain, [offset])
        self.since_snapshot += 1
        self.seconds_since_snapshot += effect.seconds or 0.0

    def hand_over(self, offset: int, chain: str, fingerprint: dict[str, str]) -> None:
        """Note a handover record, which brought its own snapshot."""
        self.head, self.chain, self.fingerprint = offset, chain, fingerprint
        self.marks.add(offset)
        self.since_snapshot, self.seconds_since_snapshot = 0, 0.0

    def stored(self, done: dict[int, Effect]) -> None:
        """Forget effects that are stored now."""
        for offset, effect in done.items():
            if self.done.get(offset) is effect:
                del self.done[offset]
