"""Imports point one way, without a circle, lazy ones and those for annotations included; modules stay small."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import transformers_walloc

PACKAGE = Path(transformers_walloc.__file__).parent
LEVELS = {"codec": 0, "media": 1, "latents": 2, "training": 2, "evaluation": 2, "publishing": 3, "cli": 4}
MAX_LINES = 400
# The Hub gets `codec` alone: beside itself it may look for the compiled kernels of an installed package.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(name: str) -> set[str]:
    """The modules of this package that one imports."""
    found, folder = set(), name.split(".")[:-1]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *filter(None, (node.module or "").split("."))]
            for alias in node.names:
                deeper = ".".join([*base, alias.name])
                found.add(deeper if deeper in MODULES else ".".join(base))
    return found & set(MODULES)


def test_there_is_no_circle():
    try:
        tuple(TopologicalSorter({name: imports(name) for name in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_point_one_way():
    levels = {name: LEVELS.get(name.split(".")[0]) for name in MODULES}
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imports(name)
        if None not in (levels[name], levels[other]) and levels[other] > levels[name]
    ]
    assert not upward


def test_modules_stay_small():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}
