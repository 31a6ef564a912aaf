"""Engines to test on, and the switch for JAX's global 64-bit mode."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from cases import FRAMEWORKS, on
from store_cases import Places

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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    with postgres.server() as url:
        if url is None:
            pytest.skip(f"needs psycopg (pip install 'bayesmlp[postgres]') and a server ({postgres.HOW})")
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """Makes stores of each kind of database in turn."""
    server = request.getfixturevalue("postgresql_server") if request.param == "postgresql" else None
    made = Places(tmp_path, server)
    yield made
    made.clear()
