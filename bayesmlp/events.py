"""One event as JSON text, as senders write it: what it may hold, and what is refused before it is looked at further.

==============  =====================================================================================================
x, y            inputs of one row, and what was seen; needed
event_id        chosen by the sender, so that it may be sent again
weight          2 counts as two observations
source          who says so
time            of the event, seconds since the epoch
output_mask     the outputs that y tells of
kind            of the feedback, for a model that hears several
propensity      of the action that led to y
schema          of this table, 1; a later version of the library reads earlier ones
==============  =====================================================================================================
"""

from __future__ import annotations

import json
from typing import Any

from .inference.errors import InvalidInput

__all__ = ["EVENT_SCHEMA", "parse_event"]

EVENT_SCHEMA = 1
MAX_BYTES = 1_000_000
_FIELDS = ("x", "y", "event_id", "weight", "source", "time", "output_mask", "kind", "propensity")


def parse_event(text: str | bytes) -> dict[str, Any]:
    """The fields of an event; their values are checked by who learns them.

    Args:
        text: a JSON object of at most a million bytes.

    Raises:
        InvalidInput: no JSON object, too large, too deep, a field twice or unknown, x or y missing, or a later schema.
    """
    if not isinstance(text, str | bytes):
        raise InvalidInput(f"event must be JSON text, got a {type(text).__name__}")
    if len(text) > MAX_BYTES:
        raise InvalidInput(f"event must be of at most {MAX_BYTES} bytes, got {len(text)}")
    try:
        event = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except InvalidInput:
        raise
    except RecursionError as error:
        raise InvalidInput("event must not be nested that deep") from error
    except ValueError as error:  # of JSON, of UTF-8, of integers with thousands of digits
        raise InvalidInput(f"event must be JSON: {error}") from error
    if not isinstance(event, dict):
        raise InvalidInput(f"event must be a JSON object, got a {type(event).__name__}")
    schema = event.pop("schema", EVENT_SCHEMA)
    if schema != EVENT_SCHEMA or isinstance(schema, bool):
        raise InvalidInput(f"event.schema must be {EVENT_SCHEMA}, got {str(schema)[:100]}: a later version may read it")
    unknown = sorted(set(event) - set(_FIELDS))
    if unknown:
        raise InvalidInput(f"event may have the fields {', '.join(_FIELDS)} and schema, got {unknown[0][:100]!r}")
    missing = [name for name in ("x", "y") if name not in event]
    if missing:
        raise InvalidInput(f"event must have {missing[0]}")
    return {name: value for name, value in event.items() if value is not None or name in ("x", "y")}


def _no_constant(name: str) -> Any:
    raise InvalidInput(f"event must hold finite numbers, got {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidInput("event must have each field once")
    return found
