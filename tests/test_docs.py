"""What the documents say is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import bayesmlp as bm

ROOT = Path(__file__).parents[1]


def test_the_readme_example_is_the_file_that_runs() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert (ROOT / "examples" / "quickstart.py").read_text().split("# --- README ---\n")[1].lstrip() == block.group(1)


def test_every_public_name_is_documented() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    missing = [name for name in bm.__all__ if not name.startswith("_") and not re.search(rf"[.`]{name}\b", pages)]
    assert missing == []


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in bm.__all__ if not name.startswith("_") and not getattr(bm, name).__doc__] == []


def test_files_named_in_the_architecture_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    house = text.split("```")[1]
    folder = ROOT
    for line in house.splitlines():
        first = line.split("  ")[0] if not line.startswith("  ") else line
        if first and not line.startswith(" "):
            folder = ROOT / first.strip()
            assert folder.is_dir(), first
        else:
            named = re.split(r"\s{3,}", line.strip())[0]
            assert all((folder / name).exists() for name in re.findall(r"[\w/]+\.py|\w+/", named)), line
