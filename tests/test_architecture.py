"""The architecture page names what there is, and its diagram is that of the imports."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from docs import architecture
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", PAGE)))


def _find(name):
    """The object of a dotted name below `sgc_experiments`."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["sgc_experiments", *parts[:split]]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {name}")


def test_the_page_names_many_things():
    assert len(NAMED) > 30


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_is_there(name):
    if "." in name and Path(name).suffix in {".py", ".md"}:
        assert list(ROOT.rglob(name))
    else:
        assert _find(name) is not None


def test_every_module_is_in_one_part_of_the_diagram():
    package = ROOT / "sgc_experiments"
    modules = {path.stem for path in package.glob("*.py") if path.stem != "__init__"}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    drawn = " ".join(architecture.PARTS.values()).split()
    assert sorted(drawn) == sorted((modules | packages | {"baselines"}) - architecture.EVERYWHERE)


def test_the_diagram_shows_the_imports():
    edges = architecture.imports()
    assert edges["entry points"] == {"experiments"}
    assert {"generative classifier", "baselines", "data"} <= edges["experiments"]
    assert "SDEs" in edges["likelihood"]
    assert not edges["SDEs"]
    above = {part: level for level, row in enumerate(architecture.levels(edges)) for part in row}
    assert all(above[part] < above[target] for part in edges for target in edges[part])
    text = architecture.diagram()
    assert all(f">{part}</text>" in text for part in edges)
    assert text.count("<path") == sum(map(len, edges.values()))
