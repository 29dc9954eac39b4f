"""`import solstice` is light, and all that it exports is there and documented."""

import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

import solstice

HEAVY = [
    "flax",
    "haiku",
    "optax",
    "tensorflow",
    "torch",
    "grain",
    "orbax",
    "matplotlib",
    "pytest",
    "tqdm",
    "sklearn",
    "scipy.stats",
    "solstice_flax",
    "solstice_haiku",
    "solstice_stax",
    "solstice_optax",
]

PROGRAM = """
import json, sys
import jax, equinox
before = set(sys.modules)
import solstice
names = dir(solstice.compat)
from solstice import *
solstice.Trainer(callbacks=[solstice.callbacks.ProgressBar()])
print(json.dumps([sorted(sys.modules), sorted(set(sys.modules) - before)]))
"""

KERNEL = """
import sys
import jax, numpy as np
import solstice
before = [m for m in sys.modules if m.startswith("solstice.")]

class Sum(solstice.Experiment):
    total: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), {"loss": batch.sum()}

    def eval_step(self, batch):
        return self, {"loss": batch.sum()}

trainer = solstice.Trainer()
trainer.fit(Sum(jax.numpy.zeros(())), [np.ones(3)], [np.ones(3)])
print(*sorted(before))
print(*sorted(m for m in sys.modules if m.startswith("solstice.")))
"""
"""A run on the core alone, with the modules that are loaded before and after it."""

READY_MADE = "callbacks checkpoint compat experiments history inspect loggers metrics runs testing"

MODULES = [solstice, solstice.callbacks, solstice.compat, solstice.data, solstice.experiments]
MODULES += [solstice.metrics]


@pytest.fixture(scope="module")
def imported():
    """All modules of a process that imported solstice, and those that came after JAX."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_ready_made_parts_load_on_first_use():
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], capture_output=True, text=True, check=True
    )
    at_import, after_a_run = (
        {name for name in READY_MADE.split() if f"solstice.{name}" in line.split()}
        for line in done.stdout.splitlines()
    )
    assert at_import == set()
    assert after_a_run == {"history", "checkpoint"}  # of the Trainer's own History


@pytest.mark.parametrize("heavy", HEAVY)
def test_importing_solstice_does_not_import(imported, heavy):
    assert heavy not in imported[0]


def test_importing_solstice_imports_itself(imported):
    every, new = imported
    assert "jax" in every
    assert "solstice.compat" in new


def exported():
    return [(module, name) for module in MODULES for name in getattr(module, "__all__", [])]


@pytest.mark.parametrize(("module", "name"), exported(), ids=lambda x: getattr(x, "__name__", x))
def test_an_exported_name_exists_and_is_documented(module, name):
    value = getattr(module, name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        assert (value.__doc__ or "").strip()
        assert not (value.__doc__ or "").startswith(f"{name}(")  # what a dataclass writes itself
    assert name in dir(module)


def test_all_names_nothing_twice():
    for module in MODULES:
        names = getattr(module, "__all__", [])
        assert len(names) == len(set(names))


def test_all_has_every_public_module():
    modules = {m.name for m in pkgutil.iter_modules(solstice.__path__) if m.name[0] != "_"}
    by_name_alone = {"testing", "new_adapter"}  # what no run of training needs
    assert modules - set(solstice.__all__) == by_name_alone


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_public_module_is_documented(module):
    assert module.__doc__


def public_methods():
    classes = [getattr(m, n) for m, n in exported() if inspect.isclass(getattr(m, n))]
    own = [c for c in dict.fromkeys(classes) if c.__module__.startswith("solstice")]
    return [(c, name) for c in own for name in vars(c) if not name.startswith("_")]


@pytest.mark.parametrize(("cls", "name"), public_methods(), ids=lambda x: getattr(x, "__name__", x))
def test_a_public_method_is_documented(cls, name):
    member = inspect.getattr_static(cls, name)
    if inspect.isfunction(member) or isinstance(member, property):
        assert inspect.getdoc(getattr(cls, name))


def test_the_version_is_that_of_the_distribution():
    assert solstice.__version__.split(".")[0].isdigit()
    assert solstice.__version__.count(".") >= 1


NOT_INSTALLED = """
import importlib.metadata as metadata
find = metadata.Distribution.from_name
def from_name(name):
    if name.startswith("solstice"):
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.Distribution.from_name = from_name
import solstice
print(solstice.__version__, "solstice-core" in solstice.checkpoint.versions())
"""


def test_the_sources_can_be_imported_where_they_are_not_installed():
    command = [sys.executable, "-c", NOT_INSTALLED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0+source False\n"
