"""What every engine must supply, and that the engines agree: the same noise gives the same result."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import (
    FRAMEWORKS,
    LIKELIHOODS,
    NETWORK,
    STRUCTURES,
    TOLERANCE,
    make_inputs,
    make_likelihood_state,
    make_targets,
    needs,
    random_arrays,
    relative_error,
    shapes_of,
)
from dense import mean, precision
from scipy import linalg, special

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, NumpyEngine, engine_of, get_engine, map_arrays
from bayesmlp.inference.engines.fused_loops import fused_loops
from bayesmlp.inference.errors import DeviceUnavailable, InvalidInput
from bayesmlp.inference.filtering import FilterModel, Posterior, UpdateInfo, filter_step
from bayesmlp.inference.structures import Structure, low_rank


def close(engine: Engine, got: Any, expected: Any) -> None:
    """Equal to the tolerance of the engine's floating-point type."""
    assert relative_error(engine.to_numpy(got), expected) < TOLERANCE[engine.dtype]


def random_matrix(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# -- arrays -----------------------------------------------------------------------------------------------------------
def test_asarray_takes_the_engines_dtype_unless_told(engine: Engine) -> None:
    assert str(engine.to_numpy(engine.asarray(np.ones(3))).dtype) == engine.dtype
    assert str(engine.to_numpy(engine.asarray(np.ones(3, np.float32))).dtype) == engine.dtype
    assert engine.to_numpy(engine.asarray(np.ones(3), "float64")).dtype == np.float64
    assert engine.to_numpy(engine.asarray(np.arange(3, dtype=np.int32))).dtype == np.int32


def test_asarray_and_to_numpy_copy(engine: Engine) -> None:
    host = np.ones(64, engine.dtype)
    array = engine.asarray(host)
    host[:] = 2
    np.testing.assert_array_equal(engine.to_numpy(array), np.ones(64))
    again = engine.asarray(array)
    copy = engine.to_numpy(array)
    copy[:] = 3
    np.testing.assert_array_equal(engine.to_numpy(array), np.ones(64))
    np.testing.assert_array_equal(engine.to_numpy(again), np.ones(64))
    np.testing.assert_array_equal(replace(engine, lends=True).to_numpy(array), np.ones(64))


def test_constants_take_the_dtype_of_their_model(engine: Engine) -> None:
    with engine.scope():
        like = engine.asarray(np.ones(2), "float64")
        assert engine.to_numpy(engine.constant([0.5], like)).dtype == np.float64
        assert engine.to_numpy(engine.eye(2, like)).dtype == np.float64
        cast = engine.cast({"a": (like,), "b": None})
    assert str(engine.to_numpy(cast["a"][0]).dtype) == engine.dtype
    assert cast["b"] is None


def test_engine_of_an_array_is_its_framework(framework: str) -> None:
    array = get_engine(framework).asarray(np.ones(2))
    assert engine_of(array).name == framework
    assert engine_of([1.0, 2.0]).name == "numpy"


def test_fingerprint_names_engine_and_version(engine: Engine) -> None:
    fingerprint = engine.fingerprint()
    assert fingerprint["engine"] == engine.name
    assert fingerprint[engine.name]
    assert all(isinstance(value, str) for value in fingerprint.values())


# -- scopes and transformations ---------------------------------------------------------------------------------------
def test_while_loop(engine: Engine) -> None:
    start = engine.asarray(np.float64(0.0)), engine.asarray(np.ones(2))

    def double_up_to_five(count: Any, values: Any) -> Any:
        return engine.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * 2), (count, values))

    count, values = engine.jit(double_up_to_five)(*start)
    assert float(count) == 5
    close(engine, values, np.full(2, 32.0))


def test_scan_folds_and_stacks(engine: Engine) -> None:
    rows = random_matrix(4, 3)

    def cumulative(start: Any, sequence: Any) -> Any:
        return engine.scan(lambda total, row: (total + row["x"], (total, row["x"] * 2)), start, sequence)

    total, (before, doubled) = engine.jit(cumulative)(engine.asarray(np.zeros(3)), {"x": engine.asarray(rows)})
    close(engine, total, rows.sum(0))
    close(engine, before, np.cumsum(rows, axis=0) - rows)
    close(engine, doubled, 2 * rows)


def test_vmap_maps_leading_axes(engine: Engine) -> None:
    left, right = random_matrix(5, 2, 3), random_matrix(3, 4, seed=1)
    mapped = engine.vmap(lambda a, b: a @ b, in_axes=(0, None))
    close(engine, engine.jit(mapped)(engine.asarray(left), engine.asarray(right)), left @ right)
    both = engine.vmap(lambda a, b: a + b)
    close(engine, engine.jit(both)(engine.asarray(left), engine.asarray(2 * left)), 3 * left)


def test_value_and_grad_of_a_tree(gradient_engine64: Engine) -> None:
    engine, xp = gradient_engine64, gradient_engine64.xp
    first, second = random_matrix(3), random_matrix(2, 3, seed=1)

    def function(parameters: Any, shift: Any) -> Any:
        return xp.sum(xp.exp(parameters[0] + shift)) + xp.sum(parameters[1] ** 3)

    unseen = engine.asarray(first)  # by the function: no gradient reaches it
    arguments = (engine.asarray(first), engine.asarray(second), unseen), engine.asarray(np.float64(0.5))
    value, gradient = engine.jit(engine.value_and_grad(function))(*arguments)
    close(engine, value, np.exp(first + 0.5).sum() + (second**3).sum())
    close(engine, gradient[0], np.exp(first + 0.5))
    close(engine, gradient[1], 3 * second**2)
    close(engine, gradient[2], 0 * first)


def test_products_with_the_jacobian_at_values_inside_a_computation(gradient_engine64: Engine) -> None:
    engine = gradient_engine64
    start, cotangents = random_matrix(2, 3), random_matrix(4, 2, 3, seed=1)

    def products(x: Any, cotangents: Any) -> Any:
        def function(tap: Any) -> tuple[Any, Any]:
            first = tap(3 * x)
            first += 1  # in place where the framework can: the tapped value is the one before
            return tap(first * first) * engine.stop_gradient(first), (first,)

        outputs, extras, pull = engine.vjp_at(function)
        return outputs, extras, tuple(pull(cotangents))

    outputs, (first,), (at_first, at_second) = engine.jit(products)(engine.asarray(start), engine.asarray(cotangents))
    inner = 3 * start + 1
    close(engine, first, inner)
    close(engine, outputs, inner**3)
    close(engine, at_first, cotangents * 2 * inner**2)
    close(engine, at_second, cotangents * inner)


def test_numpy_refuses_gradients_and_says_what_to_do() -> None:
    engine = NumpyEngine()
    assert not engine.has_gradients
    transforms: tuple[Any, ...] = (engine.value_and_grad, engine.vjp_at)
    calls: list[Any] = [partial(transform, np.sum) for transform in transforms]
    for call in [*calls, engine.train]:
        with pytest.raises(InvalidInput, match=r"has no gradients.*engine='torch'"):
            call()


def test_train_finds_the_minimum_and_reports_each_epoch(gradient_engine64: Engine) -> None:
    engine, xp = gradient_engine64, gradient_engine64.xp
    x = random_matrix(32, 2)
    weights = np.array([0.5, -0.3])
    data = engine.asarray(x), engine.asarray(x @ weights)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(32), (40, 1)), axis=1).reshape(40, 4, 8)
    rates = np.linspace(0.05, 0, 160).reshape(40, 4)
    start = {"weights": engine.asarray(np.zeros(2))}
    seen: list[int] = []

    def loss(parameters: Any, batch: Any) -> Any:
        rows, targets = batch
        value = xp.mean((rows @ parameters["weights"] - targets) ** 2)
        return value, {"twice": 2 * value}

    gradient_of = engine.value_and_grad(loss, has_aux=True)

    def step(state: Any, batch: Any, key: Any, rate: Any) -> Any:
        (value, aux), gradient = gradient_of(state[0], batch)
        return engine.adam(state[0], gradient, state[1], rate), xp.stack([value, aux["twice"]])

    (result, moments), history = engine.train(
        step,
        (start, engine.adam_moments(start)),
        data,
        zip(orders, rates, strict=True),
        seed=0,
        on_epoch=lambda epoch, *_: seen.append(epoch),
    )
    np.testing.assert_allclose(engine.to_numpy(result["weights"]), weights, atol=1e-3)
    np.testing.assert_array_equal(engine.to_numpy(start["weights"]), np.zeros(2))
    assert seen == list(range(40))
    assert history.shape == (40, 2)
    assert float(moments.count) == 160
    np.testing.assert_allclose(history[:, 1], 2 * history[:, 0], rtol=1e-12)
    assert history[-1, 0] < 1e-3 * history[0, 0]


def test_adam_is_the_published_algorithm(gradient_engine64: Engine) -> None:
    """Kingma and Ba (2015), algorithm 1, by hand for three steps."""
    engine = gradient_engine64
    gradients = [np.array([0.3, -2.0]), np.array([-0.1, 1.0]), np.array([5.0, 0.0])]
    expected, first, second = np.array([1.0, -1.0]), np.zeros(2), np.zeros(2)
    got = (engine.asarray(expected),)
    moments = engine.adam_moments(got)
    for count, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        expected = expected - 0.01 * first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        with engine.scope():
            got, moments = engine.adam(got, (engine.asarray(gradient),), moments, engine.asarray(np.float64(0.01)))
    close(engine, got[0], expected)


def test_training_ends_when_it_is_told_to(gradient_engine64: Engine) -> None:
    engine = gradient_engine64
    epochs = ((np.zeros((1, 2), dtype=int), np.zeros((1, 1))) for _ in range(10))
    data = (engine.asarray(np.ones(2)),)
    state, history = engine.train(
        lambda state, batch, key, rate: (state + 1, engine.xp.stack([state])),
        engine.asarray(np.float64(0.0)),
        data,
        epochs,
        seed=0,
        on_epoch=lambda epoch, *_: epoch == 3,
    )
    assert len(history) == 4
    assert float(state) == 4


def test_in_float64_widens_and_keeps_integers(engine: Engine) -> None:
    def inner(inner_engine: Engine, matrix: Any, labels: Any) -> Any:
        assert inner_engine.dtype == "float64"
        return matrix + 1e-12, labels

    matrix, labels = engine.asarray(np.ones(2)), engine.asarray(np.arange(2, dtype=np.int32))
    widened, kept = engine.jit(lambda a, b: engine.in_float64(inner, a, b))(matrix, labels)
    np.testing.assert_array_equal(engine.to_numpy(widened), np.ones(2) + 1e-12)
    assert engine.to_numpy(kept).dtype == np.int32


@pytest.mark.parametrize("ok", [True, False])
def test_guarded_takes_the_update_only_where_it_is_sound(engine: Engine, ok: bool) -> None:
    old = (engine.asarray(np.zeros(2)),)
    flag = engine.asarray(np.array(ok))
    result = engine.jit(lambda flag, old: engine.guarded(flag, lambda: (old[0] + 1,), old))(flag, old)
    close(engine, result[0], np.full(2, float(ok)))


def test_jax_compiles_once_for_each_shape() -> None:
    pytest.importorskip("jax", reason="jax is not installed: pip install 'bayesmlp[jax]'")
    engine = get_engine("jax")
    compiled: Any = engine.jit(lambda a: a * 2)
    compiled(engine.asarray(np.ones(3)))
    assert compiled.cache_size() == 1
    compiled(engine.asarray(np.zeros(3)))
    assert compiled.cache_size() == 1
    compiled(engine.asarray(np.zeros(4)))
    assert compiled.cache_size() == 2


def test_jax_compiles_a_filter_step_once_for_a_stream() -> None:
    pytest.importorskip("jax", reason="jax is not installed: pip install 'bayesmlp[jax]'")
    engine = get_engine("jax")
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Categorical(3), structure=bm.LowRank(2), engine=engine)
    model.start_from_prior(2)
    step: Any = model.filter_model.compile(engine)
    posterior = model.posterior
    for row in range(5):
        x = make_inputs(1, seed=row)
        posterior, _ = step(posterior, None, *model.batch(x, np.array([row % 3], np.int32), np.ones(1), 1.0))
    assert step.cache_size() == 1


def test_the_scope_leaves_torch_as_it_was() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    engine = get_engine("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                with engine.scope():
                    assert not torch.is_grad_enabled()
                    assert torch.get_num_threads() == 1
                assert torch.is_grad_enabled() is grad
                assert torch.get_num_threads() == 2
                with pytest.raises(KeyError), engine.scope():
                    raise KeyError
                assert torch.is_grad_enabled() is grad
                assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_scope_leaves_jax_as_it_was() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed: pip install 'bayesmlp[jax]'")
    engine = get_engine("jax")
    before = jax.config.jax_enable_x64, jax.config.jax_default_device
    with engine.scope():
        assert jax.numpy.ones(2, "float64").dtype == np.float64
    assert (jax.config.jax_enable_x64, jax.config.jax_default_device) == before
    engine.jit(lambda a: a)(engine.asarray(np.ones(2), "float64"))
    assert (jax.config.jax_enable_x64, jax.config.jax_default_device) == before


# -- devices ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param("torch:cuda:99", "use engine='torch'", marks=needs("torch")),
        pytest.param("jax:gpu:99", "use engine='jax'", marks=needs("jax")),
        pytest.param("jax:cpu:99", "use engine='jax'", marks=needs("jax")),
        pytest.param("torch:abacus", "use engine='torch'", marks=needs("torch")),
        pytest.param("jax:abacus", "use engine='jax'", marks=needs("jax")),
    ],
)
def test_a_missing_device_is_named_with_a_way_out(name: str, hint: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"engine '{name}'") as error:
        get_engine(name)
    assert hint in str(error.value)


@pytest.mark.parametrize("name", ["tensorflow", "numpy:gpu", ""])
def test_an_unknown_engine_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="engine must be 'numpy', 'torch"):
        get_engine(name)


def test_an_unknown_dtype_is_refused(framework: str) -> None:
    with pytest.raises(InvalidInput, match="dtype must be 'float32' or 'float64', got 'float16'"):
        get_engine(framework, "float16")


# -- randomness -------------------------------------------------------------------------------------------------------
def draw(engine: Engine, seed: int, *folds: int) -> np.ndarray:
    with engine.scope():
        key = engine.key(seed)
        for data in folds:
            key = engine.fold_in(key, data)
        return engine.to_numpy(engine.normal(key, (2, 3)))


def test_the_same_seed_gives_the_same_draws(engine: Engine) -> None:
    np.testing.assert_array_equal(draw(engine, 7), draw(engine, 7))
    np.testing.assert_array_equal(draw(engine, 7, 1, 2), draw(engine, 7, 1, 2))
    assert str(draw(engine, 7).dtype) == engine.dtype


def test_seeds_and_folds_give_other_draws(engine: Engine) -> None:
    draws = [draw(engine, *key).tobytes() for key in ((7,), (8,), (7, 0), (7, 1), (8, 1), (7, 0, 1), (7, 1, 0))]
    assert len(set(draws)) == len(draws)


def test_normal_draws_are_standard_normal(engine: Engine) -> None:
    with engine.scope():
        values = engine.to_numpy(engine.normal(engine.key(11), (40_000,)))
    size = len(values)
    assert abs(values.mean()) < 5 / size**0.5
    assert abs((values**2).mean() - 1) < 5 * (2 / size) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / size) ** 0.5


# -- linear algebra and special functions -----------------------------------------------------------------------------
def test_cholesky_reports_whether_all_matrices_are_positive_definite(engine: Engine) -> None:
    root = random_matrix(2, 3, 4)
    matrices = root @ root.mT
    cholesky = engine.jit(engine.cholesky)
    factor, ok = cholesky(engine.asarray(matrices))
    assert bool(ok)
    close(engine, factor, np.linalg.cholesky(matrices))
    matrices[1] -= 5 * np.eye(3)
    assert np.linalg.eigvalsh(matrices[1]).min() < 0
    _, ok = cholesky(engine.asarray(matrices))
    assert not bool(ok)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("transpose", [False, True])
def test_solve_triangular(engine: Engine, lower: bool, transpose: bool) -> None:
    solve = engine.jit(lambda a, b: engine.solve_triangular(a, b, lower=lower, transpose=transpose))
    for shape in ((2, 3, 3), (70, 70)):
        factors = np.tril(random_matrix(*shape)) / 3 + 3 * np.eye(shape[-1])
        factors = factors if lower else factors.mT
        right = random_matrix(*shape[:-1], 4, seed=1)
        got = solve(engine.asarray(factors), engine.asarray(right))
        pairs = zip(factors.reshape(-1, *shape[-2:]), right.reshape(-1, shape[-1], 4), strict=True)
        expected = [linalg.solve_triangular(a, b, lower=lower, trans=int(transpose)) for a, b in pairs]
        close(engine, got, np.stack(expected).reshape(right.shape))


def test_a_singular_triangular_system_has_no_finite_answer(engine: Engine) -> None:
    singular = np.eye(70)
    singular[5, 5] = 0
    got = engine.jit(engine.solve_triangular)(engine.asarray(singular), engine.asarray(np.ones((70, 1))))
    assert not np.isfinite(engine.to_numpy(got)).all()


def test_special_functions(engine: Engine) -> None:
    positive = np.array([0.01, 0.5, 1.3, 7.0, 200.0])
    signed = np.array([-3.0, -0.5, 0.0, 1e-3, 2.0])

    def special_functions(positive: Any, signed: Any) -> Any:
        return engine.lgamma(positive), engine.digamma(positive), engine.erf(signed), engine.relu(signed)

    got = engine.jit(special_functions)(engine.asarray(positive), engine.asarray(signed))
    expected = special.gammaln(positive), special.digamma(positive), special.erf(signed), np.maximum(signed, 0)
    for value, reference in zip(got, expected, strict=True):
        close(engine, value, reference)


@pytest.mark.parametrize("axis", [0, -1])
def test_logsumexp_does_not_overflow(engine: Engine, axis: int) -> None:
    values = 500 * random_matrix(3, 4)
    got = engine.jit(lambda a: engine.logsumexp(a, axis=axis))(engine.asarray(values))
    close(engine, got, special.logsumexp(values, axis=axis))


def test_the_writes_of_a_step(engine: Engine) -> None:
    matrix, column, row = random_matrix(3, 4), random_matrix(2, 3, seed=1), random_matrix(2, 4, seed=2)
    divisor = np.exp(random_matrix(3, 4, seed=3))
    for owner in (engine, engine.owning()):
        for rows in (1, 2):
            outer = column[:rows].T @ row[:rows]
            left, right, under = (engine.asarray(a) for a in (column[:rows], row[:rows], divisor))
            with engine.scope():
                close(engine, owner.add_outer(engine.asarray(matrix), left, right), matrix + outer)
                close(
                    engine, owner.add_outer_over(engine.asarray(matrix), left, right, under), matrix + outer / divisor
                )
                close(engine, owner.subtract_product(engine.asarray(matrix), left.T, right), matrix - outer)


@pytest.mark.parametrize(("side", "numba"), [(190, "there"), (5, "there"), (190, "absent"), (190, "broken")])
def test_what_independent_weights_learn(
    engine: Engine, side: int, numba: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By compiled loops, where Numba is there and a matrix is worth them, and without."""
    has_loops = engine.name in ("numpy", "torch")
    if numba == "there":
        pytest.importorskip("numba", reason="pip install 'bayesmlp[fast]'")
    else:
        monkeypatch.setattr(sys, "meta_path", [_Refuses(numba == "absent"), *sys.meta_path])
        for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
            monkeypatch.delitem(sys.modules, name)
    fused_loops.cache_clear()
    try:
        assert ("numba" in engine.fingerprint()) == (has_loops and numba == "there")
        _check_independent(engine, side, has_loops and side > 5 and numba == "there")
    finally:
        fused_loops.cache_clear()
    assert any("numba does not load" in message for message in caplog.messages) == (has_loops and numba == "broken")


class _Refuses:
    """Stands in for a Numba that is not there, or does not load."""

    def __init__(self, is_absent: bool) -> None:
        self.error = ModuleNotFoundError if is_absent else ImportError

    def find_spec(self, name: str, *args: Any) -> None:
        if name == "numba":
            raise self.error("Numba needs NumPy 1.0 or less")


def _check_independent(engine: Engine, side: int, uses_loops: bool) -> None:
    mean, precision = random_matrix(side, side + 1), np.exp(random_matrix(side, side + 1, seed=3))
    column, row = random_matrix(1, side, seed=1), random_matrix(1, side + 1, seed=2)
    column[:, 1::3] = 0.0
    moved, sharper = mean + (column.T @ row) / precision, precision + (column**2).T @ row**2
    for owner in (engine, engine.owning()):
        given = [engine.asarray(array) for array in (mean, precision, column, row)]
        with engine.scope():
            close(engine, owner.products(given[2], given[0]), column @ mean)
            spread, cross = owner.spread_over(given[2], given[1])
            close(engine, spread, column**2 @ (1 / precision))
            assert (cross is None) == uses_loops
            learned = owner.learn_independent(given[0], given[1], given[2], given[3], given[3] * given[3], cross)
        for got, expected in zip(learned, (moved, sharper), strict=True):
            close(engine, got, expected)
        if owner is engine:  # which may not write into what it is given
            close(engine, given[0], mean)
            close(engine, given[1], precision)


def test_light_work_is_done_on_the_same_memory(engine: Engine) -> None:
    """What comes back as it went is the same array, what was written into too; the rest is of the engine's own kind."""
    values, row = random_matrix(3, 4), random_matrix(1, 4)
    given = {"written": engine.asarray(values), "kept": engine.asarray(row), "none": None}

    def work(own: Engine, tree: Any) -> Any:
        written = own.add_scaled(tree["written"], own.constant(2.0, tree["kept"]), tree["kept"])
        return {**tree, "written": written, "new": tree["kept"] + 1, "number": own.xp.sum(tree["kept"])}

    for owner in (engine, engine.owning()):
        with engine.scope():
            got = owner.lightly(work, given)
        kind = type(given["kept"])
        assert isinstance(got["new"], kind)
        assert got["none"] is None
        assert got["kept"] is given["kept"]
        close(engine, got["written"], values + 2 * row)
        close(engine, got["new"], row + 1)
        assert float(got["number"]) == pytest.approx(row.sum(), rel=1e-5)
        if owner is engine:
            close(engine, given["written"], values)
        elif engine.name != "jax":
            assert got["written"] is given["written"]


def test_products_have_one_thread_inside_and_as_many_as_before_outside(engine: Engine) -> None:
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas")
    assert libraries.lib_controllers
    count = lambda: {library.get_num_threads() for library in libraries.lib_controllers}  # noqa: E731
    with libraries.limit(limits=2):
        with engine.scope(), engine.scope():
            assert engine.name == "jax" or count() == {1}
        assert count() == {2}
        inside, leave = threading.Event(), threading.Event()

        def another() -> None:
            with engine.scope():
                inside.set()
                leave.wait()

        thread = threading.Thread(target=another)
        thread.start()
        inside.wait()
        with engine.scope():
            leave.set()
            thread.join()
            assert engine.name == "jax" or count() == {1}  # though who came first has left
        assert count() == {2}


@pytest.mark.parametrize("chosen", [False, True])
def test_what_is_done_when_chosen(engine: Engine, chosen: bool) -> None:
    values = random_matrix(3, 4)

    def doubled(limit: Any, state: Any) -> Any:
        return engine.when(limit > 0, lambda now: {"a": 2 * now["a"], "b": now["b"] + 1}, state)

    state = {"a": engine.asarray(values), "b": engine.asarray(np.zeros(()))}
    got = engine.jit(doubled)(engine.asarray(np.array(1.0 if chosen else -1.0)), state)
    close(engine, got["a"], 2 * values if chosen else values)
    assert float(got["b"]) == (1 if chosen else 0)


@pytest.mark.parametrize("rows", [1, 3])
def test_products_of_batches(engine: Engine, rows: int) -> None:
    left, right = random_matrix(rows * 2, 4).reshape(rows, 2, 4), random_matrix(4, 5, seed=1)
    with engine.scope():
        close(engine, engine.products(engine.asarray(left), engine.asarray(right)), left @ right)


# -- parity -----------------------------------------------------------------------------------------------------------
LIKELIHOOD = LIKELIHOODS["categorical"]
SHAPES = shapes_of(LIKELIHOOD)


def run_everything(engine: Engine, structure: Structure) -> dict[str, Any]:
    """Forgetting, a filter step, samples from given noise and their predictions, for the same numbers on any engine."""
    x = make_inputs(4, seed=70)
    y = LIKELIHOOD.prepare(make_targets(LIKELIHOOD, x, seed=71))
    weights = structure.from_arrays(engine, random_arrays(structure, SHAPES, seed=72))
    prior = structure.from_arrays(engine, random_arrays(structure, SHAPES, seed=73))
    rng = np.random.default_rng(74)
    noise = tuple(engine.asarray(rng.standard_normal((3, *shape))) for shape in structure.noise_shapes(weights))
    model = FilterModel(NETWORK, LIKELIHOOD, structure, bm.Forgetting(0.9))

    def everything(posterior: Any, prior: Any, noise: Any, x: Any, y: Any, weight: Any, elapsed: Any) -> Any:
        after, info = filter_step(engine, model, posterior, prior, x, y, weight, elapsed)
        sampled = structure.sample(engine, after.weights, noise)
        outputs, factors = NETWORK.factors(engine, structure.mean(after.weights), x)
        return (
            after,
            info,
            {
                "samples": sampled,
                "outputs": outputs,
                "covariance": structure.output_covariance(engine, after.weights, factors),
                "sampled_outputs": NETWORK.apply(engine, sampled, x),
                "variance": structure.marginal_variance(engine, after.weights),
                "kl": structure.kl(engine, after.weights, weights),
            },
        )

    batch = [engine.asarray(a) for a in (x, y, np.array([1.0, 0.5, 2.0, 0.0]), np.float64(2.0))]
    posterior = Posterior(weights, make_likelihood_state(LIKELIHOOD, engine))
    after, info, answers = engine.jit(everything)(posterior, prior, noise, *batch)
    host = map_arrays(engine.to_numpy, answers)
    info = UpdateInfo(*(engine.to_numpy(value) for value in info))
    arrays = structure.to_arrays(engine, after.weights)
    assert bool(info.ok)
    return host | {
        "precision": precision(structure, arrays, SHAPES),  # signs of low-rank columns are free
        "mean": map_arrays(engine.to_numpy, structure.mean(after.weights)),
        "information": info.information,
        "log_predictive": info.log_predictive,
    }


PAIRS = [
    pytest.param(name, dtype, structure, marks=needs(name))
    for name in FRAMEWORKS
    for dtype in ("float64", "float32")
    for structure in STRUCTURES
    if (name, dtype) != ("jax", "float64") or structure == "blocks"
]
"""In JAX, where a case takes seconds to compile, float64 is left to the blocks, which hold every kind of structure."""


@pytest.mark.parametrize(("name", "dtype", "structure_name"), PAIRS)
def test_same_noise_same_result(name: str, dtype: str, structure_name: str) -> None:
    engine, structure = get_engine(name, dtype), STRUCTURES[structure_name].resolve(NETWORK.num_layers)
    reference = run_everything(NumpyEngine(), structure)
    got = run_everything(engine, structure)
    assert got.keys() == reference.keys()
    for what, expected in reference.items():
        pairs = zip(got[what], expected, strict=True) if isinstance(expected, tuple) else [(got[what], expected)]
        for value, target in pairs:
            assert relative_error(value, target) < TOLERANCE[dtype], what


@pytest.mark.parametrize(
    ("name", "structure_name"),
    [pytest.param(name, s, marks=needs(name)) for name in ("numpy", "torch") for s in STRUCTURES]
    + [pytest.param("jax", "blocks", marks=needs("jax"))],
)
def test_an_owning_step_does_what_a_pure_step_does(name: str, structure_name: str) -> None:
    engine, structure = get_engine(name, "float32"), STRUCTURES[structure_name].resolve(NETWORK.num_layers)
    likelihood = LIKELIHOODS["gaussian"]
    arrays = random_arrays(structure, shapes_of(likelihood), seed=75)
    x = make_inputs(2, seed=76)
    y = likelihood.prepare(make_targets(likelihood, x, seed=77))
    batch = [engine.asarray(a) for a in (x, y, np.ones(2), np.float64(1.0))]
    model = FilterModel(NETWORK, likelihood, structure)

    def fresh() -> Posterior:
        return Posterior(structure.from_arrays(engine, arrays), make_likelihood_state(likelihood, engine))

    kept = fresh()
    pure, _ = model.compile(engine)(kept, None, *batch)
    unchanged = structure.to_arrays(engine, kept.weights)
    for field, array in arrays.items():
        np.testing.assert_array_equal(unchanged[field], array.astype(unchanged[field].dtype), err_msg=field)
    owning = model.compile_in_place(engine)
    owned, _ = owning(fresh(), None, *batch)
    first, second = (structure.to_arrays(engine, posterior.weights) for posterior in (pure, owned))
    shapes = shapes_of(likelihood)
    assert relative_error(precision(structure, second, shapes), precision(structure, first, shapes)) < 1e-5

    batch[0] = engine.asarray(np.full((2, 2), np.inf))
    failed, info = owning(fresh(), None, *batch)
    assert not bool(info.ok)
    kept_arrays = structure.to_arrays(engine, failed.weights)
    for field, array in arrays.items():
        np.testing.assert_array_equal(kept_arrays[field], array.astype(kept_arrays[field].dtype), err_msg=field)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that small layers have several."""
    monkeypatch.setattr(low_rank, "_BLOCK", 90)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("num_rows", [1, 5])
def test_blocks_are_written_as_a_pure_step_would(engine: Engine, num_rows: int) -> None:
    network, likelihood = bm.MLP((30,)), bm.Categorical(4)
    x, y = random_matrix(30, 40), np.random.default_rng(1).integers(4, size=30)
    model = bm.BayesianMLP(
        network, likelihood, structure=bm.LowRank(3), engine=engine.name, dtype=engine.dtype, standardize=False
    )
    model.start_from_prior(40)
    own, filter_model = model.engine, model.filter_model
    pure, owning = filter_model.compile(own), filter_model.compile_in_place(own)
    expected, owned = model.posterior, model.to_engine(own).posterior
    for start in range(0, 30, num_rows):
        rows = slice(start, start + num_rows)
        batch = [own.asarray(a) for a in (x[rows], likelihood.prepare(y[rows]), np.ones(num_rows), np.float64(1.0))]
        expected, owned = pure(expected, None, *batch)[0], owning(owned, None, *batch)[0]
    first, second = (filter_model.structure.to_arrays(own, p.weights) for p in (expected, owned))
    shapes = tuple(matrix.shape for matrix in model.mean_weights())
    for dense in (mean, precision):
        one, other = (dense(filter_model.structure, arrays, shapes) for arrays in (first, second))
        assert relative_error(other, one) < 10 * TOLERANCE[engine.dtype]

    batch[0] = own.asarray(np.full((num_rows, 40), np.inf))
    failed, info = owning(owned, None, *batch)
    assert not bool(info.ok)
    for field, array in filter_model.structure.to_arrays(own, failed.weights).items():
        np.testing.assert_array_equal(array, second[field], err_msg=field)


@needs("jax")
@pytest.mark.parametrize("buffer", [0, 4])
def test_a_compiled_step_takes_no_second_state(buffer: int) -> None:
    """Beside the state that it owns, LowRank(10) takes blocks in float64, not a copy of it."""
    import jax

    model = bm.BayesianMLP(
        bm.MLP((1000, 1000)), bm.Categorical(10), structure=bm.LowRank(10, buffer), engine="jax", standardize=False
    )
    model.start_from_prior(200)
    engine, owning = model.engine, model.engine.owning()
    batch = model.batch(np.zeros((1, 200), np.float32), np.zeros(1, np.int32), np.ones(1), 1.0)
    with engine.scope():
        step = jax.jit(partial(filter_step, owning, model.filter_model), donate_argnums=0)
        memory = step.lower(model.posterior, None, *batch).compile().memory_analysis()
    state = sum(array.nbytes for array in model.to_arrays().values())
    assert memory.alias_size_in_bytes > 0.99 * state
    assert memory.temp_size_in_bytes < 0.4 * state


@pytest.mark.parametrize("structure", STRUCTURES)
def test_models_predict_the_same_on_every_engine(engine: Engine, structure: str) -> None:
    likelihood = LIKELIHOODS["gaussian"]
    x = make_inputs(6, seed=78)
    reference = bm.BayesianMLP(NETWORK, likelihood, structure=STRUCTURES[structure], engine="numpy", dtype="float64")
    reference.update(x, make_targets(likelihood, x, seed=79))
    spec = reference.spec() | {"dtype": engine.dtype}
    model = bm.BayesianMLP.from_parts(spec, reference.to_arrays(), engine)
    expected, got = reference.predict(x), model.predict(x)
    for name in ("mean", "std", "epistemic_variance", "aleatoric_variance"):
        assert relative_error(getattr(got, name), getattr(expected, name)) < TOLERANCE[engine.dtype], name


def test_adam_does_not_depend_on_how_a_gradient_lies_in_memory(gradient_engine64: Engine) -> None:
    engine = gradient_engine64
    start = random_matrix(3, 4)

    def trained(target: Any) -> Any:
        gradient_of = engine.value_and_grad(lambda w: engine.xp.sum((w - target) ** 2))

        def step(state: Any, batch: Any, key: Any, rate: Any) -> Any:
            value, gradient = gradient_of(state[0])
            return engine.adam(state[0], gradient, state[1], rate), engine.xp.stack([value])

        weights = engine.asarray(start)
        epochs = [(np.zeros((5, 1), dtype=int), np.full(5, 0.1))]
        data = (engine.asarray(np.ones(1)),)
        return engine.train(step, (weights, engine.adam_moments(weights)), data, epochs, seed=0)[0][0]

    with engine.scope():
        plain = trained(engine.asarray(random_matrix(3, 4) + 1))
        transposed = trained(engine.asarray((random_matrix(3, 4) + 1).T.copy()).T)
    close(engine, transposed, engine.to_numpy(plain))


_STACKS = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
import jax
import numpy as np
from bayesmlp.inference.engines import get_engine

engine = get_engine("jax", "float64")
rng = np.random.default_rng(0)

def stacks(count, size):
    roots = rng.standard_normal((12, count, size, size))
    return [engine.asarray(root @ root.swapaxes(1, 2) + size * np.eye(size)) for root in roots]

def several(count, function, *stacks):
    def again(_, now):
        return tuple(stack + 1e-9 * engine.xp.sum(function(stack)) for stack in now)
    return jax.lax.fori_loop(0, count, again, stacks)

def each(name):
    return engine.batched(lambda matrix: getattr(engine.xp.linalg, name)(matrix)[0])

works = {
    "cholesky": (stacks(5000, 10), lambda stack: engine.cholesky(stack)[0]),
    "large cholesky": (stacks(5, 80), lambda stack: engine.cholesky(stack)[0]),
    "solve": (stacks(5000, 10), lambda stack: engine.solve(stack, stack)),
    "eigh": (stacks(5, 60), each("eigh")),
    "qr": (stacks(5, 60), each("qr")),
}
given, function = works[sys.argv[1]]
jax.block_until_ready(engine.jit(lambda *stacks: several(40, function, *stacks))(*given))
"""


@pytest.mark.parametrize("work", ["cholesky", "large cholesky", "solve", "eigh", "qr"])
def test_stacked_decompositions_return_on_two_processors(work: str) -> None:
    """With jaxlib's own stacks the process waits for itself for ever; in a process of its own, which may be stopped."""
    pytest.importorskip("jax")
    subprocess.run([sys.executable, "-c", _STACKS, work], check=True, timeout=300)


def test_what_is_done_in_turns_is_the_same() -> None:
    pytest.importorskip("jax")
    engine, rng = get_engine("jax", "float64"), np.random.default_rng(0)
    cholesky, solve = engine.jit(engine.cholesky), engine.jit(engine.solve)
    for shape in ((3, 100, 10), (5, 80)):
        root = rng.standard_normal((*shape, shape[-1]))
        matrix = root @ root.swapaxes(-1, -2) + np.eye(shape[-1])
        factor, ok = cholesky(engine.as_batch(matrix))
        assert bool(ok)
        assert np.allclose(factor, np.linalg.cholesky(matrix), rtol=0, atol=1e-10)
        for right in (rng.standard_normal((*shape, 2)), rng.standard_normal((2, *shape, 2))):
            solved = solve(engine.as_batch(matrix), engine.as_batch(right))
            assert np.allclose(solved, np.linalg.solve(matrix, right), rtol=0, atol=1e-9)
    assert cholesky(engine.as_batch(np.zeros((3, 0, 0))))[0].shape == (3, 0, 0)
