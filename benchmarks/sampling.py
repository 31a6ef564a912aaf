"""Samplers against the floor of gradients alone, and against each other: gradients and effective draws per second.

    python benchmarks/sampling.py                       # scikit-learn's diabetes data: 602 numbers, 354 rows
    python benchmarks/sampling.py DATA                  # the sets of DATA/uci_regression, first split of each
    python benchmarks/sampling.py --quick               # short chains, few of them
    python benchmarks/sampling.py --device gpu --chains 1 16 256 1024 4096

One hidden layer of 50 tanh units, learned noise, one thread. The effective sample size is that of function values at
held-out rows, and of their squares, its median over rows; seconds are those of the sampling phase, compiled before. The
floor is vmapped gradients of the same density in the same process, before and after each sampler. The arithmetic of a
gradient is six operations for each row and weight; its ceiling is a large product of float32 matrices. Peers that are
not installed (``pip install blackjax``) are left out, and said to be.
"""

from __future__ import annotations

import os
import sys

if "gpu" not in sys.argv:
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    if hasattr(os, "sched_setaffinity"):  # one core for all: XLA would run a floor's chains on several
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, get_engine
from bayesmlp.inference.methods import FitProblem
from bayesmlp.inference.sampling.chains import Plan, Run, repeat
from bayesmlp.inference.sampling.climbing import climb
from bayesmlp.inference.sampling.effective import effective_sample_size
from bayesmlp.inference.sampling.mclmc import transition
from bayesmlp.inference.sampling.projection import function_values
from bayesmlp.inference.sampling.target import Target, data_of, target_of

NETWORK = bm.MLP((50,), "tanh")
CONSOLE = Console(width=140)


class Sampled(NamedTuple):
    """Positions (C, n, D), seconds of the sampling phase, and gradients taken in it (None: not known)."""

    positions: np.ndarray
    seconds: float
    gradients: float | None


class Case(NamedTuple):
    """A posterior, and what is held out of it."""

    name: str
    model: bm.BayesianMLP
    problem: FitProblem
    target: Target
    x_test: np.ndarray
    y_test: np.ndarray
    scaling: Any


def cases(folder: Path | None, engine: str) -> Iterator[Case]:
    """Diabetes, or the first split of each set of the folder with at most 2,000 training rows."""
    if folder is None:
        x, y = load_diabetes(return_X_y=True)
        yield case_of("diabetes", x[:354], y[:354], x[354:], y[354:], engine)
        return
    for path in sorted((folder / "uci_regression").glob("*.npz")):
        with np.load(path) as file:
            x, y, train, test = file["X"], file["y"], file["splits_train"][0], file["splits_test"][0]
        if len(train) <= 2000:
            yield case_of(path.stem, x[train], y[train], x[test], y[test], engine)


def case_of(name: str, x: Any, y: Any, x_test: Any, y_test: Any, engine: str) -> Case:
    model = bm.BayesianMLP(NETWORK, bm.Gaussian(), engine=engine)
    problem, scaling = model.fit_problem(x, y), model.estimate_scaling(x, y)
    return Case(name, model, problem, target_of(problem), x_test, y_test, scaling)


def floor(case: Case, chains: int) -> float:
    """Gradients per second of ``vmap(value_and_grad)`` alone, in one compiled loop (JAX) or eager (torch)."""
    engine, data = case.problem.engine, data_of(case.problem)
    steps = max(5, (400 if engine.name.startswith("jax") else 60) // chains)
    if engine.name.startswith("jax"):
        import jax

        density = case.target.log_density(data)
        gradient = jax.vmap(jax.value_and_grad(density)) if chains > 1 else jax.value_and_grad(density)
    else:
        import torch

        both = torch.func.vmap(torch.func.grad_and_value(case.target.log_density(data)))
        gradient = lambda z: both(z)[::-1]  # noqa: E731

    def step(z: Any, _: Any) -> Any:
        value, slope = gradient(z)
        return z + 1e-9 * slope, value

    run = engine.jit(lambda z, count: engine.scan(step, z, count))
    z = engine.asarray(case.target.starts([case.problem.start(seed) for seed in range(chains)]))
    z = z[0] if engine.name.startswith("jax") and chains == 1 else z
    count = engine.asarray(np.arange(steps))
    best = np.inf
    for turn in range(4):
        started = time.perf_counter()
        engine.to_numpy(run(z, count)[1])
        best = min(best, time.perf_counter() - started) if turn else best
    return steps * chains / best


def ceiling(engine: Engine) -> float:
    """Operations a second of a large product of matrices, the best of some."""
    size, times = (1024 if engine.name in ("jax", "torch") else 8192), 8
    product = engine.jit(lambda a, b: a @ b)
    a = b = engine.asarray(np.random.default_rng(0).standard_normal((size, size)))
    best = np.inf
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(times):
            b = product(a, b)
        engine.to_numpy(b[0, 0])
        best = min(best, time.perf_counter() - started)
        b = a
    return times * 2.0 * size**3 / best


def ours(case: Case, chains: int, draws: int, thinning: int = 10) -> Sampled:
    """This package's MCLMC: tuned as the method tunes it, then timed."""
    engine, data = case.problem.engine, data_of(case.problem)
    method = bm.MCLMC(num_chains=chains)
    gradient = case.target.gradient()
    moving = method.warmed(case.problem, case.target, gradient, data)
    run = Run(engine, transition(engine, gradient), data, 1, case.target.key)
    plan = Plan(draws, thinning, None)
    marks: list[float] = []
    timed = run._replace(report=lambda *_, **__: marks.append(time.perf_counter()))
    _, drawn = repeat(timed, moving, plan)  # the first piece compiles, and is left out
    first = drawn.positions.shape[1] // len(marks)
    positions = drawn.positions[:, first:]
    return Sampled(positions, marks[-1] - marks[0], 2.0 * chains * positions.shape[1] * thinning)


def by_numpyro(case: Case, chains: int, draws: int) -> Sampled:
    from numpyro import infer

    engine, data = case.problem.engine, data_of(case.problem)
    density = case.target.log_density(data)
    kernel = infer.NUTS(potential_fn=lambda z: -density(z))
    run = infer.MCMC(
        kernel, num_warmup=500, num_samples=draws, num_chains=chains, chain_method="vectorized", progress_bar=False
    )
    start = np.random.default_rng(0).standard_normal((chains, case.target.size))
    first = engine.asarray(start if chains > 1 else start[0])
    run.warmup(engine.key(0), init_params=first)
    run.post_warmup_state = run.last_state
    for seed in (1, 2):  # compiled for the state's types before and after
        run.run(engine.key(seed), extra_fields=("num_steps",))
        run.post_warmup_state = run.last_state
    started = time.perf_counter()
    run.run(engine.key(3), extra_fields=("num_steps",))
    positions = engine.to_numpy(run.get_samples(group_by_chain=True))
    seconds = time.perf_counter() - started
    return Sampled(positions, seconds, float(np.sum(run.get_extra_fields()["num_steps"])))


def by_pyro(case: Case, chains: int, draws: int) -> Sampled:
    import torch
    from pyro import infer

    engine, data = case.problem.engine, data_of(case.problem)
    density = case.target.log_density(data)
    marks: dict[str, float] = {}

    def note(kernel: Any, sites: Any, stage: str, index: int) -> None:
        marks.setdefault(stage.split(" ")[0], time.perf_counter())

    with engine.scope(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kernel = infer.NUTS(potential_fn=lambda sites: -density(sites["z"]), max_tree_depth=7)
        start = {"z": engine.asarray(np.random.default_rng(0).standard_normal(case.target.size))}
        run = infer.MCMC(
            kernel, num_samples=draws, warmup_steps=draws, initial_params=start, disable_progbar=True, hook_fn=note
        )
        run.run()
        positions = engine.to_numpy(run.get_samples()["z"])[None]
    return Sampled(positions, time.perf_counter() - marks["Sample"], None)


def by_blackjax_mclmc(case: Case, chains: int, draws: int, thinning: int = 10) -> Sampled:
    """BlackJAX's own tuning and kernel, in a plain scan (quicker than its ``run_inference_algorithm``)."""
    import blackjax
    import jax

    engine, data = case.problem.engine, data_of(case.problem)
    density = case.target.log_density(data)
    start = case.target.starts([case.problem.start(seed) for seed in range(chains)])
    start = climb(engine, case.target.gradient(), start, data, 500, case.target.key)
    keys = jax.random.split(jax.random.key(0), chains)
    states = jax.vmap(lambda z, key: blackjax.mcmc.mclmc.init(z, density, key))(start, keys)
    tuned = blackjax.mclmc_find_L_and_step_size(
        logdensity_fn=density,
        mclmc_kernel=blackjax.mcmc.mclmc.build_kernel(integrator=blackjax.mcmc.integrators.isokinetic_mclachlan),
        num_steps=1000,
        state=jax.tree.map(lambda a: a[0], states),
        rng_key=jax.random.key(1),
    )
    parameters = tuned[1]
    sampler = blackjax.mclmc(
        density, L=parameters.L, step_size=parameters.step_size, inverse_mass_matrix=parameters.inverse_mass_matrix
    )

    def one(state_and_key: Any) -> Any:
        state, key = state_and_key

        def step(state: Any, key: Any) -> Any:
            state, _ = sampler.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(key, draws * thinning))

    # On a processor one chain after the other is the quickest way to drive it; on a device, all at once.
    in_turn = case.problem.engine.name == "jax"
    run = jax.jit(lambda states, keys: jax.lax.map(one, (states, keys)) if in_turn else jax.vmap(one)((states, keys)))
    for _ in range(2):  # the first result may have other types than the start: compiled for both
        states, _ = jax.block_until_ready(run(states, keys))
    started = time.perf_counter()
    _, positions = jax.block_until_ready(run(states, jax.random.split(jax.random.key(2), chains)))
    seconds = time.perf_counter() - started
    return Sampled(engine.to_numpy(positions)[:, ::thinning], seconds, 2.0 * chains * draws * thinning)


def by_blackjax_nuts(case: Case, chains: int, draws: int) -> Sampled:
    import blackjax
    import jax

    engine, data = case.problem.engine, data_of(case.problem)
    density = case.target.log_density(data)
    start = engine.asarray(np.random.default_rng(0).standard_normal((chains, case.target.size)))
    warmup = blackjax.window_adaptation(blackjax.nuts, density)
    (_, parameters), _ = warmup.run(jax.random.key(0), start[0], num_steps=500)
    sampler = blackjax.nuts(density, **parameters)
    states = jax.vmap(sampler.init)(start)

    def one(state: Any, key: Any) -> Any:
        return jax.lax.scan(lambda s, k: keep(*sampler.step(k, s)), state, jax.random.split(key, draws))

    def keep(state: Any, info: Any) -> Any:
        return state, (state.position, info.num_integration_steps)

    run = jax.jit(jax.vmap(one))
    for _ in range(2):
        states, _ = jax.block_until_ready(run(states, jax.random.split(jax.random.key(1), chains)))
    started = time.perf_counter()
    _, (positions, steps) = jax.block_until_ready(run(states, jax.random.split(jax.random.key(2), chains)))
    return Sampled(engine.to_numpy(positions), time.perf_counter() - started, float(np.sum(steps)))


def effective(case: Case, sampled: Sampled) -> tuple[float, float, float]:
    """Effective sample sizes of function values at held-out rows: smallest, median; median of their squares."""
    rows = case.problem.engine.asarray(case.scaling.inputs(case.x_test[:60]))
    count, size, width = sampled.positions.shape
    values = function_values(case.target, sampled.positions.reshape(-1, width), rows)
    each = values.reshape(count, size, -1)
    sizes = effective_sample_size(each)
    squares = effective_sample_size((each - each.mean(axis=(0, 1))) ** 2)
    return float(sizes.min()), float(np.median(sizes)), float(np.median(squares))


def predictive_density(case: Case, sampled: Sampled) -> float:
    """Mean log predictive density of the held-out rows, in the units of the targets."""
    from scipy.special import logsumexp

    width = sampled.positions.shape[-1]
    flat = sampled.positions.reshape(-1, width)[:: max(1, sampled.positions[..., 0].size // 2000)]
    rows = case.problem.engine.asarray(case.scaling.inputs(case.x_test))
    outputs = function_values(case.target, flat, rows)[..., 0]
    _, (log_variance,) = case.target.networks(flat.astype(np.float64))
    target = (case.y_test - case.scaling.target_mean) / case.scaling.target_scale
    error = (target - outputs) ** 2 / np.exp(log_variance)[:, None]
    each = -0.5 * (error + log_variance[:, None] + np.log(2 * np.pi))
    return float(np.mean(logsumexp(each, axis=0) - np.log(len(flat))) - np.log(case.scaling.target_scale[0]))


def measure(case: Case, name: str, chains: int, sampler: Callable[..., Sampled], draws: int, table: Table) -> None:
    before = floor(case, chains)
    sampled = sampler(case, chains, draws)
    rate = 0.5 * (before + floor(case, chains))
    least, median, squares = effective(case, sampled)
    gradients = None if sampled.gradients is None else sampled.gradients / sampled.seconds
    operations = 6.0 * len(case.problem.x) * case.target.num_weights
    cells = [
        case.name, case.problem.engine.name, name, str(chains),
        "" if gradients is None else f"{gradients:,.0f}", f"{rate:,.0f}",
        "" if gradients is None else f"{gradients / rate:.2f}",
        "" if gradients is None else f"{gradients * operations / 1e9:,.0f}",
        f"{least / sampled.seconds:.1f}", f"{median / sampled.seconds:.1f}", f"{squares / sampled.seconds:.1f}",
        f"{predictive_density(case, sampled):.3f}",
    ]  # fmt: skip
    table.add_row(*cells)
    CONSOLE.print("  ".join(cells), highlight=False)


def has(module: str) -> bool:
    there = importlib.util.find_spec(module) is not None
    if not there:
        CONSOLE.print(f"{module} is not installed: left out")
    return there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder with uci_regression/*.npz")
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--engines", nargs="+", default=["jax", "torch"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    chains = [1, 4] if options.quick else options.chains
    on_gpu = {"jax": "jax:gpu", "torch": "torch:cuda"}
    engines = [on_gpu[name] if options.device == "gpu" else name for name in options.engines]
    draws = 200 if options.quick else 1000
    columns = (
        "posterior",
        "engine",
        "sampler",
        "chains",
        "gradients/s",
        "floor",
        "share",
        "GFLOP/s",
        "ESS/s min",
        "median",
        "of squares",
        "lpd",
    )
    table = Table(*columns)
    for engine in engines:
        reached = ceiling(get_engine(engine))
        CONSOLE.print(
            f"{engine}: {get_engine(engine).fingerprint()}, a product of matrices {reached / 1e9:,.0f} GFLOP/s"
        )
        is_jax = engine.startswith("jax")
        peers = [name for name in (("blackjax", "numpyro") if is_jax else ("pyro",)) if has(name)]
        for case in cases(options.data, engine):
            for count in chains:
                size = -(-draws // count) if is_jax else -(-draws // (4 * count))
                size = 20 * -(-max(size, 1 if options.device == "cpu" else 100) // 20)  # whole pieces
                measure(case, "MCLMC", count, ours, size, table)
                if "blackjax" in peers and count <= 16:
                    measure(case, "BlackJAX MCLMC", count, by_blackjax_mclmc, size, table)
            if "numpyro" in peers:
                measure(case, "NumPyro NUTS", 1, by_numpyro, draws // 5, table)
            if "blackjax" in peers:
                measure(case, "BlackJAX NUTS", 1, by_blackjax_nuts, draws // 5, table)
            if "pyro" in peers:
                measure(case, "Pyro NUTS", 1, by_pyro, 10 if options.quick else 40, table)
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
