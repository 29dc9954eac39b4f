"""The packages agree on a version, bound what they need of one another, and are complete."""

import re
import tomllib
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
FOLDERS = sorted(path.parent for path in PACKAGES.glob("*/pyproject.toml"))
NAMES = ["solstice-core", "solstice-flax", "solstice-haiku", "solstice-optax", "solstice-stax"]

each_package = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def requirements(folder):
    """All that a package requires, also for its extras, as (name, specifier)."""
    table = project(folder)
    lines = list(table.get("dependencies", []))
    for extra in table.get("optional-dependencies", {}).values():
        lines += extra
    return [
        re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*).*", line).groups()
        for line in lines
    ]


def version_of(text):
    return tuple(int(part) for part in text.split("."))


def bounds(specifier):
    """The versions of `>=` and `<` in a specifier, None where there is none."""
    found = {}
    for part in specifier.replace(" ", "").split(","):
        match = re.fullmatch(r"(>=|<)([0-9.]+)", part)
        if match:
            found[match[1]] = version_of(match[2])
    return found.get(">="), found.get("<")


def module_of(folder):
    (module,) = [path for path in (folder / "src").iterdir() if (path / "__init__.py").exists()]
    return module


def test_all_packages_are_here():
    assert [folder.name for folder in FOLDERS] == NAMES


def test_one_version_everywhere():
    assert len({project(folder)["version"] for folder in FOLDERS}) == 1


@each_package
def test_a_package_is_named_as_its_folder(folder):
    assert project(folder)["name"] == folder.name
    expected = "solstice" if folder.name == "solstice-core" else folder.name.replace("-", "_")
    assert module_of(folder).name == expected


@each_package
def test_no_package_requires_the_bare_name_of_another_project(folder):
    names = [re.sub(r"[-_.]+", "-", name).lower() for name, _ in requirements(folder)]
    assert "solstice" not in names


@each_package
def test_a_package_bounds_what_it_needs_of_solstice(folder):
    own = [(name, spec) for name, spec in requirements(folder) if name.startswith("solstice")]
    expected = [] if folder.name == "solstice-core" else ["solstice-core"]
    assert [name for name, _ in own] == expected
    version = version_of(project(folder)["version"])
    for _, specifier in own:
        lower, upper = bounds(specifier)
        assert lower is not None
        assert upper is not None
        assert (0, 1) <= lower <= version < upper


@each_package
def test_a_package_says_the_lowest_version_of_all_that_it_needs(folder):
    for name, specifier in requirements(folder):
        assert bounds(specifier)[0] is not None, name


@each_package
@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_a_package_has_the_files_that_one_reads(folder, name):
    assert (folder / name).read_text().strip()
    table = project(folder)
    assert table["readme"] == "README.md"
    assert table["license-files"] == ["LICENSE"]


@each_package
def test_a_package_is_typed(folder):
    assert (module_of(folder) / "py.typed").is_file()


def test_all_licenses_are_the_same():
    assert len({(folder / "LICENSE").read_text() for folder in FOLDERS}) == 1


def test_all_packages_run_on_the_same_pythons():
    assert {project(folder)["requires-python"] for folder in FOLDERS} == {">=3.11"}


@each_package
def test_entry_points_name_what_the_package_has(folder):
    groups = project(folder)["entry-points"]
    assert groups
    for group, points in groups.items():
        assert group in ("solstice.models.v1", "solstice.optimizers.v1")
        for value in points.values():
            module, name = value.split(":")
            file = folder / "src" / Path(*module.split(".")) / "__init__.py"
            assert re.search(rf'"{name}"', file.read_text())
