"""Contextual bandits: regret of Thompson sampling by the online posterior, relative to a uniform policy's (= 100).

    python benchmarks/bandits.py DATA               # folder with mushroom.npz, shuttle.npz, financial.npz, adult.npz
    python benchmarks/bandits.py DATA --quick       # 300 steps, 2 seeds

The protocol of Riquelme, Tucker and Snoek (2018), "Deep Bayesian bandits showdown": contexts in random order, each arm
is played three times first, then the policy plays, and only the reward of the arm that was played is seen. Cumulative
regret, in expected rewards, counts every step: 8,124 of them, which is the whole of mushroom, and the whole of
financial, 3,713. (The longer a run, the less weighs what exploring cost at first.) Tasks: mushroom (eat or not: +5, or
+5 and -35 with probability ½ each for a poisonous one, 0 for not eating), shuttle (7 arms, 1 when right), financial (8
portfolios), adult (14 occupations as arms, 1 when right; rows without an occupation left out).

Categories are one-hot; numeric columns are standardised by the contexts (not the rewards) of the first 200 rows and cut
at 3 standard deviations. Rewards are standardised by those of the first plays; their scale is at least a fifth of the
range of the payoffs, which is known. All policies see the same, and each has one configuration for all tasks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, get_engine, map_arrays
from bayesmlp.inference.filtering import filter_step
from bayesmlp.inference.likelihoods.masked import MaskedTargets

PUBLISHED = {"mushroom": 12.9, "shuttle": 7.1, "financial": 8.5, "adult": 88.4}
"""Best published regret, relative to uniform = 100."""

PLAYS_EACH, PREFIX, CUT, RANGE_SHARE = 3, 200, 3.0, 0.2
BATCH, EPSILON, RATE = 32, 0.05, 5e-3  # of the network that explores at random


class Bandit(NamedTuple):
    """Attributes:
    contexts: (T, D).
    rewards: of every arm, as it would have been seen, (T, K), scaled.
    regret: expected, of every arm, (T, K), in the task's own units.
    """

    contexts: np.ndarray
    rewards: np.ndarray
    regret: np.ndarray


# -- tasks ------------------------------------------------------------------------------------------------------------
def load(folder: Path, name: str, horizon: int, seed: int) -> Bandit:
    """A task in an order of its own."""
    data = np.load(folder / f"{name}.npz")
    rng = np.random.default_rng(seed)
    categorical = data["categorical"] if "categorical" in data else np.zeros(data["X"].shape[1], bool)
    x, expected, rewards = data["X"], None, None
    if name == "financial":
        expected = data["rewards"].astype(np.float64)
    elif name == "mushroom":
        edible = data["y"] == list(data["class_names"]).index("e")
        lucky = rng.random(len(edible)) < 0.5
        expected = np.stack([np.zeros(len(edible)), np.where(edible, 5.0, -15.0)], axis=1)
        rewards = np.stack([np.zeros(len(edible)), np.where(edible | lucky, 5.0, -35.0)], axis=1)
    else:
        x, categorical, label = adult(data) if name == "adult" else (x, categorical, data["y"])
        expected = (label[:, None] == np.unique(label)).astype(np.float64)
    rewards = expected if rewards is None else rewards
    order = rng.permutation(len(x))[:horizon]
    contexts = encode(x, categorical)[order]
    chosen, expected = rewards[order], expected[order]
    first = np.arange(PLAYS_EACH * chosen.shape[1])
    seen = chosen[first, first % chosen.shape[1]]
    chosen = (chosen - seen.mean()) / max(seen.std(), RANGE_SHARE * (rewards.max() - rewards.min()))
    return Bandit(standardise(contexts), chosen, expected.max(axis=1, keepdims=True) - expected)


def adult(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Income among the contexts, occupation as the label."""
    column = list(data["feature_names"]).index("occupation")
    names = json.loads(str(data["categories_json"]))["occupation"]
    known = data["X"][:, column] != names.index("?")
    x = np.concatenate([np.delete(data["X"], column, axis=1), data["y"][:, None]], axis=1)
    return x[known], np.append(np.delete(data["categorical"], column), True), data["X"][known, column]


def encode(x: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Numeric columns, then one column for each category."""
    categories = [x[:, [column]] == np.unique(x[:, column]) for column in np.flatnonzero(categorical)]
    return np.concatenate([x[:, ~categorical], *categories], axis=1).astype(np.float64)


def standardise(contexts: np.ndarray) -> np.ndarray:
    """By the first rows; columns of 0 and 1 are only centred."""
    mean, deviation = contexts[:PREFIX].mean(0), contexts[:PREFIX].std(0)
    binary = np.isin(contexts, (0.0, 1.0)).all(axis=0)
    scaled = (contexts - mean) / np.where(binary | (deviation == 0), 1.0, deviation)
    return np.clip(scaled, -CUT, CUT)


# -- policies: the arms they play, each given the task and a seed ------------------------------------------------------
Policy = Callable[[Bandit, int], np.ndarray]


def first_plays(bandit: Bandit) -> np.ndarray:
    """Arm to play at each step, -1 where the policy chooses."""
    steps, arms = bandit.rewards.shape
    forced = np.full(steps, -1)
    forced[: PLAYS_EACH * arms] = np.arange(PLAYS_EACH * arms) % arms
    return forced


def build(engine: Engine, bandit: Bandit, seed: int) -> bm.BayesianMLP:
    """One network with an output for each arm, and every correlation of its weights."""
    model = bm.BayesianMLP(
        bm.MLP((20,), "tanh"),
        bm.Gaussian(bandit.rewards.shape[1]),
        prior=bm.NormalPrior(scale=(1.0, 2.0)),
        structure=bm.Full(),
        engine=engine,
        standardize=False,
        seed=seed,
    )
    model.start_from_prior(bandit.contexts.shape[1])
    return model


def posterior_sampling(engine: Engine, bandit: Bandit) -> Policy:
    """Thompson sampling by the online posterior; compiled once, one dispatch for a whole run."""
    body = play_and_learn(engine, build(engine, bandit, 0))
    run = engine.jit(lambda posterior, rows: engine.scan(body, posterior, rows)[1])

    def play(bandit: Bandit, seed: int) -> np.ndarray:
        noise = np.random.default_rng([seed, 1]).standard_normal(bandit.rewards.shape)
        rows = tuple(engine.asarray(a) for a in (bandit.contexts, bandit.rewards, noise, first_plays(bandit)))
        return engine.to_numpy(run(build(engine, bandit, seed).posterior, rows))

    return play


def play_and_learn(engine: Engine, model: bm.BayesianMLP) -> Callable[..., Any]:
    """One step: draw the arms' expected rewards, play the best, learn from the reward of that arm."""
    xp, masked = engine.xp, model.filter_model_of(has_mask=True)
    structure = masked.of_member

    def body(posterior: Any, row: Any) -> tuple[Any, Any]:
        context, rewards, noise, forced = row
        x = context[None]
        outputs, factors = masked.network.factors(engine, structure.mean(posterior.weights), x)
        covariance = structure.output_covariance(engine, posterior.weights, factors)[0]
        covariance = covariance * xp.astype(masked.likelihood.dispersion(posterior.likelihood), covariance.dtype)
        identity = engine.eye(noise.shape[0], noise)
        root, _ = engine.cholesky(covariance + 1e-6 * xp.sum(covariance * identity) * identity)
        arm = xp.where(forced >= 0, forced, xp.argmax(outputs[0] + root @ noise))
        y = MaskedTargets(rewards[None], (xp.arange(noise.shape[0]) == arm)[None])
        one = xp.ones((1,), dtype=noise.dtype)
        posterior, _ = filter_step(engine, masked, posterior, None, x, y, one, one[0])
        return posterior, arm

    return body


def linear_thompson(bandit: Bandit, seed: int) -> np.ndarray:
    """A Bayesian linear regression with its own noise for each arm, as Riquelme et al. set it up."""
    rng = np.random.default_rng([seed, 2])
    steps, arms = bandit.rewards.shape
    contexts = np.concatenate([bandit.contexts, np.ones((steps, 1))], axis=1)
    covariance = np.stack([np.eye(contexts.shape[1]) / 0.25] * arms)
    moment, squares, shape = np.zeros(covariance.shape[:2]), np.zeros(arms), np.full(arms, 6.0)
    played = first_plays(bandit)
    for step, x in enumerate(contexts):
        spread = covariance @ x
        mean = np.einsum("kde,ke->kd", covariance, moment)
        if played[step] < 0:
            rate = 6.0 + 0.5 * np.maximum(squares - np.sum(mean * moment, axis=1), 0.0)
            noise = rate / rng.gamma(shape)
            played[step] = np.argmax(mean @ x + np.sqrt(noise * (spread @ x)) * rng.standard_normal(arms))
        arm = played[step]
        reward = bandit.rewards[step, arm]
        covariance[arm] -= np.outer(spread[arm], spread[arm]) / (1 + spread[arm] @ x)
        moment[arm] += reward * x
        squares[arm] += reward**2
        shape[arm] += 0.5
    return played


def random_exploration(engine: Engine, bandit: Bandit) -> Policy:
    """A network trained by one step of Adam after each event, on 32 of all events so far; explores at random."""
    network, (steps, arms), xp = bm.MLP((50, 50)), bandit.rewards.shape, engine.xp

    def loss(weights: Any, x: Any, y: Any, mask: Any) -> Any:
        return xp.sum(mask * (network.apply(engine, weights, x) - y) ** 2) / BATCH

    def body(carry: Any, row: Any) -> tuple[Any, Any]:
        (weights, moments, played, x, y), (step, forced, events) = carry, row
        arm = xp.where(forced >= 0, forced, xp.argmax(network.apply(engine, weights, x[step][None])[0]))
        played = xp.where(xp.arange(steps) == step, arm, played)
        mask = xp.astype(played[events][:, None] == xp.arange(arms), y.dtype)
        _, gradient = engine.value_and_grad(loss)(weights, x[events], y[events], mask)
        weights, moments = engine.adam(weights, gradient, moments, engine.constant(RATE, x))
        return (weights, moments, played, x, y), arm

    run = engine.jit(lambda carry, rows: engine.scan(body, carry, rows)[1])

    def play(bandit: Bandit, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 3])
        explored = np.where(rng.random(steps) < EPSILON, rng.integers(arms, size=steps), -1)
        forced = np.where(first_plays(bandit) >= 0, first_plays(bandit), explored)
        events = (rng.random((steps, BATCH)) * np.arange(1, steps + 1)[:, None]).astype(np.int64)
        start = network.initialise(bandit.contexts.shape[1], arms, seed)
        weights = map_arrays(engine.asarray, start)
        data = tuple(engine.asarray(a) for a in (np.zeros(steps, np.int64), bandit.contexts, bandit.rewards))
        rows = tuple(engine.asarray(a) for a in (np.arange(steps), forced, events))
        return engine.to_numpy(run((weights, engine.adam_moments(weights), *data), rows))

    return play


# -- comparison -------------------------------------------------------------------------------------------------------
def relative_regret(bandit: Bandit, played: np.ndarray) -> float:
    """Cumulative regret over that of a uniform policy, times 100."""
    return float(100 * bandit.regret[np.arange(len(played)), played].sum() / bandit.regret.mean(axis=1).sum())


def compare(engine: Engine, folder: Path, name: str, steps: int, seeds: int) -> dict[str, np.ndarray]:
    """Relative regret of every policy, one for each seed."""
    tasks = [load(folder, name, steps, seed) for seed in range(seeds)]
    policies: dict[str, Policy] = {
        "online posterior": posterior_sampling(engine, tasks[0]),
        "linear Thompson": linear_thompson,
        "ε-greedy network": random_exploration(engine, tasks[0]),
        "uniform": lambda bandit, seed: np.random.default_rng([seed, 4]).integers(
            bandit.rewards.shape[1], size=len(bandit.rewards)
        ),
    }
    results = {}
    for label, play in policies.items():
        results[label] = np.array([relative_regret(task, play(task, seed)) for seed, task in enumerate(tasks)])
        print(f"{name}, {label}: {' '.join(f'{value:.1f}' for value in results[label])}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the tasks")
    parser.add_argument("--quick", action="store_true", help="300 steps, 2 seeds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8124, help="of all tasks but financial")
    parser.add_argument("--tasks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    options = parser.parse_args()
    seeds = 2 if options.quick else options.seeds
    engine, console = get_engine("jax", "float32"), Console(width=110)
    table = None
    for name in options.tasks:
        steps = 300 if options.quick else 3713 if name == "financial" else options.steps
        started = time.perf_counter()
        results = compare(engine, options.data, name, steps, seeds)
        table = table or Table("task", "steps", *results, "best published")
        cells = [f"{r.mean():.1f} ± {r.std() / max(1, len(r) - 1) ** 0.5:.1f}" for r in results.values()]
        table.add_row(name, str(steps), *cells, f"{PUBLISHED[name]}")
        console.print(f"{name}: {time.perf_counter() - started:.0f} s")
    console.print(f"regret relative to uniform = 100, mean and standard error of {seeds} seeds")
    console.print(table)


if __name__ == "__main__":
    main()
