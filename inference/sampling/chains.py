"""Running many chains: compiled in pieces, with a report, a time limit and a checkpoint between them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..engines.base import Engine
from ..errors import InvalidInput
from ..resuming import Checkpoint, from_leaves, to_leaves
from .target import Data

__all__ = ["Chains", "Plan", "Run", "Transition", "check_memory", "repeat"]

Transition = Callable[[Any, Data, Any], tuple[Any, dict[str, Any]]]
"""``transition(state, data, key) -> (state, statistics)``: one step of C chains. The state has a ``position`` (C, D);
statistics are arrays (C,)."""

_PIECES = 20
_PIECE_BYTES = 64_000_000


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws on the host.

    Attributes:
        positions: whitened, see :mod:`.target`, (C, n, D).
        statistics: of each draw by name, (C, n): ``log_density`` and what the sampler has to say.
    """

    positions: np.ndarray
    statistics: dict[str, np.ndarray]


class Plan(NamedTuple):
    """Attributes:
    num_samples: draws of each chain that are kept.
    thinning: transitions for each of them.
    max_seconds: for all draws; None for no limit. What there is by then is kept, at least one piece.
    """

    num_samples: int
    thinning: int
    max_seconds: float | None


class Run(NamedTuple):
    """Attributes:
    engine: of the chains.
    transition: one step.
    data: that the density is given.
    seed: of the draws.
    key: names all that the transition closes over: a program compiled for an equal one is used again.
    report: called with the piece, the number of pieces, minus the mean log density, and a note; or None.
    checkpoint: keeps the chains between pieces; or None.
    """

    engine: Engine
    transition: Transition
    data: Data
    seed: int
    key: Hashable
    report: Callable[..., None] | None = None
    checkpoint: Checkpoint | None = None


def check_memory(
    num_chains: int, num_samples: int, size: int, compared: int = 0, *, available: int | None = None
) -> int:
    """Bytes that the draws will take at most: on the host, on the device, and once more while they are converted; and
    the function values that they are judged by.

    Args:
        num_chains: C.
        num_samples: n.
        size: D.
        compared: function values held at once, float64.
        available: bytes; None for the machine's memory.

    Raises:
        InvalidInput: that is more than half of what there is.
    """
    needed = 3 * 4 * num_chains * num_samples * size + 8 * compared
    if available is None:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * needed > available:
        raise InvalidInput(
            f"{num_chains} chains of {num_samples} draws of {size} numbers take {needed / 1e9:.1f} GB, over half of "
            f"the {available / 1e9:.1f} GB here: ask for fewer num_samples or num_chains"
        )
    return needed


def repeat(run: Run, state: Any, plan: Plan) -> tuple[Any, Chains]:
    """Step the chains, and keep a draw of each after every ``thinning`` steps.

    An interrupted run with a checkpoint goes on at its last whole piece, to the same draws.

    Returns:
        The last state, and the draws.
    """
    engine, pieces = run.engine, _pieces(state.position.shape, plan.num_samples)
    compiled = engine.compiled(("piece", run.key), _piece(engine, run.transition))
    state, kept = _resumed(run, state)
    rows = max(1.0, float(engine.to_numpy(run.data[2]).sum())) if run.report is not None else 1.0
    started, done = time.monotonic(), 0
    for index, size in enumerate(pieces):
        done += size
        if sum(positions.shape[1] for positions, _ in kept) >= done:
            continue
        steps = engine.asarray(np.arange(size * plan.thinning).reshape(size, plan.thinning))
        stream = engine.stream(_seed_of(run.seed, index))
        state, (positions, statistics) = compiled(state, run.data, steps, stream)
        values = {name: engine.to_numpy(value).T for name, value in statistics.items()}
        kept.append((np.swapaxes(engine.to_numpy(positions), 0, 1), values))
        if run.report is not None:
            run.report(index, len(pieces), -float(values["log_density"].mean()) / rows, note=_note(values))
        if run.checkpoint is not None and (run.checkpoint.due() or index == len(pieces) - 1):
            joined = _joined(kept)
            kept = [(joined.positions, joined.statistics)]
            run.checkpoint.keep(_to_arrays(engine, state, joined))
        if plan.max_seconds is not None and time.monotonic() - started > plan.max_seconds:
            break
    return state, _joined(kept)


def _piece(engine: Engine, transition: Transition) -> Callable[..., Any]:
    """Draws of one piece: (n, C, D), and the statistics (n, C): the draw's own log density, averages since the last
    draw of all others.
    """

    def piece(state: Any, data: Data, steps: Any, stream: Any) -> Any:
        def step(state: Any, index: Any) -> Any:
            return transition(state, data, engine.fold_in(stream, index))

        def draw(state: Any, indices: Any) -> Any:
            state, statistics = engine.scan(step, state, indices)
            last = {k: v[-1] if k == "log_density" else engine.xp.mean(v, axis=0) for k, v in statistics.items()}
            return state, (state.position, last)

        return engine.scan(draw, state, steps)

    return piece


def _pieces(shape: Sequence[int], num_samples: int) -> list[int]:
    """Sizes of the pieces, equal but for the last, so that two programs are compiled at most."""
    most = max(1, _PIECE_BYTES // (4 * math.prod(shape)))
    size = min(most, -(-num_samples // _PIECES))
    sizes = [size] * (num_samples // size)
    return [*sizes, num_samples % size] if num_samples % size else sizes


def _seed_of(seed: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, piece]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _note(statistics: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {values.mean():.3g}" for name, values in statistics.items() if name != "log_density")


def _joined(kept: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]]) -> Chains:
    statistics = {name: np.concatenate([values[name] for _, values in kept], axis=1) for name in kept[0][1]}
    return Chains(np.concatenate([positions for positions, _ in kept], axis=1), statistics)


def _to_arrays(engine: Engine, state: Any, chains: Chains) -> dict[str, np.ndarray]:
    statistics = {f"statistics.{name}": values for name, values in chains.statistics.items()}
    return {**to_leaves(engine, "state", state), "positions": chains.positions, **statistics}


def _resumed(run: Run, state: Any) -> tuple[Any, list[tuple[np.ndarray, dict[str, np.ndarray]]]]:
    """State and draws of an interrupted run, or the state as it is and none."""
    saved = None if run.checkpoint is None else run.checkpoint.begin()
    if not saved:
        return state, []
    prefix = "statistics."
    statistics = {name.removeprefix(prefix): array for name, array in saved.items() if name.startswith(prefix)}
    return from_leaves(run.engine, "state", saved, state), [(saved["positions"], statistics)]
