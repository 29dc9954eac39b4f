"""Every public name has a docstring, and stands in the reference."""

import inspect
import re
import types
from pathlib import Path

import pytest

import solstice
from solstice import testing

REFERENCE = Path(__file__).parents[2] / "docs/reference"
MODULES = [
    solstice,
    testing,
    *(
        m
        for m in vars(solstice).values()
        if inspect.ismodule(m) and m.__name__.split(".")[-1][0] != "_"
    ),
]
NAMES = sorted(
    {
        (module.__name__, name)
        for module in MODULES
        for name in getattr(module, "__all__", ())
        if not isinstance(getattr(module, name), types.ModuleType)
    }
)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_is_documented(module, name):
    found = getattr(next(m for m in MODULES if m.__name__ == module), name)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return  # a name for a type
    assert inspect.getdoc(found), f"{module}.{name} has no docstring"
    if inspect.isclass(found) and found.__module__.startswith("solstice"):
        methods = {n: m for n, m in vars(found).items() if n[0] != "_" and inspect.isroutine(m)}
        bare = [n for n in methods if not inspect.getdoc(getattr(found, n))]
        assert bare == [], f"methods of {module}.{name} without a docstring"


def test_the_reference_has_every_public_name():
    text = "".join(path.read_text() for path in REFERENCE.glob("*.md"))
    there = {*re.findall(r"^::: ([\w.]+)", text, flags=re.M)}
    objects = {id(_object(path)) for path in there}
    missing = [
        f"{m}.{n}"
        for m, n in NAMES
        if id(getattr(next(x for x in MODULES if x.__name__ == m), n)) not in objects
    ]
    assert missing == []


def _object(path):
    found = solstice
    for part in path.split(".")[1:]:
        found = getattr(found, part)
    return found
