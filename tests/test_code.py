"""The shape of the code: small modules, small functions."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 50
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("sgc_experiments", "baselines", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
)


def _functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _lines(function):
    """Without the docstring, which is as long as there are arguments to explain."""
    first = function.body[0]
    told = 0
    if ast.get_docstring(function) is not None:
        told = first.end_lineno - first.lineno + 1
    return function.end_lineno - function.lineno + 1 - told


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_can_be_read_in_one_go(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.count("\n") <= LINES_OF_A_MODULE
    long = {
        f.name: _lines(f) for f in _functions(ast.parse(text)) if _lines(f) > LINES_OF_A_FUNCTION
    }
    assert long == {}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


def test_lengths_are_counted():
    (function,) = _functions(
        ast.parse('def f():\n    """Say.\n\n    More.\n    """\n    return 1\n')
    )
    assert _lines(function) == 2
