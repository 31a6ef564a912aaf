"""What is installed and imported: the package list, lazy frameworks, and users' own files of the same names."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bayesmlp as bm

ROOT = Path(__file__).parents[1]


def run_python(*arguments: str, cwd: Path) -> str:
    """What a fresh interpreter prints; its warnings are errors, as here."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def packages_on_disk() -> set[str]:
    """Dotted names of the folders that hold an ``__init__.py``, by the names under which they are imported."""
    found = set()
    for top, name in (("bayesmlp", "bayesmlp"), ("inference", "bayesmlp.inference")):
        for init in (ROOT / top).rglob("__init__.py"):  # rglob does not follow the link bayesmlp/inference
            if (ROOT / "bayesmlp" / "inference") in init.parents:
                continue
            found.add(".".join([name, *init.parent.relative_to(ROOT / top).parts]))
    return found


def test_the_package_list_is_the_folders_on_disk() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk()
    assert {"bayesmlp", "bayesmlp.inference", "bayesmlp.inference.engines"} <= set(listed)
    assert project["tool"]["setuptools"]["package-dir"]["bayesmlp.inference"] == "inference"


def test_inference_is_the_folder_beside_the_package() -> None:
    import bayesmlp.inference

    (location,) = bayesmlp.inference.__path__
    assert Path(location).resolve() == ROOT / "inference"


def test_every_public_name_resolves() -> None:
    for name in bm.__all__:
        assert getattr(bm, name) is not None, name
    assert set(bm.__all__) <= set(dir(bm))
    with pytest.raises(AttributeError, match="module 'bayesmlp' has no attribute 'Oracle'"):
        _ = bm.Oracle


def test_importing_loads_neither_framework(tmp_path: Path) -> None:
    program = "import sys, bayesmlp; print(sorted({'torch', 'jax', 'flax', 'numpyro', 'pyro'} & set(sys.modules)))"
    assert run_python("-c", program, cwd=tmp_path).strip() == "[]"


def test_numpy_models_need_neither_framework(tmp_path: Path) -> None:
    program = """
import sys
for name in ("torch", "jax"):
    sys.modules[name] = None  # an import of it fails
import bayesmlp as bm
for structure in (bm.Diagonal(), bm.Full(), bm.LowRank(2), bm.LastLayer()):
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Categorical(3), structure=structure, engine="numpy")
    model.update([[0.1, 0.2]], [1])
    print(model.predict([[0.1, 0.2]]).probabilities.shape)
"""
    assert run_python("-c", program, cwd=tmp_path).split("\n")[:4] == ["(1, 3)"] * 4


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_missing_framework_is_named_with_its_extra(framework: str, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["{framework}"] = None
import bayesmlp as bm
from bayesmlp.inference.errors import MissingDependency
try:
    bm.BayesianMLP(bm.MLP((3,)), bm.Bernoulli(), engine="{framework}")
except MissingDependency as error:
    print(error)
"""
    printed = run_python("-c", program, cwd=tmp_path)
    assert printed.strip() == f"{framework} is not installed; install it with: pip install 'bayesmlp[{framework}]'"


def test_a_users_own_files_of_the_same_names_break_nothing(tmp_path: Path) -> None:
    """Scripts have their folder first on the path; modules there must not shadow the library's own."""
    (tmp_path / "inference.py").write_text("OWNER = 'the user'\n")
    for name in ("store", "engines", "structures", "model", "layers", "errors"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('nobody asked for this module')\n")
    (tmp_path / "script.py").write_text(
        "import inference\n"
        "import bayesmlp as bm\n"
        "model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine='numpy')\n"
        "model.update([[0.1, 0.2]], [1.0])\n"
        "print(inference.OWNER, model.predict([[0.1, 0.2]]).mean.shape)\n"
    )
    assert run_python("script.py", cwd=tmp_path).strip() == "the user (1,)"
