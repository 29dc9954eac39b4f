"""The rules that keep the house as docs/house.md describes it."""

import ast
import re

import house
import pytest


def test_the_map_is_that_of_the_code():
    page = house.PAGE.read_text()
    shown = page.split(house.BEGIN)[1].split(house.END)[0]
    assert shown == house.drawn(), "write `python tests/support/house.py --write`"


def test_every_module_says_what_it_is():
    assert [
        module.name for module in house.modules() if not module.summary.endswith((".", "?"))
    ] == []


def test_a_module_imports_from_its_floor_and_those_below():
    assert house.climbs() == []


def test_a_private_module_is_imported_in_its_folder_alone():
    assert house.private_imports() == []


def test_folders_import_each_other_in_one_direction():
    assert house.folder_cycles() == []


def test_the_code_in_docstrings_is_python():
    blocks: dict[str, str] = {}
    for module in house.modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                for i, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
                    name = getattr(node, "name", "module")
                    blocks[f"{module.name} {name} {i}"] = code
    assert len(blocks) > 20
    for name, code in blocks.items():
        compile(code, name, "exec")


@pytest.mark.parametrize(
    ("measure", "most"),
    [
        ("percent of annotations that are a bare Any", 8),
        ("modules over 350 lines", 0),
        ("suppressions", 21),
        ("lines of the median function", 6),
        ("lines of the longest function", 62),
    ],
)
def test_measures_do_not_get_worse(measure: str, most: float):
    assert house.measures()[measure] <= most
