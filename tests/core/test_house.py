"""The rules that keep the house as docs/house.md describes it."""

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


@pytest.mark.parametrize(
    ("measure", "most"),
    [
        ("suppressions", 21),
        ("lines of the median function", 6),
        ("lines of the longest function", 62),
        ("pairs of folders that import each other", 0),
    ],
)
def test_measures_do_not_get_worse(measure: str, most: float):
    assert house.measures()[measure] <= most
