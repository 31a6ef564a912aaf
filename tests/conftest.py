"""Engines to test on, and the switch for JAX's global 64-bit mode."""

from __future__ import annotations

import importlib.util

import pytest
from cases import FRAMEWORKS, on

from bayesmlp.inference.engines import Engine, get_engine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--x64", action="store_true", help="turn JAX's 64-bit mode on globally, as a user may have done")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--x64"):
        if importlib.util.find_spec("jax") is None:
            raise pytest.UsageError("--x64 needs JAX: pip install 'bayesmlp[jax]'")
        import jax

        jax.config.update("jax_enable_x64", True)


@pytest.fixture(params=on(*FRAMEWORKS), scope="module")
def framework(request: pytest.FixtureRequest) -> str:
    """Each framework in turn."""
    return str(request.param)


@pytest.fixture(params=["float64", "float32"], scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    """Each floating-point type in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def engine(framework: str, dtype: str) -> Engine:
    """Every framework in every floating-point type."""
    return get_engine(framework, dtype)


@pytest.fixture(scope="module")
def engine64(framework: str) -> Engine:
    """Every framework in float64, for comparisons with exact answers."""
    return get_engine(framework, "float64")


@pytest.fixture(params=on("torch", "jax"), scope="module")
def gradient_engine64(request: pytest.FixtureRequest) -> Engine:
    """Every framework that has gradients, in float64."""
    return get_engine(str(request.param), "float64")
