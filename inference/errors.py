"""Every error the library raises on purpose, in one tree::

    BayesMLPError
    ├── InvalidInput (ValueError)            an argument or an event is not what it must be
    ├── MissingDependency (ImportError)      an optional package is needed; names the extra
    ├── DeviceUnavailable (RuntimeError)     the requested device is not on this machine
    ├── NumericalFailure (ArithmeticError)   a result would not be finite or positive definite
    ├── NotFitted (RuntimeError)             the model has no posterior yet
    └── StoreError
        ├── UnknownModel (KeyError)          no model of that name in the store
        ├── UnknownEvent (KeyError)          no event of that id in the log
        ├── UnknownPrediction (KeyError)     no answer of that prediction id was ever kept
        ├── ExpiredPrediction                the answer was kept, and its time to live has passed
        ├── ConflictingEvent                 an event id was sent again with another body
        ├── LeaseHeld                        another updater is writing to the model
        ├── LeaseLost                        this updater was superseded and may not commit
        ├── StoreUnavailable                 the database can not be reached or written now
        ├── Purged                           what it needs was erased for good
        └── CorruptStore                     bytes read back are not the bytes written

A message names the argument, what was expected and what came.
"""

from __future__ import annotations

__all__ = [
    "BayesMLPError",
    "ConflictingEvent",
    "CorruptStore",
    "DeviceUnavailable",
    "ExpiredPrediction",
    "InvalidInput",
    "LeaseHeld",
    "LeaseLost",
    "MissingDependency",
    "NotFitted",
    "NumericalFailure",
    "Purged",
    "StoreError",
    "StoreUnavailable",
    "UnknownEvent",
    "UnknownModel",
    "UnknownPrediction",
]


class BayesMLPError(Exception):
    """Root of every error raised on purpose."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return Exception.__str__(self)


class InvalidInput(BayesMLPError, ValueError):
    """An argument or an event is not what it must be; nothing was changed."""


class MissingDependency(BayesMLPError, ImportError):
    """An optional package is needed; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'bayesmlp[{extra}]'")


class DeviceUnavailable(BayesMLPError, RuntimeError):
    """The requested device is not on this machine."""


class NumericalFailure(BayesMLPError, ArithmeticError):
    """A result would not be finite or positive definite; the old state was kept."""


class NotFitted(BayesMLPError, RuntimeError):
    """The model has no posterior yet."""


class StoreError(BayesMLPError):
    """Root of the store's errors."""


class UnknownModel(StoreError, KeyError):
    """No model of that name is in the store."""


class UnknownEvent(StoreError, KeyError):
    """No event of that id is in the model's log."""


class UnknownPrediction(StoreError, KeyError):
    """No answer of that prediction id was ever kept."""


class ExpiredPrediction(StoreError):
    """The answer was kept, and its time to live has passed."""


class ConflictingEvent(StoreError):
    """An event id was sent again with another body; the first one stands."""


class LeaseHeld(StoreError):
    """Another updater is writing to the model."""


class LeaseLost(StoreError):
    """This updater was superseded by another one and may not commit any more."""


class StoreUnavailable(StoreError):
    """The database can't be reached or written now; nothing was acknowledged. Sent again under the same event id, an
    event is learned once.
    """


class Purged(StoreError):
    """Payloads that this would need were erased for good."""


class CorruptStore(StoreError):
    """Bytes read back from the store are not the bytes that were written."""
